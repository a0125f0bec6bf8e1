"""Token ids that a quantizer may look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CalibrationTokens:
    """Token ids that a quantizer may look at: one list of ids per sample, of equal length.

    ``importance`` is what is known already of the model's run over them, if somebody needs it: the
    mean squared input of linear layers, float32 [in_features], by their names in the checkpoint.
    ``distinct`` is how many tokens of the text lie in some sample; None where nobody counted.
    ``all_experts`` sends every token to every expert of a mixture where statistics are gathered; what
    the model computes stays as it is.
    """

    samples: Sequence[Sequence[int]]
    importance: "Mapping[str, torch.Tensor] | None" = None
    distinct: int | None = None
    all_experts: bool = False
