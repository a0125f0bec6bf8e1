"""The rules by which a checkpoint's tensors lie in a GGUF file, and how they are written down."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import UnknownLayout
from qsweep.formats.gguf.blocks import Block, gather
from qsweep.formats.gguf.rows import from_file, to_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rule:
    """How one tensor of the checkpoint lies in the file's tensor ``tensor``.

    Where it is, by one of these at most. ``rows``: a shape that the rows are viewed in and the
    order that its axes then have in the file. ``order``: rows in an order that no such view
    explains, kept apart under the tensor's name. ``slice``: its index in a stack. ``shape``: its
    own, where the file has another. ``blocks``: the places of its rows, in several tensors perhaps
    (``tensor`` is the first of them), counted with its last two axes swapped if it is ``turned``.

    What became of the numbers there: ``add``, a constant added; ``exp``: the tensor's exponential,
    times this. A block may have a factor of its own.
    """

    tensor: str
    rows: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    order: bool = False
    transpose: bool = False
    add: float = 0.0
    slice: int | None = None
    exp: float = 0.0
    shape: tuple[int, ...] | None = None
    blocks: tuple[Block, ...] | None = None
    turned: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all the file's tensors that hold something of it."""
        return (
            tuple(dict.fromkeys(b.tensor for b in self.blocks)) if self.blocks else (self.tensor,)
        )

    def has_columns(self, *, turned: bool = False) -> bool:
        """Whether the file's columns are those of the tensor, or of it ``turned`` [..., columns, rows]."""
        own = {self.turned != block.turned for block in self.blocks or ()} or {self.turned}
        return own == {turned}


@dataclass(frozen=True)
class Layout:
    """A rule for each tensor of a checkpoint that the file holds, and explicit row orders."""

    rules: Mapping[str, Rule]
    orders: "Mapping[str, torch.Tensor]"

    @cached_property
    def places(self) -> frozenset[str]:
        """Names of all the file's tensors that a rule leads to."""
        return frozenset(name for rule in self.rules.values() for name in rule.tensors)

    def weight(
        self, name: str, read: "Callable[[str, int | None], torch.Tensor]"
    ) -> "torch.Tensor":
        """The checkpoint's tensor ``name`` [...], dense, in its own shape.

        ``read`` gives a tensor of the file by its name, or the one matrix of a stack by its index.
        """
        rule = self.rules[name]
        if rule.blocks is None:
            return self.restore(name, read(rule.tensor, rule.slice))
        assert rule.shape is not None
        stored = gather(rule.shape, rule.blocks, lambda t: read(t, None), turned=rule.turned)
        return _number_back(rule, stored)

    def rows_in_file(
        self, name: str, rows: "torch.Tensor"
    ) -> "list[tuple[str, torch.Tensor | None, torch.Tensor]]":
        """Where the rows of a linear layer's weight are in the file, whatever stands in a row.

        Args:
            name: The weight's in the checkpoint.
            rows: [out, ...], one for each of the layer's outputs.

        Returns:
            The file's tensors, which of their rows (None: all), and what lies there.

        Raises:
            UnknownLayout: it is one of a stack, its numbers are changed, or its rows are columns.
        """
        rule = self.rules[name]
        blocks = rule.blocks or ()
        turned = rule.turned or any(block.turned for block in blocks)
        if turned or rule.slice is not None or any(block.scale != 1 for block in blocks):
            raise UnknownLayout(f"{name} lies in {rule.tensor} otherwise than row by row")
        if rule.add or rule.exp:
            raise UnknownLayout(f"{rule.tensor} holds other numbers than {name}")
        if blocks:
            return [
                (
                    block.tensor,
                    block.rows(block.file, block.file_step),
                    rows[block.rows(block.source, block.source_step)],
                )
                for block in blocks
            ]
        if rule.rows is not None:
            rows = to_file(rows, *rule.rows)
        elif rule.order:
            rows = rows[self.orders[name]]
        return [(rule.tensor, None, rows)]

    def restore(self, name: str, stored: "torch.Tensor") -> "torch.Tensor":
        """The checkpoint's tensor ``name`` [...] from the one that the file holds in its place, dense.

        Of a stack, ``stored`` is the one matrix that the rule's ``slice`` names.
        """
        import torch

        rule = self.rules[name]
        if rule.transpose:
            stored = stored.T.contiguous()
        elif rule.rows is not None:
            stored = from_file(stored, *rule.rows)
        elif rule.order:
            restored = torch.empty_like(stored)
            restored[self.orders[name]] = stored
            stored = restored
        elif rule.shape is not None:
            stored = stored.reshape(rule.shape)
        return _number_back(rule, stored)


def _number_back(rule: Rule, stored: "torch.Tensor") -> "torch.Tensor":
    if rule.exp:
        return (stored / rule.exp).log()
    return stored - rule.add if rule.add else stored


def to_json(layout: Layout, names: Iterable[str]) -> dict[str, Any]:
    """The rules, those that all layers share written once with ``*`` for the layer's number.

    ``names`` are all the checkpoint's tensors: a pattern that would also match one without a rule
    is not folded.
    """
    patterns: dict[str, set[Rule | None]] = {}
    for name in names:
        pattern, number = fold(name)
        rule = layout.rules.get(name)
        patterns.setdefault(pattern, set()).add(_fold_rule(rule, number) if rule else None)
    content = {}
    for name, rule in layout.rules.items():
        pattern, number = fold(name)
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
        pattern, number = fold(name)
        found = content.get(name)
        if found is None and pattern in content:
            shared = content[pattern]
            found = _unfolded(shared, number)
        if found is not None:
            rules[name] = _rule(found)
    return Layout(rules, orders)


def _rule(content: Mapping[str, Any]) -> Rule:
    lists: dict[str, Any] = {}
    if rows := content.get("rows"):
        lists["rows"] = (tuple(rows[0]), tuple(rows[1]))
    if "shape" in content:
        lists["shape"] = tuple(content["shape"])
    if "blocks" in content:
        lists["blocks"] = tuple(Block(**block) for block in content["blocks"])
    return Rule(**{**content, **lists})


def _plain(rule: Rule) -> dict[str, Any]:
    content = {n: value for n, value in asdict(rule).items() if value != getattr(Rule, n, "")}
    if rule.blocks is not None:
        content["blocks"] = [
            {n: value for n, value in asdict(block).items() if value != getattr(Block, n, "")}
            for block in rule.blocks
        ]
    return content


def _unfolded(content: Mapping[str, Any], number: str) -> dict[str, Any]:
    found = {**content, "tensor": content["tensor"].replace("*", number)}
    if "blocks" in content:
        found["blocks"] = [_unfolded(block, number) for block in content["blocks"]]
    return found


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def fold(name: str) -> tuple[str, str]:
    """A name with ``*`` in place of its first number, and that number."""
    found = _NUMBER.search(name)
    if found is None:
        return name, ""
    return name[: found.start()] + "*" + name[found.end() :], found.group()


def _fold_rule(rule: Rule, number: str) -> Rule:
    folded = {name: fold(name) for name in (rule.tensor, *rule.tensors)}
    if not number or any(own != number for _, own in folded.values()):
        return rule
    blocks = rule.blocks and tuple(replace(b, tensor=folded[b.tensor][0]) for b in rule.blocks)
    return replace(rule, tensor=folded[rule.tensor][0], blocks=blocks)
