"""Log-likelihoods of many continuations, with every shared token computed once.

Continuations of one context (the choices of a question) become one row: the context, then each
continuation as a branch that sees the context and itself but not the others. What all contexts begin
with (the solved examples before each question) is run once and kept as keys and values. Rows go in
batches of about equal length. Both short cuts are checked on a row against the plain computation
first, and left out for a model that does not bear them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsweep.errors import TrialFailed
from qsweep.evaluators.engine import batch_size, quick_memory
from qsweep.evaluators.scoring import choose_tile, score, token_parts
from qsweep.nonfinite import origin
from qsweep.tasks.model import LanguageModel, Likelihood, Pair
from qsweep.tasks.rows import Branch, Row, common_prefix, make_rows, plain_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Nats by which the short cut may differ from the plain computation: rounding stays well below, a
# wrong mask or position lies well above.
_TOLERANCE = {"float32": 1e-3, "float16": 0.06, "bfloat16": 0.5}


@dataclass(frozen=True)
class _Scored:
    nll: "Tensor"
    greedy: "Tensor"


def score_pairs(
    lm: LanguageModel, pairs: Sequence[Pair], progress: Callable[[float], None]
) -> list[Likelihood]:
    """Score every pair; see :meth:`LanguageModel.loglikelihoods`.

    Raises:
        TrialFailed: A logit is not finite, or memory does not suffice for a single row.
        QsweepError: A continuation is longer than the model's context.
    """
    import torch

    if not pairs:
        return []
    results: list[Likelihood | None] = [None] * len(pairs)
    with torch.inference_mode(), quick_memory(lm.model.device):
        rows = make_rows(pairs, lm.max_length, _longest_row(lm))
        prefix = common_prefix(rows)
        if (prefix or any(not row.linear for row in rows)) and not _short_cuts_hold(
            lm, rows, prefix
        ):
            rows, prefix = plain_rows(pairs, lm.max_length), 0
            lm.facts["shared_prefixes"] = False
        _run(lm, rows, prefix, results, progress)
    return [result for result in results if result is not None]


def _longest_row(lm: LanguageModel) -> int:
    return max(1024, lm.max_length)


def _run(
    lm: LanguageModel,
    rows: Sequence[Row],
    prefix: int,
    results: list[Likelihood | None],
    progress: Callable[[float], None],
) -> None:
    import torch

    order = sorted(rows, key=lambda row: (-row.length, row.stem))
    cache = _prefix_cache(lm, order[0].stem[:prefix]) if prefix else None
    done, total, shrink = 0, sum(row.length for row in order), 1
    begin = 0
    while begin < len(order):
        size = lm.batch_size or batch_size(lm.engine, order[begin].length - prefix)
        batch = order[begin : begin + max(1, size // shrink)]
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
    lm: LanguageModel, batch: Sequence[Row], prefix: int, cache: Any
) -> Iterator[tuple[Branch, Likelihood]]:
    import torch

    inputs = _inputs(lm, batch, prefix)
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
    scored = _score(lm, chosen, torch.tensor(targets, device=device))
    nll, greedy = scored.nll.double().cpu(), scored.greedy.cpu()
    if not bool(torch.isfinite(nll).all()):
        raise TrialFailed(
            "the model's logits are not finite: " + origin(lm.model, _plain_ids(batch, nll))
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


def _inputs(lm: LanguageModel, batch: Sequence[Row], prefix: int) -> _Inputs:
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


def _features(lm: LanguageModel, inputs: _Inputs, prefix: int, cache: Any, rows: int) -> "Tensor":
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
    if lm.engine.body is None:
        return lm.model(input_ids=inputs.ids, **more).logits
    return lm.model.get_submodule(lm.engine.body)(input_ids=inputs.ids, **more)[0]


def _prefix_cache(lm: LanguageModel, prefix: tuple[int, ...]) -> list[tuple["Tensor", "Tensor"]]:
    """Keys and values of a prefix, layer by layer, each [1, heads, n, size]."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=lm.model.config.get_text_config())
    ids = torch.tensor([prefix], device=lm.model.device)
    body = lm.model if lm.engine.body is None else lm.model.get_submodule(lm.engine.body)
    body(input_ids=ids, past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _expanded(cache: Sequence[tuple["Tensor", "Tensor"]], rows: int) -> Any:
    from transformers import DynamicCache

    found = DynamicCache()
    for number, (keys, values) in enumerate(cache):
        found.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return found


def _score(lm: LanguageModel, features: "Tensor", targets: "Tensor") -> _Scored:
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
    return _Scored(torch.cat(nll), torch.cat(greedy))


def _short_cuts_hold(lm: LanguageModel, rows: Sequence[Row], prefix: int) -> bool:
    # The shortest row with branches, as it is and continuation by continuation.
    import torch

    row = min((r for r in rows if not r.linear), key=lambda r: r.length, default=None)
    row = row or min(rows, key=lambda r: r.length)
    try:
        cache = _prefix_cache(lm, row.stem[:prefix]) if prefix else None
        quick = dict(_score_batch(lm, [row], prefix, cache))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    tolerance = _TOLERANCE.get(str(lm.model.dtype).removeprefix("torch."), 0.5)
    for branch in row.branches[:2]:
        plain = Row(row.stem, (branch,))
        ((_, expected),) = _score_batch(lm, [plain], 0, None)
        allowed = tolerance * max(1.0, len(branch.tokens) ** 0.5)
        if abs(quick[branch].logprob - expected.logprob) > allowed:
            return False
    return True


def _plain_ids(batch: Sequence[Row], nll: "Tensor") -> "torch.Tensor":
    # The text of the first continuation whose NLL is not finite.
    import torch

    bad = int((~torch.isfinite(nll)).nonzero()[0, 0])
    for row in batch:
        for branch in row.branches:
            bad -= len(branch.tokens)
            if bad < 0:
                return torch.tensor([*row.stem, *branch.tokens[:-1]])
    raise AssertionError("unreachable: some branch holds every token")
