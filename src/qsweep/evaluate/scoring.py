"""From features to numbers per token, in tiles of tokens by vocabulary that stay small.

A tile gives, per token, the logsumexp of its logits (and for a divergence that of the reference's,
and the mean difference of the two under the reference's share of the tile); tiles are joined at the
end. So no more of the logits ever exists than one tile, on a CPU one that stays in its caches.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from qsweep.evaluate.head import KeptLogits, OutputHead

    Head = OutputHead | KeptLogits

# Logits of one tile, and tokens of the vocabulary in it. A handful of float32 buffers of this size
# live at once: 8 MB each on a CPU, 64 MB on a GPU. Measured with bench/evaluate.py.
_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 24}
_VOCABULARY = {"cpu": 1 << 11, "cuda": 1 << 14}


@dataclass(frozen=True)
class Tile:
    """How many tokens and how much of the vocabulary are computed at once."""

    tokens: int
    vocabulary: int


def choose_tile(heads: "list[Head]") -> Tile:
    """The tile that suits the device; the whole vocabulary for a head that cannot be cut."""
    kind = "cuda" if heads[0].device.type != "cpu" else "cpu"
    whole = max(head.vocab for head in heads)
    vocabulary = min(whole, _VOCABULARY[kind]) if all(h.sliceable for h in heads) else whole
    return Tile(max(16, _ELEMENTS[kind] // vocabulary), vocabulary)


def token_parts(count: int, largest: int) -> list[slice]:
    """Cut so many tokens into the fewest, nearly equal parts of at most ``largest``."""
    number = -(-count // largest)
    bounds = [count * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


@dataclass(frozen=True)
class Scores:
    """Per token, each [n], float32 unless said otherwise.

    ``kld`` and ``top1`` (uint8, whether the reference's first token is the model's too) with a
    reference; ``first`` (int64) and ``confidence``, the most likely token and its probability, where
    they are asked for.
    """

    nll: "Tensor"
    kld: "Tensor | None" = None
    top1: "Tensor | None" = None
    first: "Tensor | None" = None
    confidence: "Tensor | None" = None


def score(
    head: "Head", features: "Tensor", targets: "Tensor", tile: Tile, *, first: bool = False
) -> Scores:
    """NLL of each target.

    Args:
        head: Makes logits of features.
        features: [n, width].
        targets: int64 [n].
        tile: n is at most ``tile.tokens``.
        first: Ask for the most likely token and its probability as well.
    """
    parts = _Parts(targets)
    for start in range(0, head.vocab, tile.vocabulary):
        stop = min(start + tile.vocabulary, head.vocab)
        parts.add(head.logits(features, start, stop), start, find_first=first)
    nll = parts.nll()
    if not first:
        return Scores(nll)
    highest, token = parts.first()
    return Scores(nll, first=token, confidence=(highest - parts.logsumexp()).exp())


def score_against(
    head: "Head",
    features: "Tensor",
    targets: "Tensor",
    reference: "Head",
    reference_features: "Tensor",
    reference_first: "Tensor",
    tile: Tile,
) -> Scores:
    """NLL of each target, and the divergence from a reference.

    With z the logits (p the reference's, q the model's) and a tile's parts named t:
    KL(p || q) = sum_t P_t E_t[z_p - z_q] - lse(z_p) + lse(z_q), where P_t is the reference's
    probability of the tile and E_t the mean under p within it. It is exactly 0 for equal logits.

    Args:
        head: The measured model's.
        features: [n, width].
        targets: int64 [n].
        reference: The reference's head, on the same device.
        reference_features: [n, width of the reference].
        reference_first: The reference's most likely token, int64 [n].
        tile: n is at most ``tile.tokens``.
    """
    import torch

    shared = min(head.vocab, reference.vocab)
    own, other = _Parts(targets, reference_first), _Parts(targets)
    means = []
    for start in range(0, shared, tile.vocabulary):
        stop = min(start + tile.vocabulary, shared)
        q = head.logits(features, start, stop)
        own.add(q, start)
        p = reference.logits(reference_features, start, stop)
        share = other.add(p, start)
        means.append(torch.linalg.vecdot(share, p.sub_(q)))
    weights = torch.stack(other.sums, 1).softmax(1)
    kld = (weights * torch.stack(means, 1)).sum(1) - other.logsumexp() + own.logsumexp()
    assert own.highest is not None
    top1 = own.picked[1].eq(own.highest)
    # What the model alone has of the vocabulary counts for its perplexity, not for the divergence.
    for start in range(shared, head.vocab, tile.vocabulary):
        stop = min(start + tile.vocabulary, head.vocab)
        own.add(head.logits(features, start, stop), start)
    return Scores(own.nll(), kld=kld, top1=top1)


class _Parts:
    """What is kept of the logits' tiles: logsumexp, highest logit, logits of certain tokens."""

    def __init__(self, *tokens: "Tensor"):
        self.sums: list[Tensor] = []
        self.highest: Tensor | None = None
        self.picked: list[Tensor] = []
        self._tokens = tokens
        self._first: Tensor | None = None

    def add(self, logits: "Tensor", start: int, find_first: bool = False) -> "Tensor":
        """Take in the tile [n, v] that begins at token ``start``; returns its own softmax."""
        import torch

        if find_first:
            highest, where = logits.max(-1)
        else:
            highest, where = logits.amax(-1), None
        share = logits.softmax(-1)
        # The highest share is e^(highest - lse), and never small.
        self.sums.append(highest - share.amax(-1).log_())
        for number, tokens in enumerate(self._tokens):
            local = tokens - start
            found = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            if start == 0:
                self.picked.append(found)
            else:
                inside = (local >= 0) & (local < logits.shape[1])
                self.picked[number] = torch.where(inside, found, self.picked[number])
        if self.highest is None:
            self.highest, self._first = highest, where
        else:
            if where is not None and self._first is not None:
                self._first = torch.where(highest > self.highest, where + start, self._first)
            self.highest = torch.maximum(self.highest, highest)
        return share

    def logsumexp(self) -> "Tensor":
        """Over all tiles so far, [n]."""
        import torch

        return torch.stack(self.sums, 1).logsumexp(1)

    def nll(self) -> "Tensor":
        """Negative log-likelihood of the first of the tokens, [n]."""
        return self.logsumexp() - self.picked[0]

    def first(self) -> "tuple[Tensor, Tensor]":
        """Highest logit and its token, each [n]."""
        assert self.highest is not None and self._first is not None
        return self.highest, self._first
