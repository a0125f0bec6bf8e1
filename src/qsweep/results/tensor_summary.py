"""What a record says of an artifact's tensors; the whole table lies in a file beside it. Pure."""

from dataclasses import dataclass

Number = int | float


@dataclass(frozen=True, kw_only=True)
class TypeShare:
    """All tensors that are stored as one type.

    Attributes:
        type: In the format's own words.
        tensors: How many there are; ``weights``: how many weights they have.
        bpw: Stored bits per weight.
        share: Of all stored bits.
        quantized: Whether they are codes rather than numbers.
        relative_error: Root mean square over their weights; None where nothing was compared.
    """

    type: str
    tensors: int
    weights: int
    bpw: Number
    share: Number
    quantized: bool
    relative_error: Number | None = None


@dataclass(frozen=True, kw_only=True)
class TensorError:
    """A tensor that is far from the base's."""

    name: str
    type: str
    bpw: Number
    relative_error: Number
    max_error: Number


@dataclass(frozen=True, kw_only=True)
class KindByLayer:
    """Tensors of one place, layer by layer, the experts of a layer together.

    Attributes:
        kind: Their place: ``mlp.down_proj``.
        layers: The layers' numbers.
        types: What each is stored as.
        bpw: Stored bits per weight.
        errors: Relative errors.
        weights: How many weights each has; none in records of before they were counted.
    """

    kind: str
    layers: tuple[int, ...]
    types: tuple[str, ...]
    bpw: tuple[Number, ...]
    errors: tuple[Number | None, ...]
    weights: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BesideLayers:
    """A matrix that is in no decoder layer: the embedding of tokens, the output head.

    Attributes:
        kind: What it is called: ``lm_head``.
        type: What it is stored as.
        bpw: Stored bits per weight; ``weights``: how many it has.
    """

    kind: str
    type: str
    bpw: Number
    weights: int


@dataclass(frozen=True, kw_only=True)
class TensorSummary:
    """An artifact's tensors in short.

    Attributes:
        types: What they are stored as, the largest share first.
        worst: Those furthest from the base's.
        kinds: The matrices in the decoder's layers.
        beside: The embedding and the output head; a head that is the embedding once more is not there.
        flags: What is not as it should be, a line each.
        notes: What is worth knowing and nothing wrong, a line each.
        file: The whole table, as CSV.
    """

    types: tuple[TypeShare, ...] = ()
    worst: tuple[TensorError, ...] = ()
    kinds: tuple[KindByLayer, ...] = ()
    beside: tuple[BesideLayers, ...] = ()
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    file: str | None = None
