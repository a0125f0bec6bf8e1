"""Windows are read until an interval is narrow enough, and not one more than the next look needs.

Windows of a text that follow each other are of the same documents, so that its first ones say little
of the rest: they are read in a random order, always the same one, in which any that were read are a
sample of all. After each look the interval is that of :mod:`qsweep.evaluate.intervals`, which holds
at all looks together. It is one for the figure of the whole text, too: windows are drawn without
replacement, which never spreads more than with (Hoeffding 1963, J. Am. Stat. Assoc. 58, theorem 4).
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from qsweep.base.errors import ConfigError
from qsweep.base.progress import Progress, silent
from qsweep.evaluate.compare import ends
from qsweep.evaluate.intervals import half_width, is_sequential
from qsweep.evaluate.metrics import clustered_mean, window_sums

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from qsweep.evaluate.measurement import WindowScores
    from qsweep.evaluate.reference import Reference
    from qsweep.text.windows import Windows

# Raised whenever another number of windows may be read by the same rule; part of such keys.
UNTIL_VERSION = 1
SEED = 0
FIRST_LOOK = 12
# Each look comes after a quarter more windows than the last: at most that much is read in vain, and
# a model that is read anew for each look (a streamed one) is read some ten times, not a hundred.
_GROWTH = 1.25
_RULE = re.compile(r"(ratio|kld)\s*(?:±|\+-|\+/-)?\s*([\d.]+(?:e-?\d+)?)\s*(%?)", re.IGNORECASE)


@dataclass(frozen=True)
class Until:
    """When it is narrow enough.

    Attributes:
        figure: Whose interval: the perplexity ratio's, or the divergence's.
        half: To either side at most: as a share of the ratio, or in nats.
    """

    figure: Literal["ratio", "kld"]
    half: float

    def __str__(self) -> str:
        if self.figure == "ratio":
            return f"ratio ±{100 * self.half:g} %"
        return f"kld ±{self.half:g}"


def parse_until(text: str) -> Until:
    """``ratio ±0.5 %`` or ``kld ±0.002`` as it is meant; ``+-`` stands for ``±``.

    Raises:
        ConfigError: It is neither.
    """
    found = _RULE.fullmatch(text.strip())
    try:
        figure, half = (found[1].lower(), float(found[2])) if found else ("", math.nan)
    except ValueError:
        half = math.nan
    if found is None or not 0 < half < math.inf or (figure == "ratio") != bool(found[3]):
        raise ConfigError(
            f"eval.until={text}: how wide an interval may be, as in "
            "eval.until='ratio ±0.5 %' or eval.until='kld ±0.002'"
        )
    return Until("ratio", half / 100) if figure == "ratio" else Until("kld", half)


def reading_order(windows: int) -> list[int]:
    """The numbers of a text's windows in the order in which they are read; the same everywhere."""
    return sorted(
        range(windows), key=lambda number: hashlib.sha256(f"{SEED}:{number}".encode()).digest()
    )


def looks(windows: int) -> Iterator[tuple[int, int]]:
    """From and to how many windows are read between two looks, until all are."""
    begin, end = 0, min(FIRST_LOOK, windows)
    while begin < windows:
        yield begin, end
        begin, end = end, min(math.ceil(end * _GROWTH), windows)


def measure_until(
    model: "PreTrainedModel",
    windows: "Windows",
    reference: "Reference | None",
    base: "WindowScores",
    rule: Until,
    progress: Progress = silent,
) -> "WindowScores":
    """Measure a dense model on as many windows as the rule wants, in :func:`reading_order`.

    Args:
        model: In evaluation mode, on its device.
        windows: All windows of the text.
        reference: The cached reference on all of them; without one there is no divergence.
        base: The reference's own measurement of all of them.
        rule: When the interval is narrow enough.
        progress: Told how far the pass is, as a share of the whole text.

    Returns:
        As of :func:`~qsweep.evaluate.measure`, of the windows that were read, with their numbers in
        the text as ``window_number`` [windows], ``kld_low`` and ``kld_high`` with a divergence, and
        among its facts ``until`` and ``whole``: what the rule was, and of which windows. Of a text
        that the first look reads whole it is that measurement itself: nothing was decided by
        looking, so that Student's t is its interval.

    Raises:
        TrialFailed: As that does.
    """
    import torch

    from qsweep.evaluate.engine import keep_freed_memory, open_engine
    from qsweep.evaluate.measure import measure, score_tokens, window_scores

    if len(windows.ids) <= FIRST_LOOK:
        return measure(model, windows, reference, progress)
    order, narrow, batch = reading_order(len(windows.ids)), False, 1
    parts: list[dict[str, Tensor]] = []
    with torch.inference_mode(), keep_freed_memory(model):
        engine = open_engine(model, windows.ids)
        for begin, end in looks(len(order)):
            now = order[begin:end]
            part = windows.select(now)
            states = None if reference is None else reference.select(windows, now)
            told = partial(_told, progress, begin / len(order), (end - begin) / len(order))
            tokens, batch = score_tokens(engine, part, states, told)
            parts.append(tokens)
            found = {name: torch.cat([one[name] for one in parts]) for name in tokens}
            if narrow := _narrow_enough(
                rule, found, windows.select(order[:end]), base, order[:end]
            ):
                break
    read = order[:end]
    part = windows.select(read)
    states = None if reference is None else reference.select(windows, read)
    result = window_scores(found, part, states, engine, batch)
    if "kld" in found:
        mean = clustered_mean(window_sums(found["kld"], part.counts), part.counts)
        result.metrics |= ends("kld", mean, len(read), sequential=True)
    return Chosen(read, _facts(rule, windows, narrow=narrow)).mark(result)


@dataclass(frozen=True)
class Chosen:
    """Some of a text's windows.

    Attributes:
        numbers: Which, in the order in which they were read.
        facts: How they came to be chosen, and of which windows.
    """

    numbers: Sequence[int]
    facts: Mapping[str, Any]

    def mark(self, result: "WindowScores") -> "WindowScores":
        """A measurement of these windows, with that."""
        import torch

        result.facts |= self.facts
        result.arrays["window_number"] = torch.tensor(self.numbers, dtype=torch.int64)
        return result


def chosen_windows(measured: "WindowScores") -> Chosen | None:
    """Which windows a measurement read; None where it read all."""
    if not is_sequential(measured.facts):
        return None
    facts = {name: measured.facts[name] for name in ("until", "whole")}
    return Chosen(measured.arrays["window_number"].tolist(), facts)


def as_read_by(
    measured: "WindowScores", base: "WindowScores", windows: "Windows"
) -> "WindowScores":
    """A measurement of all windows, ``base``, on those that another read: to be compared with it."""
    if (chosen := chosen_windows(measured)) is None:
        return base
    sums = {n: base.arrays[n][chosen.numbers] for n in ("window_nll", "window_tokens")}
    facts = base.facts | windows.select(chosen.numbers).facts()
    return replace(base, metrics={}, arrays=sums, facts=facts)


def _narrow_enough(
    rule: Until,
    found: Mapping[str, "Tensor"],
    windows: "Windows",
    base: "WindowScores",
    read: Sequence[int],
) -> bool:
    values, counts = found["nll" if rule.figure == "ratio" else "kld"], windows.counts
    sums = window_sums(values, counts)
    if rule.figure == "ratio":
        sums = sums - base.arrays["window_nll"][list(read)]
    mean = clustered_mean(sums, counts)
    if mean.stderr is None:
        return False
    most = math.log1p(rule.half) if rule.figure == "ratio" else rule.half
    # Nor need more be read where it is no number: the measurement is refused then.
    return not half_width(mean.stderr, len(read), sequential=True) > most


def _facts(rule: Until, windows: "Windows", *, narrow: bool) -> dict[str, Any]:
    """What is recorded of how far one read, beside the facts of the windows that were read.

    ``whole`` are those of all windows: what may be compared is decided by them
    (:mod:`qsweep.results.comparable`).
    """
    until = {"rule": str(rule), "reached": narrow, "seed": SEED, "first_look": FIRST_LOOK}
    whole = {"windows": len(windows.ids), "fingerprint": windows.fingerprint}
    return {"until": until, "whole": whole}


def _told(progress: Progress, before: float, share: float, what: str, done: float | None) -> None:
    progress(what, None if done is None else before + share * done)
