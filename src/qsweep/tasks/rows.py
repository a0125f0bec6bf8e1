"""How continuations are laid out to be scored: rows of a context and what branches off it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from qsweep.base.errors import QsweepError
from qsweep.tasks.requests import Pair

# A prefix of fewer tokens is not worth the copies of its keys and values.
_SHORTEST_PREFIX = 24


@dataclass(frozen=True)
class Branch:
    """One continuation in its row: which request, its tokens, the position it is predicted from."""

    request: int
    tokens: tuple[int, ...]
    parent: int


@dataclass(frozen=True)
class TokenRow:
    """A stem and the continuations that branch off its end."""

    stem: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        """Tokens to run: of each branch, all but the last."""
        return len(self.stem) + sum(len(b.tokens) - 1 for b in self.branches)

    @property
    def extent(self) -> int:
        """Tokens of the longest text in it."""
        return len(self.stem) + max(len(b.tokens) - 1 for b in self.branches)

    @property
    def linear(self) -> bool:
        """Whether it is an ordinary text: at most one branch has tokens to run."""
        return sum(len(b.tokens) > 1 for b in self.branches) <= 1


def make_rows(
    pairs: Sequence[Pair],
    max_length: int,
    longest: int,
    span: int | None = None,
    start: tuple[int, ...] = (),
) -> list[TokenRow]:
    """Join the pairs that share a context; pure.

    Args:
        pairs: What is to be scored.
        max_length: The model's context. A longer text loses its begin and gets a row of its own.
        longest: Tokens of a row after which another is begun.
        span: A text of more tokens shares no row; None: all may.
        start: Stays where a text that begins with it loses its begin.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    rows = []
    for index, pair in enumerate(pairs):
        if pair.length > (max_length if span is None else min(span, max_length)):
            rows.append(_plain_row(index, pair, max_length, start))
        else:
            families.setdefault(pair.context, []).append(index)
    for context, members in families.items():
        part: list[int] = []
        size = len(context)
        for index in members:
            more = len(pairs[index].continuation) - 1
            if part and size + more > longest:
                rows.append(_row(context, part, pairs))
                part, size = [], len(context)
            part.append(index)
            size += more
        rows.append(_row(context, part, pairs))
    return rows


def plain_rows(
    pairs: Sequence[Pair], max_length: int, start: tuple[int, ...] = ()
) -> list[TokenRow]:
    """Every pair as a row of its own: the computation without short cuts."""
    return [_plain_row(index, pair, max_length, start) for index, pair in enumerate(pairs)]


def last_tokens(ids: Sequence[int], room: int, start: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The last so many tokens of a text, and ``start`` before them if it began with it; pure."""
    if len(ids) <= room:
        return tuple(ids)
    kept = start if len(start) < room and tuple(ids[: len(start)]) == start else ()
    return (*kept, *ids[len(ids) - room + len(kept) :])


def common_prefix(rows: Sequence[TokenRow]) -> int:
    """How many tokens all stems begin with, if that is worth anything; a stem keeps one at least."""
    if len(rows) < 2:
        return 0
    stems = [row.stem for row in rows]
    shared = len(commonprefix([min(stems), max(stems)]))
    shared = min(shared, min(len(stem) for stem in stems) - 1)
    return shared if shared >= _SHORTEST_PREFIX else 0


def _row(context: tuple[int, ...], members: Sequence[int], pairs: Sequence[Pair]) -> TokenRow:
    end = len(context) - 1
    return TokenRow(context, tuple(Branch(i, pairs[i].continuation, end) for i in members))


def _plain_row(index: int, pair: Pair, max_length: int, start: tuple[int, ...]) -> TokenRow:
    wanted = len(pair.continuation)
    if wanted > max_length:
        raise QsweepError(
            f"a continuation of {wanted} tokens does not fit the model's context of {max_length}"
        )
    stem = last_tokens(pair.context, max_length + 1 - wanted, start)
    return TokenRow(stem, (Branch(index, pair.continuation, len(stem) - 1),))
