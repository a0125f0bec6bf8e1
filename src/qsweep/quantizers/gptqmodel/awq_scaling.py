"""Which of AWQ's scales leave a model what it was: tried out on every layer before it is scaled.

AWQ multiplies the inputs of some linear layers and divides the outputs of the module before them.
GPTQModel takes that module from a list per architecture, and for some the list is wrong: the norm
behind the attention instead of the one before the MLP (Gemma 2 and 3), a linear layer beyond a GELU
(GPT-NeoX, Phi), a norm that feeds other layers too (Phi). The model is then broken before anything
is rounded. Here a random scale goes through first, and what changes the layer's output is not used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Largest change of a layer's contribution, relative, that counts as rounding. What is wrong changes
# it by a tenth and more.
_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.05}


class ScalingGuard:
    """Filters GPTQModel's scaling groups of one model; ``unscaled`` collects what is left out."""

    def __init__(self, model: Any):
        self.unscaled: set[str] = set()
        self._groups: Callable[..., list[dict[str, Any]]] = model.awq_get_modules_for_scaling
        self._calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._handles = [
            layer.register_forward_pre_hook(self._remember, with_kwargs=True)
            for layer in _decoder_layers(model.model)
        ]
        model.awq_get_modules_for_scaling = self.groups

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def groups(self, layer: Any, input_feat: Any, module_kwargs: Any) -> list[dict[str, Any]]:
        """GPTQModel's groups for a layer, without those that would change its function.

        Raises:
            NotImplementedError: None is left, so this is no architecture for AWQ.
        """
        import torch

        nodes = self._groups(layer, input_feat, module_kwargs)
        call = self._calls.pop(id(layer), None)
        if call is None:
            return nodes
        kept = []
        with torch.inference_mode():
            for node in nodes:
                for module in (node["prev_op"], *_norms(layer)):
                    if preserves(layer, module, node["layers"], call):
                        kept.append({**node, "prev_op": module})
                        break
                else:
                    names = {id(module): name for name, module in layer.named_modules()}
                    self.unscaled |= {names[id(linear)] for linear in node["layers"]}
        if not kept:
            raise NotImplementedError(
                "awq: no scale passes through this model's layers unchanged; use gptq or gguf"
            )
        return kept

    def _remember(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # One sample is enough, and the first one of each layer comes with all that it needs.
        if id(layer) not in self._calls:
            self._calls[id(layer)] = (args, dict(kwargs))


def preserves(
    layer: Any, before: Any, after: list[Any], call: tuple[tuple[Any, ...], dict[str, Any]]
) -> bool:
    """Whether dividing ``before``'s outputs and multiplying ``after``'s inputs cancels out.

    Args:
        layer: A decoder layer.
        before: A norm or linear layer in it.
        after: Linear layers in it that take the same inputs.
        call: Positional and keyword arguments to call the layer with.
    """
    import torch
    from gptqmodel.quantization.awq.quantize.scale import apply_scale
    from gptqmodel.quantization.awq.utils.module import get_op_name

    weight = after[0].weight
    generator = torch.Generator().manual_seed(0)
    scales = torch.exp2(torch.rand(weight.shape[1], generator=generator) * 2 - 1).to(weight)
    touched = [p for module in (before, *after) for p in module.parameters(recurse=False)]
    if not touched or before.weight.shape[0] < scales.shape[0]:
        return False
    originals = [p.detach().clone() for p in touched]
    names = tuple(get_op_name(layer, module) for module in after)
    expected = _output(layer, call)
    try:
        apply_scale(layer, [(get_op_name(layer, before), names, scales, 0.0)])
        found = _output(layer, call)
    except (NotImplementedError, RuntimeError, AssertionError):
        return False
    finally:
        for parameter, original in zip(touched, originals, strict=True):
            parameter.data.copy_(original)
    # What the layer adds to its input is what counts; the input itself only hides changes.
    base = call[0][0] if call[0] else call[1].get("hidden_states", 0)
    added = (expected - base).float().norm()
    tolerance = _TOLERANCE.get(str(expected.dtype).removeprefix("torch."), 1e-3)
    return bool((found - expected).float().norm() <= tolerance * added)


def _output(layer: Any, call: tuple[tuple[Any, ...], dict[str, Any]]) -> "torch.Tensor":
    output = layer(*call[0], **call[1])
    return output[0] if isinstance(output, tuple) else output


def _norms(layer: Any) -> list[Any]:
    # Norms of whole hidden states; those of single heads feed no linear layer.
    from torch import nn

    return [
        module
        for module in layer.children()
        if not isinstance(module, nn.Linear)
        and getattr(getattr(module, "weight", None), "ndim", 0) == 1
    ]


def _decoder_layers(model: Any) -> list[Any]:
    # The longest list of modules that a language model has are its layers.
    from torch import nn

    backbone = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
