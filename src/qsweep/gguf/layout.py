"""How a checkpoint's tensors lie in a GGUF file: derived from an unquantized conversion, proven.

llama.cpp's converter renames tensors and rearranges some: Llama's query and key rows are reordered
for another rotary embedding, Gemma's norms are stored plus one, GPT-NeoX's heads are regrouped,
GPT-2's matrices transposed, experts stacked. Rather than knowing this of each architecture, qsweep
compares every tensor with what the converter made of it and looks for a rule that explains it *bit
for bit*; without one it refuses the model. The rules then lead back from the quantized file.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qsweep.errors import IncompatibleTrial
from qsweep.gguf.rows import find_order, from_file, to_file

if TYPE_CHECKING:
    import torch

    from qsweep.gguf.checkpoint import Checkpoint
    from qsweep.gguf.reader import GGUFFile

# Buffers that old checkpoints carry, which neither library reads.
_BUFFERS = re.compile(r"\.(inv_freq|masked_bias|attention\.bias|attn\.bias)$")
# What the converter computes from the configuration.
_COMPUTED = re.compile(r"^rope_")


@dataclass(frozen=True)
class Rule:
    """How one tensor of the checkpoint lies in the file's tensor ``tensor``.

    At most one of the others is set. ``rows``: a shape that the rows are viewed in and the order
    that its axes then have in the file. ``order``: rows in an order that no such view explains,
    kept apart under the tensor's name. ``add``: a constant added in the file. ``slice``: its index
    in a stack.
    """

    tensor: str
    rows: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    order: bool = False
    transpose: bool = False
    add: float = 0.0
    slice: int | None = None


@dataclass(frozen=True)
class Layout:
    """A rule for each tensor of a checkpoint that the file holds, and explicit row orders."""

    rules: Mapping[str, Rule]
    orders: "Mapping[str, torch.Tensor]"

    def restore(self, name: str, stored: "torch.Tensor") -> "torch.Tensor":
        """The checkpoint's tensor ``name`` from what the file holds in its place, dense.

        Of a stack, ``stored`` is the one matrix that the rule's ``slice`` names.
        """
        import torch

        rule = self.rules[name]
        if rule.transpose:
            return stored.T.contiguous()
        if rule.rows is not None:
            return from_file(stored, *rule.rows)
        if rule.order:
            restored = torch.empty_like(stored)
            restored[self.orders[name]] = stored
            return restored
        return stored - rule.add if rule.add else stored


def derive(
    checkpoint: "Checkpoint",
    file: "GGUFFile",
    groups: Iterable[tuple[list[str], list[str]]],
    skipped: Iterable[str],
    linears: Iterable[str],
) -> Layout:
    """Find and prove the rule of every tensor, on an unquantized conversion.

    ``groups`` are pairs of names in the checkpoint and names in the file made from them,
    ``skipped`` names that the converter left out on purpose, ``linears`` names of weights that may
    not be.

    Raises:
        IncompatibleTrial: names the tensor that no rule explains.
    """
    finder = _Finder(checkpoint, file)
    made_from = {name: made for source, made in groups for name in source}
    left_out = set(skipped)
    for name, source in checkpoint.tensors():
        if name in left_out or _BUFFERS.search(name):
            continue
        finder.explain(name, source, [n for n in made_from.get(name, []) if n in file.tensors])
    for name in finder.unexplained:
        finder.explain_as_copy(name)
    used = {rule.tensor for rule in finder.rules.values()}
    for name in file.tensors:
        if name not in used and not _COMPUTED.match(name):
            raise _refusal(checkpoint, name, "comes from no tensor of the checkpoint")
    for name in linears:
        if name not in finder.rules:
            raise _refusal(checkpoint, name, "is not in the converted file")
    return Layout(finder.rules, finder.orders)


class _Finder:
    """Collects rules; one that explained a layer is tried first on the next."""

    def __init__(self, checkpoint: "Checkpoint", file: "GGUFFile"):
        self.checkpoint = checkpoint
        self.file = file
        self.rules: dict[str, Rule] = {}
        self.orders: dict[str, torch.Tensor] = {}
        self.unexplained: list[str] = []
        self.last: dict[str, Rule] = {}

    def explain(self, name: str, source: "torch.Tensor", made: list[str]) -> None:
        for stored_name in made:
            stored = stored_tensor(self.file, stored_name)
            rule = self._find(name, source, stored, stored_name)
            if rule is not None:
                self.rules[name] = rule
                self.last[_fold(name)[0]] = rule
                return
        self.unexplained.append(name)

    def explain_as_copy(self, name: str) -> None:
        """A tied output head that the checkpoint stores once more, say."""
        tensor = self.checkpoint.tensor(name)
        for other, rule in list(self.rules.items()):
            shape = self.file.tensors[rule.tensor].shape
            if shape == tuple(tensor.shape) and _equal(tensor, self.checkpoint.tensor(other)):
                self.rules[name] = rule
                return
        raise _refusal(self.checkpoint, name, "lies in the file as no known rule explains")

    def _find(
        self, name: str, source: "torch.Tensor", stored: "torch.Tensor", stored_name: str
    ) -> Rule | None:
        if _equal(source, stored):
            return Rule(stored_name)
        previous = self.last.get(_fold(name)[0])
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
        if source.shape != stored.shape or source.ndim == 0:
            return None
        shift = round(float(stored.flatten()[0]) - float(source.flatten()[0]))
        if shift and _equal(source.float() + shift, stored):
            return Rule(stored_name, add=float(shift))
        found = find_order(source, stored)
        if found is None:
            return None
        if isinstance(found, tuple):
            return Rule(stored_name, rows=found)
        self.orders[name] = found
        return Rule(stored_name, order=True)


def stored_tensor(file: "GGUFFile", name: str) -> "torch.Tensor":
    """A tensor that is stored unquantized, mapped from the file in its own type."""
    import torch

    info = file.tensors[name]
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return file.bytes_of(name).view(types[info.type.name]).reshape(info.shape)


def to_json(layout: Layout, names: Iterable[str]) -> dict[str, Any]:
    """The rules, those that all layers share written once with ``*`` for the layer's number.

    ``names`` are all the checkpoint's tensors: a pattern that would also match one without a rule
    is not folded.
    """
    patterns: dict[str, set[Rule | None]] = {}
    for name in names:
        pattern, number = _fold(name)
        rule = layout.rules.get(name)
        patterns.setdefault(pattern, set()).add(_fold_rule(rule, number) if rule else None)
    content = {}
    for name, rule in layout.rules.items():
        pattern, number = _fold(name)
        folded = _fold_rule(rule, number)
        shared = patterns[pattern] == {folded}
        content[pattern if shared else name] = _plain(folded if shared else rule)
    return content


def from_json(
    content: Mapping[str, Any], names: Iterable[str], orders: "Mapping[str, torch.Tensor]"
) -> Layout:
    """What :func:`to_json` wrote, for the checkpoint's tensors ``names``."""
    rules = {}
    for name in names:
        pattern, number = _fold(name)
        found = content.get(name)
        if found is None and pattern in content:
            shared = content[pattern]
            found = {**shared, "tensor": shared["tensor"].replace("*", number)}
        if found is not None:
            rows = found.get("rows")
            shape = (tuple(rows[0]), tuple(rows[1])) if rows else None
            rules[name] = Rule(**{**found, "rows": shape})
    return Layout(rules, orders)


def _plain(rule: Rule) -> dict[str, Any]:
    return {name: value for name, value in asdict(rule).items() if value != getattr(Rule, name, "")}


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _fold(name: str) -> tuple[str, str]:
    """A name with ``*`` in place of its first number, and that number."""
    found = _NUMBER.search(name)
    if found is None:
        return name, ""
    return name[: found.start()] + "*" + name[found.end() :], found.group()


def _fold_rule(rule: Rule, number: str) -> Rule:
    pattern, own = _fold(rule.tensor)
    return Rule(**{**rule.__dict__, "tensor": pattern}) if number and own == number else rule


def _equal(a: "torch.Tensor", b: "torch.Tensor") -> bool:
    import torch

    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return torch.equal(a, b)
    return torch.equal(a.float(), b.float())


def _refusal(checkpoint: "Checkpoint", name: str, what: str) -> IncompatibleTrial:
    return IncompatibleTrial(
        f"gguf of {checkpoint.path.name}: the tensor {name} {what}, so the converted model cannot "
        "be measured beside the original"
    )
