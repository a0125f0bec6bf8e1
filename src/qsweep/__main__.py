"""``python -m qsweep``."""

import sys

from qsweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
