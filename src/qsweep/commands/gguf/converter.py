"""``python -m qsweep.gguf.converter install``: an older name of ``qsweep env create llama.cpp``."""

import sys

from qsweep.commands.env import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["install"]:
        sys.argv[1:2] = ["create", "llama.cpp"]
    sys.exit(main())
