"""An importance matrix: how strongly each input channel of each linear layer is driven by a text.

llama.cpp weighs the rounding error of a weight by the mean squared activation that it is multiplied
with; its own tool collects the same (https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsweep.quantizers import CalibrationTokens, Progress, SourceModel, silent

if TYPE_CHECKING:
    import torch

# Tokens in one forward pass.
_BATCH_TOKENS = 4096


def importance_matrix(
    model: SourceModel, calibration: CalibrationTokens, progress: Progress = silent
) -> "dict[str, torch.Tensor]":
    """The mean squared input of each linear layer of the decoder, float32 [in_features], by name.

    The model is run over the calibration samples on its device, without its output head.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if model.device == "cpu" else "auto"
    network = AutoModelForCausalLM.from_pretrained(
        model.path,
        dtype=dtype,
        device_map={"": model.device},
        trust_remote_code=model.trust_remote_code,
    ).eval()
    modules = match_modules(dict(network.named_modules()), list(model.facts.linears))
    collected = {name: _SquaredInput() for name in modules}
    handles = [modules[n].register_forward_hook(collected[n]) for n in modules]
    try:
        batches = _batches(calibration.samples)
        for done, batch in enumerate(batches):
            progress("importance matrix", done / len(batches))
            with torch.inference_mode():
                network.base_model(torch.tensor(batch, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: c.mean() for name, c in collected.items() if c.tokens}


def match_modules(modules: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The module that each of ``names``, as the checkpoint spells them, stands for.

    In memory a prefix may differ (``model.language_model.`` for ``language_model.model.``), so what
    follows the word before the layer's number decides where the whole name does not.
    """
    by_tail: dict[str, list[Any]] = {}
    for name, module in modules.items():
        if getattr(module, "weight", None) is not None:
            by_tail.setdefault(_tail(name), []).append(module)
    found = {}
    for name in names:
        if name in modules:
            found[name] = modules[name]
        elif len(same := by_tail.get(_tail(name), [])) == 1:
            found[name] = same[0]
    return found


def _tail(name: str) -> str:
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[max(number - 1, 0) :])


def _batches(samples: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Samples of equal length together, so that none is padded."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for sample in samples:
        by_length.setdefault(len(sample), []).append(sample)
    batches = []
    for length, alike in by_length.items():
        size = max(1, _BATCH_TOKENS // max(length, 1))
        batches += [alike[i : i + size] for i in range(0, len(alike), size)]
    return batches


class _SquaredInput:
    """A forward hook that sums squares of a module's input, per channel."""

    def __init__(self) -> None:
        self.tokens = 0
        self.total: torch.Tensor | None = None

    def __call__(self, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        import torch

        rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        # float64: a sum over 100k tokens of squares that span six orders of magnitude.
        squares = rows.float().square().sum(0, dtype=torch.float64)
        self.total = squares if self.total is None else self.total + squares
        self.tokens += len(rows)

    def mean(self) -> "torch.Tensor":
        import torch

        assert self.total is not None
        return (self.total / self.tokens).to("cpu", torch.float32)
