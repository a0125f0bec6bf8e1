"""A head in a process of its own: ``head_process.py OPTIONS JOBS``, both JSON; prints results."""

import json
import sys
from pathlib import Path

from qsweep.commands.entry import command
from qsweep.launch import Job
from qsweep.launch.queue import QueueLauncher


def main(_) -> int:
    options, jobs = map(json.loads, sys.argv[1:])
    made = [Job(**job | {"log": Path(job["log"]), "needs": tuple(job["needs"])}) for job in jobs]
    with QueueLauncher(**options) as launcher:
        launcher.run(
            made,
            on_done=lambda job, result: print(job.id, result.status, result.reason, flush=True),
        )
    return 0


if __name__ == "__main__":
    sys.exit(command(main)())
