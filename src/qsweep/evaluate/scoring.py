"""From features to numbers per token, in tiles of tokens by vocabulary that stay small.

A tile gives, per token, the logsumexp of its logits (and for a divergence that of the reference's,
and the mean difference of the two under the reference's share of the tile); tiles are joined at the
end. So no more of the logits ever exists than one tile, on a CPU one that stays in its caches. Only
the sum of |p - q| needs what all tiles sum to before it can be taken: for it the shares are kept.
"""

from collections.abc import Sequence
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
# A divergence keeps both models' shares of all tiles of some tokens until it knows what they sum to:
# 256 MB on a CPU, 2 GB on a GPU, for which tokens are fewer where the vocabulary is large.
_KEPT = {"cpu": 1 << 26, "cuda": 1 << 29}


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
    tokens = _ELEMENTS[kind] // vocabulary
    if len(heads) > 1:
        tokens = min(tokens, _KEPT[kind] // (len(heads) * whole))
    return Tile(max(16, tokens), vocabulary)


def token_parts(count: int, largest: int) -> list[slice]:
    """Cut so many tokens into the fewest, nearly equal parts of at most ``largest``."""
    number = -(-count // largest)
    bounds = [count * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


@dataclass(frozen=True)
class Scores:
    """Per token, each [n], float32 unless said otherwise.

    ``kld``, ``acceptance`` (1 - half of sum |p - q|), ``entropy`` (the reference's, in nats) and
    ``top1`` (uint8, whether the reference's first token is the model's too) with a reference; ``first`` (int64) and ``confidence``, the most likely token and its probability, where
    they are asked for.
    """

    nll: "Tensor"
    kld: "Tensor | None" = None
    acceptance: "Tensor | None" = None
    entropy: "Tensor | None" = None
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
    probability of the tile and E_t the mean under p within it; the reference's entropy is
    lse(z_p) - sum_t P_t E_t[z_p]. The divergence is exactly 0 for equal logits, and the acceptance
    exactly 1.

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
    means, differences, shares = [], [], []
    for start in range(0, shared, tile.vocabulary):
        stop = min(start + tile.vocabulary, shared)
        q = head.logits(features, start, stop)
        measured = own.add(q, start)
        p = reference.logits(reference_features, start, stop)
        share = other.add(p, start)
        shares.append((share, measured))
        means.append(torch.linalg.vecdot(share, p))
        differences.append(torch.linalg.vecdot(share, p.sub_(q)))
    weights, other_sum, own_sum = other.weights(), other.logsumexp(), own.logsumexp()
    kld = (weights * torch.stack(differences, 1)).sum(1) - other_sum + own_sum
    entropy = other_sum - (weights * torch.stack(means, 1)).sum(1)
    acceptance = 1 - _distance(shares, weights, own.weights()) / 2
    assert own.highest is not None
    top1 = own.picked[1].eq(own.highest)
    # What the model alone has of the vocabulary counts for its perplexity, not for the divergence.
    for start in range(shared, head.vocab, tile.vocabulary):
        stop = min(start + tile.vocabulary, head.vocab)
        own.add(head.logits(features, start, stop), start)
    return Scores(own.nll(), kld=kld, acceptance=acceptance, entropy=entropy, top1=top1)


# A tile that the reference gives less than this has no share in what it gives others, in float32.
_LEAST = 1e-30


def _distance(
    shares: "Sequence[tuple[Tensor, Tensor]]", weights: "Tensor", measured: "Tensor"
) -> "Tensor":
    """Sum of |p - q| per token, [n], of both models' shares within each tile, which are overwritten.

    |P_t p_t - Q_t q_t| = P_t |p_t - (Q_t / P_t) q_t|, with P and Q the tiles' weights, [n, tiles].
    """
    import torch

    weights = weights.clamp_min(_LEAST)
    ratios = measured / weights
    found = torch.zeros_like(weights[:, 0])
    for number, (p, q) in enumerate(shares):
        p.addcmul_(q, ratios[:, number, None], value=-1)
        found += weights[:, number] * torch.linalg.vector_norm(p, ord=1, dim=1)
    return found


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

    def weights(self) -> "Tensor":
        """The probability of each tile so far, [n, tiles]."""
        import torch

        return torch.stack(self.sums, 1).softmax(1)

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
