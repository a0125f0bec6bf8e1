"""Workers on a Slurm cluster: ``launch=slurm``."""

from qsweep.launch.slurm.launcher import SlurmLauncher

__all__ = ["SlurmLauncher"]
