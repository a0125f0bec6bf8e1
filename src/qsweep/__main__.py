"""``python -m qsweep``."""

import sys

if __name__ == "__main__":
    try:
        from qsweep.commands.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
