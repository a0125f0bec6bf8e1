"""A model to look at, and whether its weights are what its checkpoint says."""

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import IncompatibleTrial, in_one_line
from qsweep.formats.encoder import require_finite
from qsweep.formats.hf import usual_dtype
from qsweep.formats.weights import slices_of
from qsweep.models.architecture import empty_model, load_model
from qsweep.models.experts import attach_experts
from qsweep.models.facts import is_of_text, read_tensors
from qsweep.models.layer_list import CannotStream
from qsweep.models.room import streams
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.models.spelling import Spelling
from qsweep.models.streaming import attach_experts_of, load_streamed
from qsweep.quantizers.native.graph import (
    find_decoder,
    know_linears,
    linears_of,
    raw_weight,
)
from qsweep.quantizers.native.names import layer_of


def load_network(
    model: SourceModel,
    place: str | None = None,
    dtype: Any = None,
    *,
    beside: int | None = None,
) -> Any:
    """The model to look at, without gradients, with experts attached as linear layers.

    Args:
        model: The checkpoint.
        place: The device. By default a whole model is on the host, and layers that are read one at a
            time come to the model's device, where all else lies, too.
        dtype: That of its weights; by default CPUs compute in float32, a GPU in the checkpoint's own.
        beside: Of who walks layer by layer the bytes of the host's memory that this takes beside all
            of the model. Where these are not there, or ``model.stream`` wants it, layers are read one
            at a time (:mod:`qsweep.models.streaming`).

    Raises:
        CannotStream: Its layers cannot be held one at a time, and ``model.stream`` insists on it.
        IncompatibleTrial: transformers cannot build it.
    """
    from transformers import AutoConfig

    if dtype is None:
        dtype = torch.float32 if model.device == "cpu" else "auto"
    try:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        if beside is not None and streams(model.stream, _bytes(model, config, dtype) + beside):
            try:
                return _streamed(model, config, dtype, place or model.device)
            except CannotStream:
                if model.stream is True:
                    raise
            # What was loaded is a cycle of references.
            gc.collect()
        network = load_model(
            model.path,
            config,
            dtype=dtype,
            use_safetensors=True,
            device_map=None if place in (None, "cpu") else {"": place},
            trust_remote_code=model.trust_remote_code,
        )
    except (KeyError, ValueError, ImportError) as error:
        why = in_one_line(error)
        raise IncompatibleTrial(f"{model.path}: transformers cannot build it ({why})") from error
    network.eval().requires_grad_(False)
    attach_experts(network)
    return network


def _bytes(model: SourceModel, config: Any, dtype: Any) -> int:
    """What a model's weights take in a dtype; ``auto`` is its configuration's, or the checkpoint's."""
    if dtype == "auto":
        own = getattr(config, "dtype", None)
        dtype = own or usual_dtype(read_tensors(model.path).values())
    return int(dtype.itemsize) * model.facts.parameters


def _streamed(model: SourceModel, config: Any, dtype: Any, place: str) -> Any:
    shell = empty_model(config, trust_remote_code=model.trust_remote_code)
    shapes = {name: info.shape for name, info in read_tensors(model.path).items()}
    network, _ = load_streamed(
        shell,
        slices_of(model.path),
        shapes,
        place,
        dtype=dtype,
        output_loading_info=True,
    )
    network.eval().requires_grad_(False)
    attach_experts_of(network)
    know_linears(network)
    if [*find_decoder(network).layers] != network.layer_stream.layers:
        raise CannotStream(
            f"model.stream=true: most linear layers of {type(network).__name__} are not in its "
            "decoder layers; leave model.stream out"
        )
    return network


def not_run_as_linear(
    model: SourceModel, spelling: Spelling, found: Iterable[str]
) -> dict[str, str]:
    """Linear layers of a checkpoint that are something else in memory, and why they stay in 16 bits.

    Args:
        model: The checkpoint.
        spelling: What it calls what is in memory.
        found: The linear layers in memory.

    Raises:
        IncompatibleTrial: Experts are among them.
    """
    here = {spelling.stored_in(name) for name in found} | set(spelling.experts.values())
    layers = {layer_of(name) for name in here}
    # Of layers that predict further tokens transformers loads none.
    others = [
        name
        for name in model.facts.linears
        if name not in here and layer_of(name) in layers and is_of_text(name)
    ]
    for name in others:
        if "experts" in name.split("."):
            way_out = "; quant=rtn rounds it all the same" if rounds_tensors(model.facts) else ""
            raise IncompatibleTrial(
                f"{name}: transformers stacks it with others in a way that qsweep does not follow"
                f"{way_out}"
            )
    return dict.fromkeys(others, "no plain linear layer in transformers")


def rounds_tensors(facts: ModelFacts) -> bool:
    """Whether each linear layer is a tensor of the checkpoint: who rounds them needs no model."""
    tensors = read_tensors(facts.path)
    return all(f"{name}.weight" in tensors for name in facts.all_linears)


def require_finite_layer(
    module: nn.Module, full_name: Callable[[str], str], spelling: Spelling
) -> None:
    """Refuse a decoder layer with a weight that is not finite: the first to blame for what follows.

    Raises:
        TrialFailed: names it as the checkpoint does; of a stack the expert's layer.
    """
    for name, linear in linears_of(module).items():
        require_finite(spelling.stored_in(full_name(name)), raw_weight(linear))
    for name, parameter in module.named_parameters():
        require_finite(spelling.tensor(full_name(name)).removesuffix(".weight"), parameter)
