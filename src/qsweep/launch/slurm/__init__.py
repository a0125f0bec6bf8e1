"""Workers on a Slurm cluster: ``launch=slurm``."""

from qsweep.launch.slurm.launcher import SlurmLauncher, describe

__all__ = ["SlurmLauncher", "describe"]
