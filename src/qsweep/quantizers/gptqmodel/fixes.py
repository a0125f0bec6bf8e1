"""What GPTQModel 7.6 gets wrong for some architectures, put right on one loaded model.

Each fix is for something measured: without it the result is a worse model, or none at all.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from qsweep.quantizers.gptqmodel.awq_scaling import ScalingGuard

if TYPE_CHECKING:
    import torch


@contextmanager
def corrected_definition(model_type: str) -> Iterator[None]:
    """Load a model for AWQ within this context.

    GPTQModel's description of Phi-3 leaves the norms out, and without them nothing can be scaled.
    """
    from gptqmodel.models.auto import MODEL_MAP

    definition = MODEL_MAP.get(model_type)
    tree: Any = getattr(definition, "module_tree", None)
    modules = tree[-1] if isinstance(tree, list) and isinstance(tree[-1], dict) else {}
    if definition is None or list(modules) != ["self_attn", "mlp"]:
        yield
        return
    norms = ("input_layernorm", "post_attention_layernorm")
    ordered: dict[str, Any] = {}
    for norm, block in zip(norms, modules, strict=True):
        ordered |= {norm: (f"{norm}:!",), block: modules[block]}
    definition.module_tree = [*tree[:-1], ordered]
    try:
        yield
    finally:
        definition.module_tree = tree


@contextmanager
def corrected(model: Any, *, awq: bool) -> Iterator[set[str]]:
    """Quantize ``model``, as GPTQModel loaded it, within this context.

    Gives the set in which the names of modules appear that AWQ could not scale.
    """
    types = _replay_by_layer_type(model)
    unscaled: set[str] = set()
    with ExitStack() as stack:
        stack.enter_context(_no_disk_test())
        if awq:
            guard = ScalingGuard(model)
            unscaled = guard.unscaled
            stack.callback(guard.close)
            stack.enter_context(_one_plus_weight_norms())
        if awq and types is not None:
            stack.enter_context(_search_by_layer_type(types))
            model.awq_preserve_explicit_position_embeddings = True
        yield unscaled


@contextmanager
def _no_disk_test() -> Iterator[None]:
    # GPTQModel measures the disk by writing 100 MB each time, and only to print a warning.
    from gptqmodel.looper import module_looper

    original = module_looper.io_write_performance
    module_looper.io_write_performance = lambda: None
    try:
        yield
    finally:
        module_looper.io_write_performance = original


def _replay_by_layer_type(model: Any) -> "_LayerTypes | None":
    # Models that alternate attention types (Gemma 3) give each layer its type's rotary embedding
    # and mask. GPTQModel replays every layer with those of the first one.
    if not hasattr(model.model, "get_decoder"):
        return None
    backbone = model.model.get_decoder()
    rotary = getattr(backbone, "rotary_emb", None)
    if rotary is None or "layer_type" not in inspect.signature(type(rotary).forward).parameters:
        return None
    prepare = model.prepare_layer_replay_kwargs
    types = _LayerTypes(backbone.config, type(rotary))
    # For some (Gemma 4) it has a replay of its own, and only AWQ's search has not.
    if _has_own_replay(type(model)):
        return types

    def prepare_layer(
        layer: Any, layer_input: Any, additional_inputs: Any, target_device: Any
    ) -> Any:
        kwargs = prepare(layer, layer_input, additional_inputs, target_device)
        kind = getattr(getattr(layer, "self_attn", None), "layer_type", None)
        if kind is not None and layer_input:
            kwargs |= types.arguments(layer_input[0], kind)
        return kwargs

    model.prepare_layer_replay_kwargs = prepare_layer
    return types


def _has_own_replay(definition: type) -> bool:
    from gptqmodel.models.base import BaseQModel

    own = definition.prepare_layer_replay_kwargs  # type: ignore[attr-defined]
    return own is not BaseQModel.prepare_layer_replay_kwargs


@contextmanager
def _search_by_layer_type(types: "_LayerTypes") -> Iterator[None]:
    # The same for the forward passes of AWQ's scale search.
    from gptqmodel.looper.awq_processor import AWQProcessor

    original = AWQProcessor._iter_module_forward_outputs

    def outputs(self: Any, x: Any, module: Any, module_kwargs: Any) -> Any:
        kind = getattr(module, "layer_type", None)
        if kind is not None:
            hidden = x if x.dim() > 2 else x[None]
            module_kwargs = {**module_kwargs, **types.arguments(hidden[:1], kind)}
        return original(self, x, module, module_kwargs)

    AWQProcessor._iter_module_forward_outputs = outputs
    try:
        yield
    finally:
        AWQProcessor._iter_module_forward_outputs = original


class _LayerTypes:
    """Rotary embeddings and masks of each attention type, for samples without padding."""

    def __init__(self, config: Any, rotary: type):
        self._config, self._class = config, rotary
        self._rotary: dict[torch.device, Any] = {}

    def arguments(self, hidden: "torch.Tensor", kind: str) -> dict[str, Any]:
        """What a layer or attention block of that type takes beside the hidden states."""
        rotary, mask = self.rotary(hidden, kind), self.mask(hidden, kind)
        return {"position_embeddings": rotary, "attention_mask": mask}

    def rotary(self, hidden: "torch.Tensor", kind: str) -> Any:
        """(cos, sin) for hidden states [batch, length, size]."""
        import torch

        if hidden.device not in self._rotary:
            # A new one, since the model's own may not have its buffers yet.
            self._rotary[hidden.device] = self._class(self._config).to(hidden.device)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return self._rotary[hidden.device](hidden, positions.expand(hidden.shape[0], -1), kind)

    def mask(self, hidden: "torch.Tensor", kind: str) -> Any:
        """The attention mask of that type, None where plain causal attention will do."""
        from transformers import masking_utils

        sliding = kind == "sliding_attention"
        make = getattr(
            masking_utils, "create_sliding_window_causal_mask" if sliding else "create_causal_mask"
        )
        return make(
            config=self._config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
        )


@contextmanager
def _one_plus_weight_norms() -> Iterator[None]:
    # Norms that multiply by 1 + weight: GPTQModel's list, for isinstance(), ends at Gemma 2.
    from gptqmodel.quantization.awq.quantize import scale
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    original = scale.Gemma2RMSNorm
    scale.Gemma2RMSNorm = (original, Gemma3RMSNorm)
    try:
        yield
    finally:
        scale.Gemma2RMSNorm = original
