"""What doctor finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qsweep.base.secrets import hidden

Status = Literal["ok", "missing", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``fix`` is a command or a sentence, empty where all is well."""

    area: str
    name: str
    status: Status
    detail: str
    fix: str = ""

    def __post_init__(self) -> None:
        # Addresses of hubs and trackers may hold passwords.
        object.__setattr__(self, "detail", hidden(self.detail))
        object.__setattr__(self, "fix", hidden(self.fix))


@dataclass(frozen=True)
class Places:
    """Where to look: the outputs folder, a tracker and a shared store other than its own."""

    outputs: Path
    tracking: str | None = None
    remote: str | None = None


Check = Callable[[Places], Iterator[Finding]]
