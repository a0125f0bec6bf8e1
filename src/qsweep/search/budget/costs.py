"""What each group of layers stores, and is predicted to cost, in each of several formats. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Candidate:
    """One way to quantize all layers alike, as it was made.

    Attributes:
        name: What the trial is called.
        values: By layer, what a rule says to give it that (:mod:`qsweep.quantizers.rules`).
        bits: By layer, what it stores: codes, scales, indices.
        losses: By layer, what it alone is predicted to cost the model, in nats per token.
        bytes: Of the whole artifact's weight files.
        linear_bits: Of its quantized linear layers.
        linear_weights: How many weights those have.
    """

    name: str
    values: Mapping[str, str]
    bits: Mapping[str, int]
    losses: Mapping[str, float]
    bytes: int
    linear_bits: int
    linear_weights: int

    @property
    def loss(self) -> float:
        """What all of it is predicted to cost, in nats per token."""
        return sum(self.losses.values())

    @property
    def bpw(self) -> float:
        """Stored bits per weight of its quantized linear layers."""
        return self.linear_bits / max(self.linear_weights, 1)


@dataclass(frozen=True)
class Costs:
    """Groups of layers and what they may become.

    Attributes:
        groups: The layers of each, which get the same.
        candidates: What they may become.
        bits: Stored bits [groups, candidates].
        losses: Predicted nats per token [groups, candidates], not finite where a group has no such
            option, or has it from another candidate.
        rest: Bits of the artifact's files that lie in no group.
        linear: Which of the groups ``bpw`` counts [groups].
        layers: All linear layers of the model, those that are in no group among them.
    """

    groups: tuple[tuple[str, ...], ...]
    candidates: tuple[Candidate, ...]
    bits: "np.ndarray"
    losses: "np.ndarray"
    rest: int
    linear: "np.ndarray"
    layers: tuple[str, ...]

    @property
    def smallest(self) -> int:
        """Bytes of the smallest artifact that there can be."""
        return self._bytes(self._options().min(1).sum())

    @property
    def largest(self) -> int:
        """Bytes of the largest artifact that there can be."""
        import numpy as np

        able = np.isfinite(self.losses)
        return self._bytes(np.where(able, self.bits, 0).max(1).sum())

    @property
    def weights(self) -> int:
        """How many weights the quantized linear layers have."""
        return max(one.linear_weights for one in self.candidates)

    @property
    def settled(self) -> int:
        """Stored bits of quantized linear layers that are in no group."""
        one = self.candidates[0]
        chosen = zip(self.groups, self.linear, strict=True)
        return one.linear_bits - sum(
            one.bits[n] for group, counts in chosen if counts for n in group
        )

    @property
    def linear_range(self) -> tuple[float, float]:
        """The fewest and the most stored bits per weight that linear layers can have."""
        import numpy as np

        able, bits = np.isfinite(self.losses[self.linear]), self.bits[self.linear]
        fewest = np.where(able, bits, np.inf).min(1).sum() + self.settled
        most = np.where(able, bits, 0).max(1).sum() + self.settled
        return float(fewest / self.weights), float(most / self.weights)

    def bytes_of(self, choice: Sequence[int]) -> int:
        """Bytes of the artifact that a choice of candidates makes."""
        return self._bytes(sum(self.bits[range(len(choice)), list(choice)]))

    def loss_of(self, choice: Sequence[int]) -> float:
        """What a choice is predicted to cost, in nats per token."""
        return float(self.losses[range(len(choice)), list(choice)].sum())

    def _options(self) -> "np.ndarray":
        import numpy as np

        return np.where(np.isfinite(self.losses), self.bits, np.inf)

    def _bytes(self, bits: float) -> int:
        return -(-(int(bits) + self.rest) // 8)


def costs_of(
    candidates: Sequence[Candidate], alike: Sequence[Sequence[str]], linears: Mapping[str, object]
) -> Costs:
    """The costs of candidates whose layers are known.

    Args:
        candidates: Of one family, see :func:`~qsweep.search.budget.families.family_of`.
        alike: Layers that must get the same, group by group; each layer of a candidate is in one.
        linears: The linear layers, which ``bpw`` counts.
    """
    import numpy as np

    # What no candidate has a value for is settled, by a rule of the candidates' own.
    shared = set.intersection(*(set(one.losses) & set(one.bits) for one in candidates))
    shared &= {name for one in candidates for name in one.values}
    groups = tuple(own for group in alike if (own := tuple(n for n in group if n in shared)))
    bits = np.array([[sum(c.bits[n] for n in g) for c in candidates] for g in groups], dtype=float)
    losses = np.array([[sum(c.losses[n] for n in g) for c in candidates] for g in groups])
    for number, group in enumerate(groups):
        seen: set[tuple[str, ...]] = set()
        for place, one in enumerate(candidates):
            values = tuple(one.values.get(name, "") for name in group)
            # A mixture of llama.cpp's gives many layers what another one does, too; one whose layers
            # differ within a group is no option for it.
            if values in seen or len(set(values)) > 1 or not all(values):
                losses[number, place] = np.inf
            seen.add(values)
    rest = max(
        one.bytes * 8 - sum(one.bits[name] for group in groups for name in group)
        for one in candidates
    )
    linear = np.array([all(name in linears for name in group) for group in groups])
    return Costs(groups, tuple(candidates), bits, losses, rest, linear, tuple(linears))
