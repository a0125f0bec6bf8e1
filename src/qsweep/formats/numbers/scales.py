"""Scales as they are stored: rounded to float16 or bfloat16, to e4m3 under a global scale, to 2^n."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

# Shares of a group's extreme that a search puts on the grid's largest level, the whole first, so
# that ties keep it; and those that AWQ's clipping tries.
_SHRINK = tuple(1 - step / 40 for step in range(25))
_CLIP = tuple(1 - step / 20 for step in range(11))
# Smallest and largest number of what scales are stored as, of float16 with subnormal ones.
_LIMITS = {
    torch.float16: (2.0**-24, 65504.0),
    torch.bfloat16: (2.0**-126, torch.finfo(torch.bfloat16).max),
    torch.float32: (2.0**-126, torch.finfo(torch.float32).max),
}


class ScaleType(ABC):
    """What a scale may be.

    Attributes:
        shares: Of a group's extreme, what a search tries.
        clips: What AWQ's clipping tries.
    """

    shares: tuple[float, ...] = _SHRINK
    clips: tuple[float, ...] = _CLIP

    @abstractmethod
    def of(self, extreme: torch.Tensor, largest: float, whole: torch.Tensor | None) -> torch.Tensor:
        """Scales that put groups' extremes on a grid's largest level, as they will be stored.

        Args:
            extreme: Largest magnitudes, or half of what groups span, float32 [rows, groups].
            largest: The level.
            whole: Global scales of the rows [rows, 1]; None where there are none.

        Returns:
            What weights are divided by, float32 [rows, groups].
        """

    def whole(self, extreme: torch.Tensor, largest: float) -> torch.Tensor | None:
        """The global scale of a tensor whose largest magnitude is ``extreme`` []; None: it has none."""
        return None


@dataclass(frozen=True)
class FloatScale(ScaleType):
    """A floating-point number: ``dtype`` is float16, bfloat16 or float32."""

    dtype: torch.dtype = torch.float16

    def of(self, extreme: torch.Tensor, largest: float, whole: torch.Tensor | None) -> torch.Tensor:
        """See :meth:`ScaleType.of`."""
        least, most = _LIMITS[self.dtype]
        return (extreme / largest).clamp_(least, most).to(self.dtype).to(torch.float32)


class _E4M3Scale(ScaleType):
    """float8_e4m3 under a global scale of the tensor: weight = level * stored / global.

    The global scale, 448 * 6 / the tensor's largest magnitude, puts the scale of its largest group
    on the largest that can be stored (NVFP4, as compressed-tensors' ``generate_gparam`` has it).
    """

    # Largest levels of e2m1 are far apart: a group may do better with its extreme on 4 than on 6
    # (Cook et al. 2025, arXiv:2512.02010), or between.
    shares = (1.0, 1.5, 1.375, 1.25, 1.125, *(1 - step / 16 for step in range(1, 9)))
    clips = shares

    def of(self, extreme: torch.Tensor, largest: float, whole: torch.Tensor | None) -> torch.Tensor:
        """See :meth:`ScaleType.of`."""
        assert whole is not None
        stored = (extreme / largest).mul_(whole).clamp_(max=448.0)
        stored = stored.to(torch.float8_e4m3fn).to(torch.float32)
        # What would vanish gets compressed-tensors' smallest.
        return torch.where(stored == 0, 0.125, stored).div_(whole)

    def whole(self, extreme: torch.Tensor, largest: float) -> torch.Tensor:
        """See :meth:`ScaleType.whole`."""
        found = 448.0 * largest / extreme.clamp(min=torch.finfo(torch.float32).tiny)
        return found.nan_to_num(nan=1.0, posinf=1.0)


class _E8M0Scale(ScaleType):
    """A power of two, of which the exponent is stored in a byte (OCP Microscaling 1.0, section 5.4).

    Its exponent is the extreme's less that of the largest level; an extreme whose mantissa is 1.75
    or more counts as the next power, for it would be rounded there (as compressed-tensors'
    ``generate_mx_scales`` does).
    """

    shares = (1.0, 2.0, 0.5)
    clips = shares

    def of(self, extreme: torch.Tensor, largest: float, whole: torch.Tensor | None) -> torch.Tensor:
        """See :meth:`ScaleType.of`."""
        mantissa, exponent = extreme.to(torch.float32).frexp()  # mantissa in [0.5, 1)
        offset = int(torch.tensor(largest).frexp().exponent) - 1
        exponent = exponent - 1 + (mantissa >= 0.875).to(torch.int32) - offset
        exponent = torch.where(extreme == 0, -127, exponent).clamp_(-127, 127)
        return torch.ldexp(torch.ones_like(mantissa), exponent)


E4M3_SCALE, E8M0_SCALE = _E4M3Scale(), _E8M0Scale()
