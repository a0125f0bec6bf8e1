"""What follows from the NLL of a pass's tokens alone, and what is noted of the pass."""

from typing import TYPE_CHECKING, Any

from qsweep.base.errors import TrialFailed
from qsweep.evaluate.engine import Engine
from qsweep.evaluate.measurement import PROTOCOL_VERSION, WindowScores
from qsweep.evaluate.metrics import Mean, perplexity, window_sums
from qsweep.models.nonfinite import nonfinite_origin

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from qsweep.text.windows import Windows


def nll_measurement(windows: "Windows", nll: "Tensor", facts: dict[str, Any]) -> WindowScores:
    """What follows from the NLL of each scored token, float32 [tokens], alone."""
    sums, counts = window_sums(nll, windows.counts), windows.counts
    arrays = {"window_nll": sums, "window_tokens": counts, "token_nll": nll}
    return WindowScores(with_error("ppl", perplexity(sums, counts)), arrays, facts)


def run_facts(engine: Engine, batch: int) -> dict[str, Any]:
    """What a measurement or a reference records of how its model was run."""
    return {
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device_type": engine.device.type,
        "protocol": PROTOCOL_VERSION,
        "batch": batch,
        "head": "whole model" if engine.body is None else "split",
    }


def require_finite(
    values: "Tensor",
    windows: "Windows",
    name: str = "nll",
    model: "PreTrainedModel | None" = None,
) -> None:
    """Refuse values that are not finite.

    Args:
        values: One per scored token, float [tokens].
        windows: Where the tokens are from.
        name: What the values are.
        model: Given, the line names the layer where they begin.

    Raises:
        TrialFailed: One is not; the line names the first window with one.
    """
    import torch

    bad = (~torch.isfinite(values)).nonzero()[:, 0]
    if len(bad):
        window = int(torch.searchsorted(windows.counts.cumsum(0), bad[0], right=True))
        number, of = windows.number_of(window), str(len(windows.ids))
        if windows.numbers is not None:
            of = f"the text, of which {of} were read"
        raise TrialFailed(
            f"the model's logits are not finite: {name} of {len(bad)} of {len(values)} tokens, "
            f"first in window {number} of {of} (counted from 0)"
            + (f"; {nonfinite_origin(model, windows.ids[window])}" if model is not None else "")
        )


def with_error(name: str, mean: Mean) -> dict[str, float]:
    """A mean and its standard error as metrics; a single window has none."""
    # Over a single window there is no error to tell, and then there is no such entry.
    return {name: mean.value} | ({} if mean.stderr is None else {f"{name}_stderr": mean.stderr})
