"""Everything that qsweep raises on purpose. Each message is one line: what is wrong, where, what to do."""

from typing import Any

from qsweep.base.secrets import hidden


class QsweepError(Exception):
    """Base of all of qsweep's errors; its text is meant for the user, without a traceback.

    Whatever it quotes, it shows no password: it ends on terminals, in logs and in records.
    """

    def __str__(self) -> str:
        return hidden(super().__str__())


class ConfigError(QsweepError):
    """The configuration is invalid: nothing runs, exit code 2."""


class IncompatibleTrial(QsweepError):
    """A combination that cannot exist, such as GGUF at 7 bits: recorded as *skipped*."""


class AnotherModel(IncompatibleTrial):
    """An artifact is not one of the model that it is to be compared with; the text says why."""


class UnknownLayout(IncompatibleTrial):
    """A converted file that cannot be led back to the checkpoint: only its runtime can run it.

    ``known`` is what could be explained of it, a :class:`~qsweep.formats.gguf.rules.Layout`.
    """

    def __init__(self, text: str, known: Any = None):
        super().__init__(text)
        self.known = known


class BackendUnavailable(IncompatibleTrial):
    """A library that a trial needs is not installed; the text names the command that installs it."""


class ArtifactCorrupt(QsweepError):
    """Files of an artifact are missing, truncated or edited: it is rebuilt."""


class TrialFailed(QsweepError):
    """A trial died: an exception, out of memory, a signal or a time-out; the text says which."""


def in_one_line(error: BaseException | str, longest: int = 300) -> str:
    r"""What a text of several lines has to say; an exception's kind where it has no text.

    That is its first line, and those after it that the first only announces.

    >>> in_one_line("Validation error for field 'hidden_size':\n    expected int, got str")
    "Validation error for field 'hidden_size': expected int, got str"
    >>> in_one_line("CUDA error: device-side assert triggered\nFor debugging consider this")
    'CUDA error: device-side assert triggered'
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    taken = lines[:1]
    for line in lines[1:]:
        belongs = line[0].isspace() or line.startswith(("- ", "* ", "• "))
        if not belongs and not taken[-1].rstrip().endswith((":", ",", "(", "[", "{")):
            break
        taken.append(line)
    text = " ".join(" ".join(taken).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
