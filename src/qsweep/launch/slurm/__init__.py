"""Jobs on a Slurm cluster: ``launch=slurm``."""
