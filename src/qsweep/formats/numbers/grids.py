"""The values that codes stand for, in units of their group's scale: weight = scale * level.

Integers, floating-point numbers of few bits, and tables of values. A *level* is such a value, as
float32; a *code* is what is stored for it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch


class Grid(ABC):
    """Levels and their codes.

    Attributes:
        largest: The level that the extreme of a group is put on.
    """

    largest: float

    @abstractmethod
    def nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The nearest levels.

        Args:
            steps: Weights in units of their scale, floating point of any shape; may be overwritten.
            zero: Zero points that broadcast against it; of grids without, nobody looks at them.
        """

    @abstractmethod
    def codes(self, levels: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The codes, uint8, of levels; ``levels`` may be overwritten."""

    @property
    def table(self) -> torch.Tensor | None:
        """The level of each code, float32 [codes]; None where it is the code minus its zero point."""
        return None

    def zero(self, low: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The zero point of groups whose lowest weight is ``low``; 0 where there is none."""
        return torch.zeros_like(scale)


@dataclass(frozen=True)
class Integers(Grid):
    """Whole numbers: code - zero point.

    Attributes:
        bits: 2 to 8.
        sym: Whether the zero point is fixed at 2^(bits-1), so that levels lie about 0.
        narrow: Whether the lowest of them is left out, so that there are as many below 0 as above.
    """

    bits: int
    sym: bool
    narrow: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return int(self.narrow)

    @property
    def largest(self) -> float:  # type: ignore[override]
        """Half of what the codes span."""
        return (self.top - self.lowest) / 2

    def nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.nearest`."""
        return steps.round_().add_(zero).clamp_(self.lowest, self.top).sub_(zero)

    def codes(self, levels: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.codes`."""
        return levels.add_(zero).to(torch.uint8)

    def zero(self, low: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.zero`."""
        if self.sym:
            return torch.full_like(scale, 2 ** (self.bits - 1))
        return (-low / scale).round_().clamp_(0, self.top)


class _E2M1(Grid):
    """Floating point of a sign, two bits of exponent, one of mantissa: 0 0.5 1 1.5 2 3 4 6.

    Codes are those of the OCP Microscaling specification 1.0, section 5.3.3; ties go to the even one.
    """

    largest = 6.0
    _VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

    def nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.nearest`."""
        steps.clamp_(-6.0, 6.0)
        size = steps.abs()
        # The distance between neighbours doubles at 2 and at 4; a value that rounding lifts onto
        # such a bound is a level on both sides of it.
        unit = (size >= 2.0).to(steps.dtype).add_(size >= 4.0, alpha=2).add_(1.0).mul_(0.5)
        return steps.div_(unit).round_().mul_(unit)

    def codes(self, levels: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.codes`."""
        sizes = _values(self._VALUES, levels.device, torch.float32)
        codes = torch.bucketize(levels.abs(), sizes, out_int32=True).to(torch.uint8)
        return codes.add_((levels < 0).to(torch.uint8), alpha=8)

    @property
    def table(self) -> torch.Tensor:
        """See :meth:`Grid.table`."""
        sizes = torch.tensor(self._VALUES)
        return torch.cat([sizes, -sizes])


class _E4M3(Grid):
    """torch.float8_e4m3fn; a code is its byte."""

    largest = 448.0

    def nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.nearest`."""
        return steps.clamp_(-448.0, 448.0).to(torch.float8_e4m3fn).to(steps.dtype)

    def codes(self, levels: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.codes`."""
        return levels.to(torch.float8_e4m3fn).view(torch.uint8)

    @property
    def table(self) -> torch.Tensor:
        """See :meth:`Grid.table`; two codes are NaN, which nothing is rounded to."""
        return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)


E2M1, E4M3 = _E2M1(), _E4M3()


@dataclass(frozen=True)
class Codebook(Grid):
    """Any values, at most 256.

    Attributes:
        values: By code, in any order; the largest magnitude is 1.
    """

    values: tuple[float, ...]

    largest = 1.0

    def nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.nearest`; what lies in the middle goes down."""
        values, middles = _sorted_values(self.values, steps.device, steps.dtype)
        return values[torch.bucketize(steps, middles)]

    def codes(self, levels: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.codes`; of equal values the first is taken."""
        table = _values(self.values, levels.device, torch.float32)
        order = table.argsort(stable=True)
        return order[torch.searchsorted(table[order], levels.contiguous())].to(torch.uint8)

    @property
    def table(self) -> torch.Tensor:
        """See :meth:`Grid.table`."""
        return torch.tensor(self.values)


# Asked for at every column: what was copied to a device stays there.
@lru_cache(maxsize=64)
def _values(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _sorted_values(
    values: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    # In order, and what lies in the middle of neighbours.
    found = torch.tensor(sorted(set(values)), device=device, dtype=dtype)
    return found, (found[1:] + found[:-1]) / 2
