"""Log-likelihoods of many continuations, with every shared token computed once.

Continuations of one context (the choices of a question) become one row: the context, then each
continuation as a branch that sees the context and itself but not the others. What all contexts begin
with (the solved examples before each question) is run once and kept as keys and values. Rows go in
batches of about equal length, padded on the right.

A text longer than a layer's window is a row of its own, run with the model's own masks, and so is
every text of a model that masks and positions do not tell what to see. For the rest the short cuts
are checked against the plain computation where they are most likely to fail (the longest row, the
one with most branches; every branch of theirs), and left out for a model that does not bear them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import QsweepError, TrialFailed
from qsweep.evaluate.engine import batch_size, keep_freed_memory
from qsweep.evaluate.scoring import choose_tile, score, token_parts
from qsweep.models.nonfinite import nonfinite_origin
from qsweep.tasks.attention import (
    full_attention_span,
    keeps_rope_length,
    reset_rope_length,
    rounding,
)
from qsweep.tasks.requests import Likelihood, Pair
from qsweep.tasks.rows import Branch, TokenRow, common_prefix, make_rows, plain_rows
from qsweep.tasks.text_model import TextModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def score_pairs(
    lm: TextModel, pairs: Sequence[Pair], progress: Callable[[float], None]
) -> list[Likelihood]:
    """Score every pair; see :meth:`~qsweep.tasks.model.LanguageModel.loglikelihoods`.

    Raises:
        TrialFailed: A logit is not finite, or memory does not suffice for a single row.
        QsweepError: A continuation is longer than the model's context, or has no token.
    """
    import torch

    if not pairs:
        return []
    if not all(pair.continuation for pair in pairs):
        raise QsweepError("an empty continuation has no likelihood: no token is there to be scored")
    results: list[Likelihood | None] = [None] * len(pairs)
    lm.count("contexts_cut", sum(pair.length > lm.max_length for pair in pairs))
    with torch.inference_mode(), keep_freed_memory(lm.model):
        span = full_attention_span(lm.model, lm.engine.body)
        rows = make_rows(pairs, lm.max_length, max(1024, lm.max_length), span, lm.start)
        shared = [row for row in rows if row.extent <= span]
        single_rows = [row for row in rows if row.extent > span]
        prefix = common_prefix(shared)
        short_cuts = prefix > 0 or any(not row.linear for row in shared)
        if short_cuts and not _short_cuts_hold(lm, shared, prefix):
            shared, single_rows, prefix = [], plain_rows(pairs, lm.max_length, lm.start), 0
        if single_rows:
            lm.facts["shared_prefixes"] = bool(shared) and "in part"
        share = sum(row.length for row in shared) / sum(
            row.length for row in (*shared, *single_rows)
        )
        checked = short_cuts and bool(shared)
        _run(lm, shared, prefix, checked, results, lambda done: progress(share * done))
        _run(lm, single_rows, 0, False, results, lambda done: progress(share + (1 - share) * done))
    return [result for result in results if result is not None]


def _run(
    lm: TextModel,
    rows: Sequence[TokenRow],
    prefix: int,
    checked: bool,
    results: list[Likelihood | None],
    progress: Callable[[float], None],
) -> None:
    import torch

    if not rows:
        return
    order = sorted(rows, key=lambda row: (-row.length, row.stem))
    cache = _prefix_cache(lm, order[0].stem[:prefix]) if prefix else None
    padded = checked or _padding_holds(lm, order)
    done, total, shrink = 0, sum(row.length for row in order), 1
    begin = 0
    while begin < len(order):
        size = _rows_at_once(lm, order[begin], prefix)
        batch = order[begin : begin + max(1, size // shrink)]
        if not padded:
            batch = [row for row in batch if row.length == batch[0].length]
        try:
            scored = _score_batch(lm, batch, prefix, cache)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise TrialFailed(
                    f"out of memory on {lm.model.device} with a single prompt of "
                    f"{batch[0].length} tokens"
                ) from error
            torch.cuda.empty_cache()
            shrink *= 2
            continue
        for branch, likelihood in scored:
            results[branch.request] = likelihood
        begin += len(batch)
        done += sum(row.length for row in batch)
        progress(done / total)


def _score_batch(
    lm: TextModel, batch: Sequence[TokenRow], prefix: int, cache: Any
) -> Iterator[tuple[Branch, Likelihood]]:
    import torch

    inputs = _inputs(lm, batch, prefix)
    reset_rope_length(lm.model)
    features = _features(lm, inputs, prefix, cache, len(batch))
    width = inputs.ids.shape[1]
    at: list[int] = []
    targets: list[int] = []
    branches: list[Branch] = []
    for number, (row, starts) in enumerate(zip(batch, inputs.starts, strict=True)):
        for branch, start in zip(row.branches, starts, strict=True):
            base = number * width
            at += [base + branch.parent - prefix]
            at += [base + start + step for step in range(len(branch.tokens) - 1)]
            targets += branch.tokens
            branches.append(branch)
    device = features.device
    chosen = features.flatten(0, 1).index_select(0, torch.tensor(at, device=device))
    nll, greedy = _score(lm, chosen, torch.tensor(targets, device=device))
    if not bool(torch.isfinite(nll).all()):
        raise TrialFailed(
            "the model's logits are not finite: "
            + nonfinite_origin(lm.model, _plain_ids(batch, nll))
        )
    ends = torch.tensor([len(branch.tokens) for branch in branches]).cumsum(0).tolist()
    for branch, end in zip(branches, ends, strict=True):
        part = slice(end - len(branch.tokens), end)
        yield (
            branch,
            Likelihood(-float(nll[part].sum()), bool(greedy[part].all()), len(branch.tokens)),
        )


@dataclass(frozen=True)
class _Inputs:
    ids: "Tensor"
    positions: "Tensor"
    mask: "Tensor | None"
    starts: list[list[int]]
    """Where in its row each branch's tokens begin."""


def _inputs(lm: TextModel, batch: Sequence[TokenRow], prefix: int) -> _Inputs:
    """Rows without their common prefix, padded on the right: [b, n], and who sees whom."""
    import torch

    width = max(row.length for row in batch) - prefix
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    positions = torch.arange(prefix, prefix + width).repeat(len(batch), 1)
    linear = all(row.linear for row in batch)
    sees = None
    if not linear:
        sees = torch.ones(prefix + width, prefix + width, dtype=torch.bool).tril()[prefix:]
        sees = sees.repeat(len(batch), 1, 1)
    starts = []
    for number, row in enumerate(batch):
        stem = len(row.stem) - prefix
        ids[number, :stem] = torch.tensor(row.stem[prefix:])
        at, found = stem, []
        for branch in row.branches:
            inner = branch.tokens[:-1]
            end = at + len(inner)
            found.append(at)
            if inner:
                ids[number, at:end] = torch.tensor(inner)
                positions[number, at:end] = torch.arange(len(row.stem), len(row.stem) + len(inner))
                if sees is not None:
                    sees[number, at:end, prefix + stem : prefix + at] = False
            at = end
        positions[number, at:] = positions[number, at - 1]
        starts.append(found)
    device = lm.model.device
    mask = None
    if sees is not None:
        dtype = lm.model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
        mask = mask[:, None].to(device)
    return _Inputs(ids.to(device), positions.to(device), mask, starts)


def _features(lm: TextModel, inputs: _Inputs, prefix: int, cache: Any, rows: int) -> "Tensor":
    """What goes into the output head, [b, n, width]."""
    more: dict[str, Any] = {}
    if prefix or inputs.mask is not None:
        more["position_ids"] = inputs.positions
    if inputs.mask is not None:
        more["attention_mask"] = inputs.mask
    if prefix:
        more |= {"past_key_values": _expanded(cache, rows), "use_cache": True}
    else:
        more["use_cache"] = False
    found = _body(lm)(input_ids=inputs.ids, **more)
    return found.logits if lm.engine.body is None else found[0]


def _body(lm: TextModel) -> Any:
    # What makes the features: the whole model where it could not be split.
    return lm.model if lm.engine.body is None else lm.model.get_submodule(lm.engine.body)


def _prefix_cache(lm: TextModel, prefix: tuple[int, ...]) -> list[tuple["Tensor", "Tensor"]]:
    """Keys and values of a prefix, layer by layer, each [1, heads, n, size]."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=lm.model.config.get_text_config())
    ids = torch.tensor([prefix], device=lm.model.device)
    _body(lm)(input_ids=ids, past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _expanded(cache: Sequence[tuple["Tensor", "Tensor"]], rows: int) -> Any:
    """A cache for so many rows: keys and values [1, heads, n, size] -> [rows, heads, n, size]."""
    from transformers import DynamicCache

    found = DynamicCache()
    for number, (keys, values) in enumerate(cache):
        found.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return found


def _score(lm: TextModel, features: "Tensor", targets: "Tensor") -> "tuple[Tensor, Tensor]":
    """NLL of each target, float64 [n], and whether it is the likeliest token, bool [n]; on the CPU.

    Features are [n, width], targets int64 [n].
    """
    import torch

    head = lm.engine.head
    tile = choose_tile([head])
    features, targets = features.to(head.device), targets.to(head.device)
    nll, greedy = [], []
    for part in token_parts(len(targets), tile.tokens):
        found = score(head, features[part], targets[part], tile, first=True)
        assert found.first is not None
        nll.append(found.nll)
        greedy.append(found.first == targets[part])
    return torch.cat(nll).double().cpu(), torch.cat(greedy).cpu()


def _rows_at_once(lm: TextModel, row: TokenRow, prefix: int) -> int:
    return lm.batch_size or batch_size(lm.engine, row.length - prefix)


def _short_cuts_hold(lm: TextModel, rows: Sequence[TokenRow], prefix: int) -> bool:
    # Every branch of the rows that are the hardest, each by itself and plainly. What cannot be
    # checked does not hold.
    import torch

    branching = [row for row in rows if not row.linear] or list(rows)
    probes = {
        max(rows, key=lambda row: row.extent),
        max(branching, key=lambda row: row.extent),
        max(branching, key=lambda row: (len(row.branches), row.length)),
    }
    order = sorted(probes, key=lambda row: (-row.length, row.stem))
    try:
        cache = _prefix_cache(lm, order[0].stem[:prefix]) if prefix else None
        while order:
            size = max(1, _rows_at_once(lm, order[0], prefix))
            batch, order = order[:size], order[size:]
            if not _scores_match_alone(lm, batch, batch, prefix, cache):
                return False
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    except (AttributeError, IndexError, RuntimeError, TrialFailed, TypeError, ValueError):
        return False
    return True


def _padding_holds(lm: TextModel, order: Sequence[TokenRow]) -> bool:
    # Whether rows beside the longest are what they are alone: so for every causal model. Without
    # this, not even the plain computation would be.
    import torch

    batched = [row for row in order if _rows_at_once(lm, row, 0) > 1]
    shorter = [row for row in batched if row.length < batched[0].length]
    if not shorter:
        return True  # nothing is padded
    if keeps_rope_length(lm.model):
        return False
    long = batched[0]
    try:
        return all(
            _scores_match_alone(lm, [long, row], [row], 0, None)
            for row in {shorter[0], shorter[len(shorter) // 2], shorter[-1]}
        )
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False


def _scores_match_alone(
    lm: TextModel, batch: Sequence[TokenRow], checked: Sequence[TokenRow], prefix: int, cache: Any
) -> bool:
    # Whether a batch's continuations score as each does alone, in one text without a cache.
    quick = dict(_score_batch(lm, batch, prefix, cache))
    tolerance = rounding(lm.model.dtype)
    for text in (text for row in checked for text in _texts(row)):
        for branch, expected in _score_batch(lm, [text], 0, None):
            allowed = tolerance * max(1.0, len(branch.tokens) ** 0.5)
            if abs(quick[branch].logprob - expected.logprob) > allowed:
                return False
    return True


def _texts(row: TokenRow) -> Iterator[TokenRow]:
    # A row as ordinary texts. Branches of one token are predicted from the stem, whatever follows.
    single = tuple(branch for branch in row.branches if len(branch.tokens) == 1)
    several = [branch for branch in row.branches if len(branch.tokens) > 1]
    if not several:
        yield row
    for number, branch in enumerate(several):
        yield TokenRow(row.stem, (*(single if number == 0 else ()), branch))


def _plain_ids(batch: Sequence[TokenRow], nll: "Tensor") -> "torch.Tensor":
    """The ids, int64 [n], up to the first continuation with an NLL [tokens] that is not finite."""
    import torch

    bad = int((~torch.isfinite(nll)).nonzero()[0, 0])
    for row in batch:
        for branch in row.branches:
            bad -= len(branch.tokens)
            if bad < 0:
                return torch.tensor([*row.stem, *branch.tokens[:-1]])
    raise AssertionError("unreachable: some branch holds every token")
