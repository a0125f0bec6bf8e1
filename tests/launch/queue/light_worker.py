"""``qsweep worker`` without the slow imports, which the jobs of these tests have no use for."""

import os
import sys

from qsweep.commands.entry import command
from qsweep.commands.worker import parser, work

PRELOAD = tuple(os.environ.get("PRELOAD", "").split())

if __name__ == "__main__":
    sys.exit(command(lambda words: work(parser().parse_args(words), preload=PRELOAD))())
