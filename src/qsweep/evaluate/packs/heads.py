"""The output head of a model by itself: its weights, as they are or narrower.

A narrower head makes a file smaller and logits less exact. How much less is measured
(:func:`added_divergence`), and only what is lost in the noise of the reference is accepted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import QsweepError
from qsweep.evaluate.head import head_parameters, load_output_head, stored_parameter
from qsweep.evaluate.scoring import choose_tile, score_against, token_parts
from qsweep.models.architecture import empty_model, load_model
from qsweep.models.facts import distinct_weights, read_config, read_tensors
from qsweep.models.safetensors_writer import StreamedTensor, by_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qsweep.evaluate.head import OutputHead
    from qsweep.evaluate.reference import Reference

Rows = Callable[[int, int], "Tensor"]
EXACT = "exact"
# By name, the dtype and the largest code; None: a dtype without scales.
_NARROW: Mapping[str, tuple[str, float | None]] = {
    "bfloat16": ("bfloat16", None),
    "fp8": ("float8_e4m3fn", 448.0),
    "int8": ("int8", 127.0),
}
HEADS = (EXACT, *_NARROW)
SCALE = "#scale"
"""What is behind the name of a weight in the name of its rows' scales, float32 [rows, 1]."""


@dataclass(frozen=True)
class HeadWeight:
    """One parameter of a head: [n, ...] in a torch dtype, of which rows are read when needed."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"
    rows: Rows

    def streamed(self) -> StreamedTensor:
        """For a file."""
        return by_rows(self.shape, self.dtype, self.rows)


def head_weights(
    source: Path, body: str, dtype: "torch.dtype", trust_remote_code: bool = False
) -> dict[str, HeadWeight]:
    """The parameters of a checkpoint outside of its body, by their names in it.

    In the dtype that they are stored in, or in that of the run where that has fewer bits.

    Args:
        source: The checkpoint's directory.
        body: The dotted name of its body.
        dtype: Of the run.
        trust_remote_code: Whether Python code in ``source`` may run.

    Raises:
        QsweepError: There is more outside than parameters.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    model = empty_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
    names = head_parameters(model, body)
    if names is None:
        raise QsweepError(
            f"{source}: {type(model).__name__} has buffers beside its body, which no pack holds"
        )
    # Of a head that only repeats the embedding, the embedding: as the model's own tensors are counted.
    tensors = distinct_weights(read_tensors(source), read_config(source))
    places = [stored_parameter(model, name, tensors) for name in names]
    if None in places:
        # Their names cannot be matched: transformers knows how.
        model = load_model(source, config, dtype=dtype, trust_remote_code=trust_remote_code)
        return {name: _of_tensor(model.get_parameter(name).detach(), dtype) for name in names}
    return {place[1]: _of_file(*place, dtype) for place in places if place is not None}


def encoded(weight: HeadWeight, head: str) -> dict[str, HeadWeight]:
    """A weight as a pack with such a head holds it: by what is to be added to its name."""
    import torch

    if head == EXACT or len(weight.shape) != 2:
        return {"": weight}
    name, largest = _NARROW[head]
    dtype = getattr(torch, name)
    if largest is None:
        return {"": HeadWeight(weight.shape, dtype, lambda a, b: weight.rows(a, b).to(dtype))}

    def scales(start: int, stop: int) -> "Tensor":
        highest = weight.rows(start, stop).float().abs().amax(1, keepdim=True)
        return highest.clamp(min=torch.finfo(torch.float32).tiny) / largest

    def codes(start: int, stop: int) -> "Tensor":
        scaled = weight.rows(start, stop).float() / scales(start, stop)
        return (scaled.round() if dtype == torch.int8 else scaled).to(dtype)

    shape = (weight.shape[0], 1)
    return {
        "": HeadWeight(weight.shape, dtype, codes),
        SCALE: HeadWeight(shape, torch.float32, scales),
    }


def decoded(parts: Mapping[str, HeadWeight], dtype: "torch.dtype") -> HeadWeight:
    """The inverse of :func:`encoded`: what has scales comes in ``dtype``, all else as it is."""
    codes = parts[""]
    if SCALE not in parts:
        return codes

    def rows(start: int, stop: int) -> "Tensor":
        return codes.rows(start, stop).float() * parts[SCALE].rows(start, stop)

    return HeadWeight(codes.shape, dtype, rows)


def added_divergence(
    directory: Path, reference: "Reference", targets: "Tensor", largest: int = 16384
) -> float:
    """How far the logits of a narrower head are from the reference's own.

    Args:
        directory: Of a checkpoint that holds the narrower head.
        reference: With its own head.
        targets: The scored tokens, int64 [tokens].
        largest: No more than so many of the first tokens are compared.

    Returns:
        The mean over tokens of the divergence's absolute value, as noise floors are.
    """
    import torch

    exact: Any = reference.head
    body = reference.facts["body"]
    dtype = getattr(torch, reference.facts["dtype"])
    narrow: OutputHead = load_output_head(directory, body, dtype, str(exact.device))
    tile, count = choose_tile([narrow, exact]), min(largest, len(targets))
    total = 0.0
    with torch.inference_mode():
        for part in token_parts(count, tile.tokens):
            states = reference.features(part).to(exact.device)
            chosen = targets[part].to(exact.device), reference.first[part].to(exact.device)
            found = score_against(narrow, states, chosen[0], exact, states, chosen[1], tile)
            assert found.kld is not None
            total += float(found.kld.double().abs().sum())
    return total / count


def _of_tensor(tensor: "Tensor", dtype: "torch.dtype") -> HeadWeight:
    kept = _narrower(tensor.dtype, dtype)
    return HeadWeight(tuple(tensor.shape), kept, lambda start, stop: tensor[start:stop].to(kept))


def _of_file(file: Path, name: str, dtype: "torch.dtype") -> HeadWeight:
    from safetensors import safe_open

    found = safe_open(file, framework="pt", device="cpu").get_slice(name)
    kept = _narrower(found[:1].dtype, dtype)
    shape = tuple(found.get_shape())
    return HeadWeight(shape, kept, lambda start, stop: found[start:stop].to(kept))


def _narrower(stored: "torch.dtype", run: "torch.dtype") -> "torch.dtype":
    return run if run.itemsize < stored.itemsize else stored
