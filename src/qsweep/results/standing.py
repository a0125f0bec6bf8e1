"""Where a row may stand among those that it is comparable with. Pure."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Standing:
    """The ranks that a row may have among ``of`` rows; a range of several is a tie.

    Attributes:
        first: The best rank that is not ruled out, from 1.
        last: The worst.
        of: How many rows were compared.
        by: What is less in a better one, KL divergence or negative log-likelihood.
        silent: Whether it is so close to the reference that neither of the two ranks it.
    """

    first: int
    last: int
    of: int
    by: Literal["kld", "nll"]
    silent: bool = False

    @property
    def text(self) -> str:
        """``2``, or ``1-3`` for a tie; ``=`` behind it where the silent zone is why."""
        ranks = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ranks}=" if self.silent and self.first != self.last else ranks
