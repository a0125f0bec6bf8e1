"""A GGUF file alone as a plain Hugging Face checkpoint: for who has no other weights of a model.

Which metadata is which field of a configuration, which tensor which parameter, and what llama.cpp's
converter did to it, is told by transformers' own tables (``modeling_gguf_pytorch_utils``); the weights
are dequantized by ggml, one at a time. transformers' reader takes half a minute over the header of a
vocabulary of 262k tokens, so it is given one without: the same names and numbers, and no data.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, BackendUnavailable, IncompatibleTrial, in_one_line
from qsweep.formats.gguf.as_config import complete
from qsweep.formats.gguf.as_tokenizer import write_tokenizer
from qsweep.formats.gguf.ggml import INSTALL, dequantize
from qsweep.formats.gguf.header import printable
from qsweep.formats.gguf.reader import GGUFFile
from qsweep.formats.gguf.variants import factor_of
from qsweep.formats.hf import ShardWriter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Arrays longer than this are a vocabulary's.
_LONG = 4096
# What is told by the configuration, or is no weight of the text model.
_NOT_LOADED = (".input_scale", "rope_freqs.weight")
_ROPE_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Made:
    """What became of a file.

    Attributes:
        notes: What the checkpoint does otherwise than the file as llama.cpp runs it, a line each:
            how text is split into tokens, for the most part.
        rounding: Of its matrices, the root mean square of what rounding to the checkpoint's dtype
            changed, as a share of their own.
    """

    notes: list[str]
    rounding: float


def checkpoint_from_gguf(file: GGUFFile, out: Path, dtype: str = "bfloat16") -> Made:
    """Write the model that a GGUF file holds as a checkpoint: config, safetensors, tokenizer.

    Args:
        file: The file; its weights are dequantized.
        out: The directory to write, of which nothing is there before all of it is; an empty one is
            replaced.
        dtype: What the weights are rounded to: ``bfloat16`` or ``float16``, or ``float32``, which
            keeps what the file holds to the last bit.

    Raises:
        ArtifactCorrupt: the file lacks a tensor, or has one of another shape.
        BackendUnavailable: the package ``gguf`` is not installed.
        OverflowError: a weight is beyond ``dtype``.
        IncompatibleTrial: transformers does not know the architecture as a GGUF file, or the file
            says something that no configuration does.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        config = read_config_of(file)
        config.dtype = dtype
        rounding = _write_weights(file, config, temporary, dtype)
        config.save_pretrained(temporary)
        notes = write_tokenizer(file, temporary)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Made(notes, rounding)


def read_config_of(file: GGUFFile) -> Any:
    """transformers' configuration of the model that a file holds. Raises like the above."""
    try:
        import gguf  # noqa: F401
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig
    except ImportError as error:
        raise BackendUnavailable(
            f"a GGUF file as a model needs the package gguf: {INSTALL}"
        ) from error

    # A file may state anything: what a configuration refuses is said, whoever refuses it.
    refused = (
        StrictDataclassError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
        NotImplementedError,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        _write_header(file, Path(folder) / "header.gguf")
        try:
            config: Any = AutoConfig.from_pretrained(folder, gguf_file="header.gguf")
            _name_class(config)
            complete(config, file)
        except refused as error:
            what = printable(file.architecture) or "no architecture"
            raise IncompatibleTrial(
                f"{file.path}: transformers makes no model of a GGUF file of {what} "
                f"({printable(in_one_line(error))}); give the checkpoint that it was made from"
            ) from error
    return config


def _write_header(file: GGUFFile, path: Path) -> None:
    """Write a file's metadata without its vocabulary, and its tensors as one number each."""
    import numpy
    from gguf import GGUFWriter

    writer = GGUFWriter(path, file.architecture or "unknown")
    for key, value in file.metadata.items():
        if key in ("general.architecture", "general.alignment") or key.startswith("split."):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_uint64 if value > 0x7FFFFFFF else writer.add_int32)(key, value)
        elif isinstance(value, float):
            writer.add_float64(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value and len(value) <= _LONG:
            writer.add_array(key, value)
    for name in file.tensors:
        writer.add_tensor(name, numpy.zeros(1, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name_class(config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    found = NAMES.get(config.model_type)
    if found is not None:
        config.architectures = [found[0] if isinstance(found, tuple) else found]


def _write_weights(file: GGUFFile, config: Any, out: Path, dtype: str) -> float:
    """Write all parameters; what rounding changed, as in :class:`Made`."""
    import torch

    from qsweep.models.architecture import empty_model

    model = empty_model(config)
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    tied = getattr(model, "_tied_weights_keys", None) or ()
    missing = set(wanted) - (set(tied) if config.tie_word_embeddings else set())
    writer, error, total = ShardWriter(out), 0.0, 0.0
    for name, tensor in _parameters(file, config, model):
        if name not in wanted or tuple(tensor.shape) != wanted[name]:
            raise ArtifactCorrupt(
                f"{file.path}: {name} has the shape {tuple(tensor.shape)}, and the model that the "
                f"file describes {wanted.get(name)}"
            )
        missing.discard(name)
        rounded = tensor.to(getattr(torch, dtype))
        if not bool(rounded.isfinite().all()) and bool(tensor.isfinite().all()):
            raise OverflowError(f"{file.path}: {name} has weights beyond {dtype}")
        if tensor.ndim > 1:
            error += float((rounded.float() - tensor).square().sum(dtype=torch.float64))
            total += float(tensor.square().sum(dtype=torch.float64))
        for part, weight in _as_saved(model, name, rounded):
            writer.add(part, weight.contiguous())
    if missing:
        raise ArtifactCorrupt(
            f"{file.path}: has nothing for {min(missing)}, which the model that it describes needs"
        )
    writer.close()
    return (error / total) ** 0.5 if total else 0.0


def _parameters(
    file: GGUFFile, config: Any, model: "PreTrainedModel"
) -> "Iterator[tuple[str, torch.Tensor]]":
    """The model's parameters, float32, as they are put together from the file's tensors."""
    import torch
    from transformers import modeling_gguf_pytorch_utils as tables

    made = tables.TENSOR_PROCESSORS.get(file.architecture, tables.TensorProcessor)
    processor = made(config=config.to_dict())
    places = _places(file, model, processor)
    collected: dict[str, Any] = {"tensors": {}}
    done = set()
    factors = {factor_of(file, name) for name in file.tensors}
    for name in file.tensors:
        if name.endswith(_NOT_LOADED) or name in _ROPE_FACTORS or name in factors:
            continue
        weights = _dense(file, name).numpy()
        with contextlib.suppress(KeyError):
            result = processor.process(
                weights=weights, name=name, tensor_key_mapping=places, parsed_parameters=collected
            )
            done.add(name)
        if name not in done or (result.name is not None and result.name not in places):
            raise IncompatibleTrial(
                f"{file.path}: transformers' loader of {printable(file.architecture)} files has no "
                f"place for the tensor {printable(name)}"
            )
        if result.name is not None:
            yield places[result.name], torch.from_numpy(result.weights)
        for target in list(collected["tensors"]):
            sources = {source for source, place in places.items() if place == target}
            if all(source in done or f"{source}.weight" in done for source in sources):
                yield target, collected["tensors"].pop(target)


def _places(file: GGUFFile, model: "PreTrainedModel", processor: Any) -> dict[str, str]:
    """The parameter that each tensor of the file becomes, or becomes a part of.

    As ``get_gguf_hf_weights_map`` in transformers, which makes the package's table of names anew for
    each module of the model.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    found = [key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture]
    if not found or file.architecture in GGUF_CONFIG_ARCHS:
        # The latter are loaded by rules of another kind, which only its own loader applies.
        raise IncompatibleTrial(
            f"{file.path}: transformers' tables do not tell how a GGUF file of "
            f"{printable(file.architecture)} is laid out; give the checkpoint that it was made from"
        )
    names = get_tensor_name_map(found[0], model.config.get_text_config().num_hidden_layers)
    places: dict[str, str] = {}
    for parameter in model.state_dict():
        name = processor.preprocess_name(parameter)
        stem, dot, kind = name.rpartition(".")
        stem, suffix = (stem, dot + kind) if kind in ("weight", "bias") else (name, "")
        place = names.get_name(stem) or names.get_name(stem.partition(".")[2])
        if place is None:
            processor.perform_fallback_tensor_mapping(places, suffix, "", name)
        else:
            places[place + suffix] = name
    return places


def _dense(file: GGUFFile, name: str) -> "torch.Tensor":
    import torch

    dense = dequantize(file, name, torch.float32)
    if (factor := factor_of(file, name)) is not None:
        factors = dequantize(file, factor, torch.float32).flatten()
        dense = dense * factors.reshape(-1, *[1] * (dense.ndim - 1))
    return dense


def _as_saved(
    model: "PreTrainedModel", name: str, tensor: "torch.Tensor"
) -> "Iterator[tuple[str, torch.Tensor]]":
    """A parameter as transformers saves it: experts that it computes together, each by itself."""
    if tensor.ndim < 3 or ".experts." not in name:
        yield name, tensor
        return
    from transformers.core_model_loading import revert_weight_conversion

    yield from revert_weight_conversion(model, {name: tensor}).items()
