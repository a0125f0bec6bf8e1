"""``qsweep worker`` without the slow imports, which the jobs of these tests have no use for."""

import sys

from qsweep.commands.entry import command
from qsweep.commands.worker import parser, work

if __name__ == "__main__":
    sys.exit(command(lambda words: work(parser().parse_args(words), preload=()))())
