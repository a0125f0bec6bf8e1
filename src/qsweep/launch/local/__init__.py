"""Jobs on this machine: a process for each, and slots that they wait for."""
