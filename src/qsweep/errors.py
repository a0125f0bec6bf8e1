"""Everything that qsweep raises on purpose. Each message is one line: what is wrong, where, what to do."""


class QsweepError(Exception):
    """Base of all of qsweep's errors; its text is meant for the user, without a traceback."""


class ConfigError(QsweepError):
    """The configuration is invalid: nothing runs, exit code 2."""


class IncompatibleTrial(QsweepError):
    """A combination that cannot exist, such as GGUF at 7 bits: recorded as *skipped*."""


class UnknownLayout(IncompatibleTrial):
    """A converted file that cannot be led back to the checkpoint: only its runtime can run it."""


class BackendUnavailable(IncompatibleTrial):
    """A library that a trial needs is not installed; the text names the command that installs it."""


class ArtifactCorrupt(QsweepError):
    """Files of an artifact are missing, truncated or edited: it is rebuilt."""


class TrialFailed(QsweepError):
    """A trial died: an exception, out of memory, a signal or a time-out; the text says which."""
