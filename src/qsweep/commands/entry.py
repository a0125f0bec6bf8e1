"""What all of qsweep's commands share: however one ends, it is at most a line and an exit code."""

import argparse
import codecs
import contextlib
import functools
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

from qsweep.base.config_files import config_folder
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.secrets import RedactingStream, scrubbed
from qsweep.launch.interrupts import (
    SIGNALS,
    Interrupted,
    interrupted,
    interruptible,
    kill_all_and_exit,
)

Main = Callable[[Sequence[str] | None], int]
# Set to see the whole traceback of an error that has no words of its own.
TRACEBACK = "QSWEEP_TRACEBACK"
# They tell of kernels for GPUs that this machine has not, and of themselves, whenever they are imported.
_NOISY = ("torchao", "torch.utils._pytree")
# What stands for a character in an encoding that lacks it; one for one, so that tables stay aligned.
_PLAIN = str.maketrans("·±…×≤≥–—−→²’‘“”•", "-~.x<>--->2''\"\"*")


class Parser(argparse.ArgumentParser):
    """Reports what is wrong with a command's arguments in one line, as all else is."""

    def error(self, message: str) -> NoReturn:
        """Print it, and where help is; exit with 2."""
        self.exit(2, f"error: {scrubbed(message, *sys.argv[1:])}; {self.prog} --help\n")


def command_parser(name: str, documentation: str | None, *, outputs: bool = True) -> Parser:
    """The parser of ``qsweep NAME``.

    Args:
        name: the command's.
        documentation: its module's docstring; help shows what follows the first colon.
        outputs: whether it has the option ``--outputs``, whose value is an absolute path.
    """
    description = (documentation or "").partition("``: ")[2]
    parser = Parser(
        prog=f"qsweep {name}",
        description=description[:1].upper() + description[1:],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if outputs:
        parser.add_argument(
            "--outputs", type=absolute, default="outputs", metavar="DIR", help="default: outputs"
        )
    return parser


def absolute(path: str) -> Path:
    """A path as it is typed, with ``~``, made absolute."""
    return Path(path).expanduser().absolute()


def config_loader(config_dir: str | None = None) -> Any:
    """Hydra's loader of qsweep's configuration files, and of those in a folder of one's own."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    path = create_config_search_path(str(config_folder("conf")))
    if config_dir is not None:
        path.prepend(provider="command-line", path=f"file://{absolute(config_dir)}")
    loader = Hydra.create_main_hydra2("qsweep", path).config_loader
    GlobalHydra.instance().clear()  # which that has set, and the command itself sets again
    return loader


@overload
def command(main: Main, /) -> Callable[..., int]: ...


@overload
def command(
    *, invalid: type[QsweepError], otherwise: int = 1
) -> Callable[[Main], Callable[..., int]]: ...


def command(
    main: Main | None = None, /, *, invalid: type[QsweepError] = ConfigError, otherwise: int = 1
) -> Any:
    """Make ``main``, which takes arguments and gives an exit code, a command.

    Errors that it does not report itself are one line on standard error and an exit code: 2 for those
    of the class ``invalid``, what was typed is wrong, and ``otherwise`` for all others. Signals end it with 128
    plus their number (:mod:`qsweep.launch.interrupts`). A reader of its output who has gone, a terminal
    without Unicode, or closed standard streams change nothing but what is seen.

    Called without arguments it is the whole process, and takes them from ``sys.argv``.
    """
    if main is None:
        return functools.partial(_command, invalid=invalid, otherwise=otherwise)
    return _command(main, invalid, otherwise)


def _command(main: Main, invalid: type[QsweepError], otherwise: int) -> Callable[..., int]:
    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        alone = arguments is None
        if alone:
            _open_streams()
            for name in _NOISY:
                logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with interruptible():
                code = _run(main, arguments, invalid, otherwise)
                if alone and interrupted():
                    _leave(code)
        except KeyboardInterrupt as error:  # before or after the command's own time
            code = _code_of(error)
            if alone:
                _leave(code)
        if alone:
            for number in SIGNALS:  # nothing is left to be done that an exit handler could lose
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
        return code

    return run


def _run(
    main: Main, arguments: Sequence[str] | None, invalid: type[QsweepError], otherwise: int
) -> int:
    try:
        os.getcwd()
    except OSError:
        return _fail("the working directory is gone; cd to one that is there", 2)
    try:
        return main(arguments)
    except KeyboardInterrupt as error:
        return _code_of(error)
    except QsweepError as error:
        return _fail(str(error), 2 if isinstance(error, invalid) else otherwise)
    except OSError as error:
        if error.filename is None:
            return _unexpected(error, otherwise)
        return _fail(f"{error.filename}: {error.strerror or type(error).__name__}", otherwise)
    except RecursionError as error:
        return _fail(f"nested too deeply ({error})", otherwise)
    except Exception as error:
        return _unexpected(error, otherwise)


def _leave(code: int) -> None:
    """End the process now: threads in the middle of something would hold up an orderly exit."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kill_all_and_exit(code)


def _code_of(error: KeyboardInterrupt) -> int:
    return error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT


def _unexpected(error: Exception, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    words = f"{type(error).__name__}: {error}"
    return _fail(f"{words}{where}; {TRACEBACK}=1 shows how it came to that", code)


def _fail(line: str, code: int) -> int:
    # It may quote part of an option's value, in which no pattern tells the password.
    print("error: " + " ".join(scrubbed(line, *sys.argv[1:]).split()), file=sys.stderr)
    return code


class _Lasting(io.FileIO):
    """A stream that is written for as long as it can be; what nobody reads ends nothing."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:  # a closed pipe, a terminal that is gone, a full disk
            return len(data)


def _open_streams() -> None:
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened would be taken for the stream.
            with contextlib.suppress(OSError):
                os.open(os.devnull, mode)
    codecs.register_error("qsweep", _plain_text)
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old is None or (old is getattr(sys, f"__{name}__") and _descriptor(old) == number):
            setattr(sys, name, _lasting(number, old))


def _lasting(number: int, old: Any) -> io.TextIOWrapper:
    lines = number == 2 or (old is not None and old.line_buffering)
    return RedactingStream(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)),
        encoding=old.encoding if old is not None else "utf-8",
        errors="qsweep",
        line_buffering=lines,
        write_through=old is not None and old.write_through,
    )


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _plain_text(error: UnicodeError) -> tuple[str | bytes, int]:
    """For characters that an encoding lacks; a file name that is no text passes as it is."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    if all("\udc80" <= c <= "\udcff" for c in text):
        return bytes(ord(c) - 0xDC00 for c in text), error.end
    return "".join(c if ord(c) < 128 else "?" for c in text.translate(_PLAIN)), error.end
