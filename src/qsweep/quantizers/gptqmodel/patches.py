"""What of GPTQModel 7.6's AWQ has to be changed for it to run here, and of what it leaves changed.

Each stays for as long as tests/quantizers/test_gptqmodel_patches.py shows that it is needed; that
file fails where a newer GPTQModel does without one. Architectures that its AWQ gets wrong are
refused (``UNSCALABLE`` beside) rather than put right: a second opinion is the library's own.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

# Rows whose bounds are searched for together.
_ROWS = 256
_EXPECTED = {
    "_compute_best_scale": "self x w_mean x_mean module2inspect linears2scale fp16_output kwargs",
    "_compute_best_clip": "self w input_feat n_grid max_shrink n_sample_token",
    "_pseudo_quantize_tensor_into": "self src dst",
}


@contextmanager
def patched_awq() -> Iterator[None]:
    """Let AWQ run in float32 on a CPU, and in a fifth of its time; what it searches for stays its own.

    - What its scale search takes for a copy of the weights are the weights themselves, where they
      are float32 on a CPU: every candidate would be tried on the ruins of the one before. The code
      it comes from has the same mistake: https://github.com/mit-han-lab/llm-awq/issues/163.
    - Its portable kernel does not pack float32, as the fused ones do by now:
      https://github.com/ModelCloud/GPTQModel/pull/2531. Codes of 8 bits need it.
    - Its clip search multiplies activations and weights element by element, which takes four fifths
      of all the time; the same sums are matrix products.

    Raises:
        BackendUnavailable: The installed GPTQModel is built differently.
    """
    import torch
    from gptqmodel.looper.awq_processor import AWQProcessor
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    for name, expected in _EXPECTED.items():
        method = getattr(AWQProcessor, name, None)
        if method is None or " ".join(inspect.signature(method).parameters) != expected:
            raise BackendUnavailable(
                f"AWQ: the installed gptqmodel has another {name}; pip install 'gptqmodel==7.6.0'"
            )
    scale, clip = AWQProcessor._compute_best_scale, AWQProcessor._compute_best_clip
    dtypes = AwqTorchLinear.SUPPORTS_DTYPES

    def compute_best_scale(
        self: Any,
        x: Any,
        w_mean: Any,
        x_mean: Any,
        module: Any,
        linears: Sequence[Any],
        *others: Any,
    ) -> Any:
        with _copied_when_detached(linears):
            return scale(self, x, w_mean, x_mean, module, linears, *others)

    AWQProcessor._compute_best_scale = compute_best_scale
    AWQProcessor._compute_best_clip = _compute_best_clip
    AwqTorchLinear.SUPPORTS_DTYPES = [*dtypes, torch.float32]
    try:
        yield
    finally:
        AWQProcessor._compute_best_scale, AWQProcessor._compute_best_clip = scale, clip
        AwqTorchLinear.SUPPORTS_DTYPES = dtypes


@contextmanager
def _copied_when_detached(linears: Sequence[Any]) -> Iterator[None]:
    """Within this context, ``linear.weight.detach()`` is a copy."""
    import torch

    class Copied(torch.nn.Parameter):
        def detach(self) -> torch.Tensor:
            return super().detach().clone()

    weights = [linear.weight for linear in linears]
    for linear, weight in zip(linears, weights, strict=True):
        linear.weight = Copied(weight.data, requires_grad=False)
    try:
        yield
    finally:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = weight


def search_clip(
    weight: "torch.Tensor",
    inputs: "torch.Tensor",
    group_size: int,
    round_trip: Callable[["torch.Tensor"], None],
    factors: Sequence[float],
) -> "torch.Tensor":
    """The bound for each group's magnitudes that quantizes with the least output error.

    Args:
        weight: [out, in].
        inputs: Activations [tokens, in].
        group_size: Inputs per group; it divides ``in``.
        round_trip: Quantizes and dequantizes [rows, groups, group_size] in place.
        factors: Shares of the group's maximum to try, the first one first.

    Returns:
        [out, groups, 1] of the weight's dtype.
    """
    import torch

    rows, columns = weight.shape
    shape = (-1, columns // group_size, group_size)
    grouped = inputs.reshape(inputs.shape[0], *shape[1:]).transpose(0, 1).float()
    # |X d|^2 = d' (X'X) d: with fewer inputs in a group than tokens, the small square is cheaper.
    gram = grouped.transpose(1, 2) @ grouped if group_size < inputs.shape[0] else None
    bounds = []
    for part in weight.split(_ROWS):
        part = part.reshape(shape)
        largest = part.abs().amax(dim=-1, keepdim=True)
        best, least = largest.clone(), torch.full_like(largest, float("inf"), dtype=torch.float32)
        for factor in factors:
            bound = largest * factor
            rounded = torch.clamp(part, -bound, bound)
            round_trip(rounded)
            delta = (rounded - part).float().transpose(0, 1)
            if gram is not None:
                error = ((delta @ gram) * delta).sum(-1)
            else:
                error = (grouped @ delta.transpose(1, 2)).square().sum(1)
            error = error.T.unsqueeze(-1)
            better = error < least
            best, least = torch.where(better, bound, best), torch.where(better, error, least)
        bounds.append(best)
    return torch.cat(bounds)


def _compute_best_clip(
    self: Any,
    w: "torch.Tensor",
    input_feat: "torch.Tensor",
    n_grid: int = 20,
    max_shrink: float = 0.5,
    n_sample_token: int = 512,
) -> "torch.Tensor":
    # In the place of AWQProcessor's method of that name.
    import torch

    inputs = input_feat.reshape(-1, input_feat.shape[-1])
    inputs = inputs[:: max(1, inputs.shape[0] // n_sample_token)].to(w.device)
    group_size = self.qcfg.group_size if self.qcfg.group_size > 0 else w.shape[1]
    with torch.inference_mode():
        return search_clip(
            w,
            inputs,
            group_size,
            lambda values: self._pseudo_quantize_tensor_into(values, values),
            [1 - step / n_grid for step in range(int(max_shrink * n_grid))],
        )


@contextmanager
def transformers_as_it_was(model_type: str) -> Iterator[None]:
    """Undo at the end what GPTQModel 7.6 does to transformers for as long as a process lives.

    Its Defuser puts classes with experts one by one in place of those with stacks, and looks up other
    names for a checkpoint's tensors, so that who loads such a model later finds no stacks.

    Args:
        model_type: Of the model that GPTQModel loads.
    """
    from defuser.model_registry import MODEL_CONFIG, PATCH
    from transformers import conversion_mapping, modeling_utils

    places: list[tuple[Any, str]] = [
        (module, "get_checkpoint_conversion_mapping")
        for module in (conversion_mapping, modeling_utils)
    ]
    for path, _ in MODEL_CONFIG.get(model_type, {}).get(PATCH.REPLACE_MODULE, ()):
        module, _, name = path.rpartition(".")
        places.append((importlib.import_module(module), name))
    before = [(owner, name, getattr(owner, name)) for owner, name in places if hasattr(owner, name)]
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
