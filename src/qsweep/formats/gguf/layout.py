"""How a checkpoint's tensors lie in a GGUF file: derived from an unquantized conversion, proven.

llama.cpp's converter renames tensors and rearranges some: Llama's query and key rows are reordered
for another rotary embedding, Gemma's norms are stored plus one, GPT-NeoX's heads are regrouped,
GPT-2's matrices transposed, experts stacked. Rather than knowing this of each architecture, qsweep
compares every tensor with what the converter made of it and looks for a rule that explains it *bit
for bit*. The rules then lead back from the quantized file; where one is missing, nothing but
llama.cpp itself can run what it quantized.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qsweep.base.errors import UnknownLayout
from qsweep.formats.gguf.blocks import find_blocks, find_scales
from qsweep.formats.gguf.rows import find_order, to_file
from qsweep.formats.gguf.rules import Layout, Rule, fold

if TYPE_CHECKING:
    import torch

    from qsweep.formats.gguf.checkpoint import Checkpoint
    from qsweep.formats.gguf.reader import GGUFFile

# Buffers that old checkpoints carry, which neither library reads.
_BUFFERS = re.compile(r"\.(inv_freq|masked_bias|attention\.bias|attn\.bias)$")
# What the converter computes from the configuration.
_COMPUTED = re.compile(r"^rope_")


def derive(
    checkpoint: "Checkpoint",
    file: "GGUFFile",
    groups: Iterable[tuple[list[str], list[str]]],
    skipped: Iterable[str],
    linears: Iterable[str],
) -> Layout:
    """Find and prove the rule of every tensor, on an unquantized conversion.

    What no rule leads to is the checkpoint's own when the file is measured.

    Args:
        checkpoint: The model.
        file: Its unquantized conversion.
        groups: Pairs of names in the checkpoint and names in the file made from them.
        skipped: Names that the converter left out on purpose.
        linears: Names of weights that may not be left out.

    Raises:
        UnknownLayout: names a tensor that no rule explains, and carries the rules of the others.
    """
    finder = _Finder(checkpoint, file)
    made_from = {name: made for source, made in groups for name in source}
    left_out = set(skipped)
    for name, source in checkpoint.tensors():
        if name in left_out or _BUFFERS.search(name):
            continue
        finder.explain(name, source, [n for n in made_from.get(name, []) if n in file.tensors])
    wanted = set(linears)
    reasons = [
        reason
        for name, written in finder.unexplained.items()
        if (reason := finder.explain_otherwise(name, written, name in wanted))
    ]
    used = {tensor for rule in finder.rules.values() for tensor in rule.tensors}
    reasons += [
        f"the tensor {name} comes from no tensor of the checkpoint"
        for name in file.tensors
        if name not in used and not _COMPUTED.match(name)
    ]
    reasons += [
        f"the tensor {name} is not in the converted file"
        for name in sorted(wanted)
        if name not in finder.rules
    ]
    layout = Layout(finder.rules, finder.orders)
    if reasons:
        raise UnknownLayout(reasons[0], layout)
    return layout


class _Finder:
    """Collects rules; one that explained a layer is tried first on the next."""

    def __init__(self, checkpoint: "Checkpoint", file: "GGUFFile"):
        self.checkpoint = checkpoint
        self.file = file
        self.rules: dict[str, Rule] = {}
        self.orders: dict[str, torch.Tensor] = {}
        self.unexplained: dict[str, bool] = {}
        self.last: dict[str, Rule] = {}

    def explain(self, name: str, source: "torch.Tensor", made: list[str]) -> None:
        stored = {name: stored_tensor(self.file, name) for name in made}
        for value in _values(source, stored):
            image = _image(source, value)
            rule = self._find(name, image, stored)
            if rule is not None:
                self.rules[name] = replace(rule, add=value.add, exp=value.exp)
                self.last[fold(name)[0]] = rule
                return
        for stored_name, tensor in stored.items():
            if scaled := find_scales(source, tensor, stored_name):
                self.rules[name] = Rule(stored_name, shape=tuple(source.shape), blocks=scaled)
                return
        self.unexplained[name] = bool(made)

    def explain_otherwise(self, name: str, written: bool, wanted: bool) -> str | None:
        """A copy, such as a tied output head that is stored once more; or no weight of the file's.

        Vectors that the file keeps among its metadata, or llama.cpp has no use for, are never
        quantized: they stay as they are in the checkpoint. Returns what cannot be explained.
        """
        tensor = self.checkpoint.tensor(name)
        for other, rule in list(self.rules.items()):
            shape = self.checkpoint.infos[other].shape
            if shape == tuple(tensor.shape) and _equal(tensor, self.checkpoint.tensor(other)):
                self.rules[name] = rule
                return None
        if tensor.ndim < 2 and not wanted:
            return None
        what = "lies in the file as no known rule explains" if written else "is not in the file"
        return f"the tensor {name} {what}"

    def _find(
        self, name: str, source: "torch.Tensor", stored: "Mapping[str, torch.Tensor]"
    ) -> Rule | None:
        for stored_name, tensor in stored.items():
            if rule := self._find_in(name, source, tensor, stored_name):
                return rule
        found = find_blocks(source, stored) if source.ndim and stored else None
        if found is None:
            return None
        turned, blocks = found
        return Rule(blocks[0].tensor, shape=tuple(source.shape), blocks=blocks, turned=turned)

    def _find_in(
        self, name: str, source: "torch.Tensor", stored: "torch.Tensor", stored_name: str
    ) -> Rule | None:
        if _equal(source, stored):
            return Rule(stored_name)
        previous = self.last.get(fold(name)[0])
        rows = previous.rows if previous is not None and source.shape == stored.shape else None
        if rows is not None and _equal(to_file(source, *rows), stored):
            return Rule(stored_name, rows=rows)
        if stored.ndim == source.ndim + 1 and stored.shape[1:] == source.shape:
            for i in range(len(stored)):
                if _equal(source[:1], stored[i, :1]) and _equal(source, stored[i]):
                    return Rule(stored_name, slice=i)
            return None
        if source.ndim == 2 and _equal(source.T, stored):
            return Rule(stored_name, transpose=True)
        if source.numel() == stored.numel() and _equal(source.flatten(), stored.flatten()):
            return Rule(stored_name, shape=tuple(source.shape))
        if source.shape != stored.shape or source.ndim == 0:
            return None
        found = find_order(source, stored)
        if found is None:
            return None
        if isinstance(found, tuple):
            return Rule(stored_name, rows=found)
        self.orders[name] = found
        return Rule(stored_name, order=True)


# More numbers than this are a matrix of weights, which no converter puts through a function.
_FEW = 1 << 22


def _values(source: "torch.Tensor", stored: "Mapping[str, torch.Tensor]") -> Iterator[Rule]:
    """What may have become of the numbers, wherever they are: nothing first."""
    yield Rule("")
    if source.numel() > _FEW or not source.is_floating_point():
        return
    for tensor in stored.values():
        if tensor.numel() == source.numel() and source.numel():
            # The mean does not mind the order.
            shift = round(float(tensor.double().mean()) - float(source.double().mean()))
            if shift:
                yield Rule("", add=float(shift))
    yield Rule("", exp=-1.0)
    yield Rule("", exp=1.0)


def _image(source: "torch.Tensor", value: Rule) -> "torch.Tensor":
    if value.exp:
        return value.exp * source.float().exp()
    return source.float() + value.add if value.add else source


def stored_tensor(file: "GGUFFile", name: str) -> "torch.Tensor":
    """A tensor [...] that is stored unquantized, mapped from the file in its own type and shape."""
    import torch

    info = file.tensors[name]
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return file.bytes_of(name).view(types[info.type.name]).reshape(info.shape)


def _equal(a: "torch.Tensor", b: "torch.Tensor") -> bool:
    import torch

    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return torch.equal(a, b)
    return torch.equal(a.float(), b.float())
