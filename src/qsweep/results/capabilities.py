"""``capabilities.md``: what each trial of a sweep lost, in words and numbers. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qsweep.base import numbers
from qsweep.evaluate.pairs import holm
from qsweep.results.alignment import alignment_markdown
from qsweep.results.flips import flips_markdown
from qsweep.results.labels import with_distinct_names
from qsweep.results.long_answers import long_markdown
from qsweep.results.record import CapabilityResult, Record
from qsweep.tasks.capabilities import MARGIN, verdict
from qsweep.tasks.task import CAPABILITIES, COUNTED

# By trial's key and capability.
Adjusted = Mapping[tuple[str, str], float]


def has_tasks(records: Iterable[Record]) -> bool:
    """Whether any trial ran tasks."""
    return any(record.tasks for record in records)


def adjusted_p(records: Iterable[Record]) -> dict[tuple[str, str], float]:
    """Holm's p of every capability of every quantized trial: the sweep is one family of tests."""
    places, values = [], []
    for record in _quantized(records):
        for name, found in _kept_of(record):
            if found.p is not None:
                places.append((record.key, name))
                values.append(found.p)
    return dict(zip(places, holm(values), strict=True))


def worst_cell(record: Record, adjusted: Adjusted) -> str:
    """``math 62%``: the capability of which least was kept; ``?`` where that may be chance."""
    worst = record.suffers_most
    if not worst:
        return ""
    sure = _is_loss(record, worst.capability, adjusted)
    return f"{worst.capability} {numbers.percent(worst.retention)}" + ("" if sure else "?")


def capabilities_markdown(name: str, records: Sequence[Record]) -> str:
    """The page of one sweep; empty where no trial ran tasks and no calibration was varied."""
    from qsweep.results.markdown_table import table

    adjusted = adjusted_p(records)
    parts = []
    if has_tasks(records):
        named = with_distinct_names(records)
        parts += [_introduction(named), _kept(named, adjusted, table), _in_words(named, adjusted)]
        parts += [
            flips_markdown(named, table),
            _tasks(named, table),
            long_markdown(named),
            _noted(named),
            _missing(named),
        ]
    parts.append(alignment_markdown(records))
    parts = [part for part in parts if part]
    return (
        "\n\n".join([f"# What suffers: {numbers.markdown(name)}", *parts]) + "\n" if parts else ""
    )


def sentence(record: Record, adjusted: Adjusted) -> str:
    """Which capability of a trial suffered most, by how much, and whether beyond chance."""
    worst, kept_of = record.suffers_most, dict(_kept_of(record))
    if not worst:
        return "no capability can be measured: the reference itself is at chance"
    capability = worst.capability
    found = kept_of[capability]
    kept = f"{capability} suffers most: {_kept_cell(found)} kept"
    if _is_loss(record, capability, adjusted):
        if found.difference is None:
            return f"{kept}, by perplexity"
        return f"{kept}, a {verdict(_told(found), adjusted.get((record.key, capability)))}"
    losses = [c for c in kept_of if _is_loss(record, c, adjusted)]
    if losses:
        return f"{kept}, which may be chance; beyond chance: {', '.join(losses)}"
    return f"no capability suffers beyond chance (lowest: {capability}, {_kept_cell(found)} kept)"


def _introduction(records: Sequence[Record]) -> str:
    several = (
        " Rows of several draws are their means: intervals cover samples and draws, and the test is of "
        "t over both in McNemar's place."
    )
    drawn = any(len(record.draws or ()) > 1 for record in records)
    return (
        "Kept = (score - chance) / (reference's score - chance), with its 95 % interval: a paired "
        "bootstrap over the samples. A loss counts where McNemar's exact test, corrected by Holm "
        "for all comparisons of this sweep, gives p < 0.05. *No measurable loss*: the interval "
        f"rules a loss of {100 * MARGIN:.0f} points out. *Too few samples*: it does not, and the "
        "number given would show such a loss four times out of five." + (several if drawn else "")
    )


def _kept(records: Sequence[Record], adjusted: Adjusted, table: Any) -> str:
    names = _capabilities(records)
    lines = []
    for record in _quantized(records):
        found = dict(_kept_of(record))
        values = [_kept_cell(found[c]) if c in found else "" for c in names]
        lines.append([record.name, *values, worst_cell(record, adjusted)])
    if not lines:
        return ""
    return "## Kept, by capability\n\n" + table(["trial", *names, "suffers most"], lines)


def _kept_cell(found: CapabilityResult) -> str:
    if not found.measurable:
        return "not measurable"
    low, high = found.retention_low or 0.0, found.retention_high or 0.0
    dash = " to " if low < 0 else "-"
    return f"{numbers.percent(found.retention)} ({100 * low:.0f}{dash}{100 * high:.0f})"


def _in_words(records: Sequence[Record], adjusted: Adjusted) -> str:
    lines = []
    for record in _quantized(records):
        lines.append(f"- **{numbers.markdown(record.name)}**: {sentence(record, adjusted)}.")
        for name, found in _kept_of(record):
            p = adjusted.get((record.key, name))
            tested = f" (p {p:.2g}, {found.samples} samples)" if p is not None else ""
            at_chance = found.at_chance if found.measurable else None
            without = f"; without {', '.join(at_chance)}, at chance" if at_chance else ""
            lines.append(f"    - {name}: {verdict(_told(found), p)}{tested}{without}")
    return "## In words\n\n" + "\n".join(lines) if lines else ""


def _tasks(records: Sequence[Record], table: Any) -> str:
    lines = []
    for record in records:
        for task in record.tasks or ():
            if task.score is None:
                continue
            interval = ""
            if task.score_low is not None and task.score_high is not None:
                interval = f"{100 * task.score_low:.1f}-{100 * task.score_high:.1f}"
            share = task.metric != "perplexity"
            lines.append(
                [
                    task.name,
                    task.capability,
                    record.name,
                    numbers.percent(task.score) if share else numbers.fixed(task.score, 3),
                    interval,
                    numbers.percent(task.chance),
                    str(task.samples),
                    str(task.metric),
                    numbers.seconds(task.seconds),
                ]
            )
    lines.sort(key=lambda line: (line[1], line[0]))
    headings = ["task", "capability", "trial", "score", "95 %", "chance", "samples", "metric"]
    return "## Scores\n\n" + table([*headings, "time"], lines) if lines else ""


def _noted(records: Sequence[Record]) -> str:
    found: dict[str, None] = {}
    for record in records:
        for task in record.tasks or ():
            for name, words in COUNTED.items():
                if number := (task.facts or {}).get(name):
                    found[f"- {numbers.markdown(task.name)}: {number:g} {words}"] = None
    return "## Told of the questions\n\n" + "\n".join(found) if found else ""


def missing_tasks(records: Iterable[Record]) -> list[str]:
    """One line for each task that could not be run, with its reason and how many trials lack it."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for task in record.tasks or ():
            if task.reason:
                # A reason may begin with the task that it is about.
                reason = task.reason.removeprefix(f"{task.name}: ")
                found.setdefault((task.name, reason), []).append(record.name)
    return [
        f"{name}: {numbers.one_line(reason)} ({len(trials)} trial{'s' if len(trials) > 1 else ''})"
        for (name, reason), trials in found.items()
    ]


def _missing(records: Sequence[Record]) -> str:
    lines = [f"- {numbers.markdown(line)}" for line in missing_tasks(records)]
    return "## Not run\n\n" + "\n".join(lines) if lines else ""


def _is_loss(record: Record, capability: str, adjusted: Adjusted) -> bool:
    found = dict(_kept_of(record))[capability]
    if found.difference is None:
        # By perplexity: its interval lies below the reference's quality.
        return found.retention_high is not None and found.retention_high < 1.0
    return adjusted.get((record.key, capability), 1.0) < 0.05 and found.difference < 0


def _capabilities(records: Iterable[Record]) -> list[str]:
    found = {c for record in _quantized(records) for c, _ in _kept_of(record)}
    return sorted(found, key=lambda c: (c not in CAPABILITIES, [*CAPABILITIES, c].index(c)))


def _quantized(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        if record.capabilities and not record.reference:
            yield record


def _told(found: CapabilityResult) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if value is not None}


def _kept_of(record: Record) -> Iterable[tuple[str, CapabilityResult]]:
    return (record.capabilities or {}).items()
