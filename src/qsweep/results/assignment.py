"""Which layer of a model got how many bits: what an artifact stores, place by place. Pure.

A *place* is a kind of linear layer in one layer of the decoder: all experts of a layer are one.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from qsweep.formats.tensor_table import TensorRow
from qsweep.results.tensor_summary import BesideLayers, KindByLayer, TensorSummary
from qsweep.results.tensors import beside_layers, kinds_of

Place = tuple[str, int]
"""A kind of layer (``mlp.experts.up_proj``) and the number of the decoder layer that it is in."""

# The order in which a decoder layer uses them; what has another name follows by it.
_USUAL = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj",
    "gate_proj", "up_proj", "gate_up_proj", "down_proj",
)  # fmt: skip
_FEED_FORWARD = re.compile(r"(^|[._])(mlp|ffn|feed_forward|experts?|moe|fc\d?)([._]|$)")
_INTEGERS = re.compile(r"int(\d+)\b(.*)")
# Places of one type may differ by what scales take where rows are short; by more, they are a mix.
_ALIKE = 0.5
# A line lists so many kinds of storing at most.
_NAMED = 6


@dataclass(frozen=True)
class Stored:
    """How the weights of one place are stored.

    Attributes:
        bpw: Stored bits per weight.
        type: In the format's own words; several joined by ``+``, as where experts differ.
        weights: How many there are.
        quantized: Whether they are codes rather than numbers.
    """

    bpw: float
    type: str
    weights: int
    quantized: bool


@dataclass(frozen=True)
class Assignment:
    """What each linear layer of the decoder is stored as.

    Attributes:
        places: By place, in the order in which a layer uses its kinds.
        beside: By name, the embedding and the head, which are in no layer.
    """

    places: Mapping[Place, Stored]
    beside: Mapping[str, Stored]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers, in order."""
        return tuple(dict.fromkeys(kind for kind, _ in self.places))

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the decoder layers."""
        return tuple(sorted({layer for _, layer in self.places}))

    @cached_property
    def is_mixed(self) -> bool:
        """Whether the linear layers are not all stored alike; of one that is not quantized, no."""
        found: dict[str, list[float]] = defaultdict(list)
        for stored in self.places.values():
            found[stored.type].append(stored.bpw)
        if not any(stored.quantized for stored in self.places.values()):
            return False
        return len(found) > 1 or any(max(one) - min(one) > _ALIKE for one in found.values())

    @property
    def bpw(self) -> float | None:
        """Stored bits per weight of what is quantized in the decoder's layers, as tables have it."""
        return _mean(stored for stored in self.places.values() if stored.quantized)

    @property
    def mean_bits(self) -> float | None:
        """Stored bits per weight of all linear layers, those that stayed in 16 bits included."""
        return _mean(self.places.values())

    @property
    def short_kinds(self) -> dict[str, str]:
        """Kinds without the module that they are in where none is called like another then."""
        short = {kind: kind.partition(".")[2] or kind for kind in self.kinds}
        many = Counter(short.values())
        return {kind: name if many[name] == 1 else kind for kind, name in short.items()}

    def __str__(self) -> str:
        """In a line: ``2.5 bpw: 3 bits ×12, 2 bits ×16``; places are counted."""
        named: dict[str, list[float]] = defaultdict(list)
        words = _words({stored.type for stored in self.places.values() if stored.quantized})
        for stored in self.places.values():
            kept = "" if stored.quantized else " (kept)"
            word = words.get(stored.type) or f"{bits_text(stored.bpw)} bits{kept}"
            named[word].append(stored.bpw)
        ranked = sorted(named.items(), key=lambda item: (-sum(item[1]) / len(item[1]), item[0]))
        parts = [f"{word} ×{len(bits)}" for word, bits in ranked[:_NAMED]]
        if len(ranked) > _NAMED:
            parts.append(f"{len(ranked) - _NAMED} more types")
        mean = self.bpw if self.bpw is not None else self.mean_bits
        return f"{bits_text(mean)} bpw: {', '.join(parts)}" if mean is not None else "no layers"


def assignment_of(rows: Iterable[TensorRow]) -> Assignment:
    """What a table of tensors says of the layers."""
    rows = list(rows)
    quantized = {row.type for row in rows if row.quantized}
    return _assignment(kinds_of(rows), beside_layers(rows), quantized)


def assignment_in(found: TensorSummary) -> Assignment:
    """The same from what a record says of the table."""
    return _assignment(found.kinds, found.beside, {s.type for s in found.types if s.quantized})


def bits_text(bits: float) -> str:
    """Bits per weight as they are read: ``4``, ``4.5``, ``6.56``."""
    return f"{bits:.2f}".rstrip("0").rstrip(".")


def _assignment(
    kinds: Iterable[KindByLayer], beside: Iterable[BesideLayers], quantized: set[str]
) -> Assignment:
    parts = {part for type_ in quantized for part in type_.split("+")}

    def stored(bpw: float, type_: str, weights: int) -> Stored:
        return Stored(bpw, type_, weights, not parts.isdisjoint(type_.split("+")))

    places = {
        (kind.kind, layer): stored(bpw, type_, weights)
        for kind in sorted(kinds, key=lambda kind: _order(kind.kind))
        for layer, type_, bpw, weights in zip(
            # A record of before weights were counted weighs all places alike.
            kind.layers, kind.types, kind.bpw, kind.weights or (1,) * len(kind.layers), strict=True
        )
    }  # fmt: skip
    return Assignment(places, {o.kind: stored(o.bpw, o.type, o.weights) for o in beside})


def _order(kind: str) -> tuple[bool, bool, int, str]:
    last = kind.rpartition(".")[2]
    usual = _USUAL.index(last) if last in _USUAL else len(_USUAL)
    return _FEED_FORWARD.search(kind) is not None, ".experts." in f".{kind}.", usual, kind


def _mean(stored: Iterable[Stored]) -> float | None:
    known = [(one.bpw, one.weights) for one in stored]
    weights = sum(count for _, count in known)
    return sum(bpw * count for bpw, count in known) / weights if weights else None


def _words(types: set[str]) -> dict[str, str]:
    """What types are called in a line: integers by their bits where nothing else tells them apart."""
    found = {type_: _INTEGERS.fullmatch(type_) for type_ in types}
    rests = {match[2] if match else None for match in found.values()}
    if len(rests) == 1 and None not in rests:
        return {type_: f"{match[1]} bits" for type_, match in found.items() if match}
    return {type_: type_ for type_ in types}
