"""The noise floor: how far the reference is from itself, without which small values mean nothing."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import TrialFailed
from qsweep.evaluate.engine import Engine, open_engine
from qsweep.evaluate.measure import measure

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from qsweep.evaluate.reference import Reference
    from qsweep.text.windows import Windows

# First windows that the floor is measured on, or one batch if that is more.
_WINDOWS = 2


def noise_floor(
    model: "PreTrainedModel",
    windows: "Windows",
    reference: "Reference",
    wide: "Callable[[], PreTrainedModel] | None" = None,
) -> dict[str, float]:
    """Mean absolute divergence per token of the reference from itself, on the first windows.

    Args:
        model: The reference in the run's dtype.
        windows: All windows of the measurement.
        reference: Its cache on these windows.
        wide: Loads the reference in float32, for a model that cannot be widened where it is.

    Returns:
        ``kld``: its divergence from itself, run once more in the same way, which must be 0.
        ``kld_floor_batch``: at another batch size. ``kld_floor_dtype``: the run's dtype against
        float32; 0 by identity if it is float32, left out where memory does not suffice. The floors
        are means over tokens of the divergence's absolute value.
    """
    import torch

    usual = int(reference.facts["batch"])
    # Whole batches, or else their shapes would not be those that the cache was made in.
    first = range(min(len(windows.ids), max(_WINDOWS, usual)))
    sample, cached = windows.select(first), reference.select(windows, first)
    with torch.inference_mode():
        engine = open_engine(model, windows.ids)

    def against(model: "PreTrainedModel", batch: int, engine: Engine | None) -> float:
        found = measure(model, sample, cached, batch=batch, engine=engine)
        return float(found.arrays["token_kld"].double().abs().mean())

    floor = {
        "kld": against(model, usual, engine),
        "kld_floor_batch": against(model, 1 if usual > 1 else 2, engine),
    }
    if model.dtype == torch.float32:
        floor["kld_floor_dtype"] = 0.0
    else:
        with contextlib.suppress(TrialFailed, torch.OutOfMemoryError):
            floor["kld_floor_dtype"] = _against_float32(model, engine, against, wide)
    return floor


def _against_float32(
    model: "PreTrainedModel", engine: Engine, against: Callable[..., float], wide: Any
) -> float:
    import torch

    try:
        with widened(model, torch.float32):
            return against(model, 1, engine)
    except (RuntimeError, TypeError, ValueError) as error:
        # A module that reaches into another's weights finds them in the narrow dtype.
        if isinstance(error, torch.OutOfMemoryError) or wide is None:
            raise
        return against(wide(), 1, None)


@contextlib.contextmanager
def widened(model: "PreTrainedModel", dtype: "torch.dtype") -> Iterator[None]:
    """Let a model compute in a wider dtype, widening each module's weights only while it runs.

    So that a model in float32 takes no more memory than its own plus one layer's part. Results are
    those of the same weights in ``dtype``.
    """
    import torch

    narrow: dict[Any, dict[str, Any]] = {}
    hooks = []

    def widen(module: Any, *_: Any) -> None:
        if module not in narrow:
            narrow[module] = dict(module._parameters)
        for name, parameter in narrow[module].items():
            if parameter is not None and parameter.is_floating_point():
                wide = torch.nn.Parameter(parameter.to(dtype), requires_grad=False)
                module._parameters[name] = wide

    def restore(module: Any, *_: Any) -> None:
        module._parameters.update(narrow.pop(module, {}))

    def widen_output(module: Any, inputs: Any, output: "torch.Tensor") -> "torch.Tensor":
        return output.to(dtype)

    for module in model.modules():
        if type(module) is torch.nn.Embedding:
            # A large table; what is looked up in it is all that need be widened. (Not so for
            # Gemma's own kind, which scales.)
            hooks.append(module.register_forward_hook(widen_output))
        elif any(p is not None for p in module._parameters.values()):
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(narrow):
            restore(module)
