"""``answer.md`` and the study's plots, in the sweep's folder."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from qsweep.base import numbers
from qsweep.base.files import write_bytes, write_text
from qsweep.results.columns.table import (
    PPL_RATIO,
    SIZE_GB,
    VERDICT,
)
from qsweep.results.columns.views import headings, lines_of
from qsweep.results.draws import pooled
from qsweep.results.html.vega import png
from qsweep.results.markdown_table import table
from qsweep.results.rows import rows, to_csv
from qsweep.search.answer import Answer, open_question, row_of, with_distinct_names
from qsweep.search.charts import front_spec, history_spec
from qsweep.search.objectives import Constraint, Objective
from qsweep.search.study import StudyTrial
from qsweep.sweep.session import Sweep

CommandOf = Callable[[StudyTrial], str]
_BEST = "Best quality per GB"
# By the run that a trial's figures are of (qsweep.search.served).
_COUNTED = {
    "activations": "figures with activations as served",
    "kv": "figures with the KV cache as served",
}
_NO_CACHE = "its KV cache is not counted"


def write_page(
    sweep: Sweep,
    entries: Sequence[StudyTrial],
    answer: Answer,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    command_of: CommandOf,
    trouble: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Write the answer, what was screened, and the plots; returns the answer for the terminal."""
    directory = sweep.directory
    entries = with_distinct_names(entries)
    if sweep.screening:
        # Lower fidelity has a table of its own, never a row among results.
        screened = rows(pooled(sweep.screening.values()))
        write_text(directory / "screening.csv", to_csv(screened))
    text = answer_markdown(
        sweep.name, sweep.command, entries, answer, objectives, constraints, command_of, trouble,
        notes,
    )  # fmt: skip
    write_text(directory / "answer.md", text)
    done = [e for e in entries if e.state == "complete" and e.finding is not None]
    if done:
        for name, spec in (
            ("front", front_spec(done, answer)),
            ("history", history_spec(entries, objectives)),
        ):
            write_bytes(directory / f"{name}.png", png(spec, width=720))
    return _terminal(answer, entries, command_of, directory, notes)


def answer_markdown(
    name: str,
    command: str,
    entries: Sequence[StudyTrial],
    answer: Answer,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    command_of: CommandOf,
    trouble: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The answer on one page; ``notes`` are what there is to say of the hardware."""
    parts = [
        f"# {numbers.markdown(name)}: what to ship",
        "\n".join(
            [
                f"- search: {', '.join(map(str, objectives))}"
                + (f"; {'; '.join(map(str, constraints))}" if constraints else ""),
                f"- command: `{numbers.one_line(command)}`",
                *(f"- {words}" for words in [_spent(entries)] if words),
                *(f"- {numbers.markdown(note)}" for note in notes),
            ]
        ),
    ]
    if trouble:
        parts.append(f"**{numbers.markdown(trouble)}**")
    parts.append(_untried(answer, entries, command_of))
    described: set[str] = set()
    for title, entry, doubt in _questions(answer):
        if entry is not None:
            again = entry.key in described
            parts.append(f"## {title}")
            parts.append(_same(entry) if again else _shown(entry, command_of))
            if doubt:
                parts.append(f"**Open:** {numbers.markdown(doubt)}.")
            elif title == _BEST and answer.decision.note:
                parts.append(f"Mind that {numbers.markdown(answer.decision.note)}.")
            described.add(entry.key)
    if answer.front:
        goals = objectives if len(objectives) > 1 else ("size_gb down", "quality up")
        parts.append(f"## The front of {' and '.join(str(g) for g in goals)}")
        parts.append(_table(answer.front))
        others = [entry for entry in answer.front if entry.key not in described]
        parts.append("\n".join(_how(entry, command_of) for entry in others))
    if len(objectives) == 1:
        parts.append(
            f"The search looked for {objectives[0]} alone: what lost by that was dropped, so other "
            "questions are answered from what it ran."
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _questions(answer: Answer) -> list[tuple[str, StudyTrial | None, str | None]]:
    """Questions, who answers each, and why that may not be believed."""
    leads = answer.decision.open and f"it leads, but {answer.decision.open}"
    questions = [(_BEST, answer.best_per_gb, leads)]
    named = {"The knee of the front": answer.knee}
    for place, (word, entry) in enumerate(answer.smallest.items()):
        better = " or better" if place else ""
        named[f"The smallest with verdict {word}{better}"] = entry
    for title, entry in named.items():
        questions.append((title, entry, None if entry is None else open_question(entry)))
    return questions


def _untried(answer: Answer, entries: Sequence[StudyTrial], command_of: CommandOf) -> str:
    if not answer.untried:
        return ""
    lines = [
        f"- {numbers.markdown(entry.name)}: {numbers.markdown(entry.reason or 'no reason recorded')}\n"
        f"  `{command_of(entry)}`"
        for entry in answer.untried
    ]
    return f"## What could not be tried\n\n{_of_all(answer, entries)}.\n\n" + "\n".join(lines)


def _of_all(answer: Answer, entries: Sequence[StudyTrial]) -> str:
    whole = len({entry.key for entry in entries})
    return (
        f"{len(answer.untried)} of {whole} combinations failed, so that the answer is that of the "
        "others alone; the same command tries them again"
    )


def _shown(entry: StudyTrial, command_of: CommandOf) -> str:
    return f"{_table([entry])}\n\n{_how(entry, command_of)}"


def _same(entry: StudyTrial) -> str:
    return f"The same: {numbers.markdown(entry.name)}, {_verdict(entry)}."


def _how(entry: StudyTrial, command_of: CommandOf) -> str:
    finding = entry.finding or {}
    name = numbers.markdown(entry.name)
    return (
        f"- {name}{_counted(entry)}: `{command_of(entry)}`\n"
        f"  artifact: `{finding['artifact']}` (on {numbers.markdown(str(finding['host']))})"
    )


def _counted(entry: StudyTrial) -> str:
    """What its figures are of, in brackets; nothing where they are one draw's weights' and that is all."""
    finding = entry.finding or {}
    words = [_COUNTED.get(finding.get("counted") or "", "")]
    words += [_NO_CACHE] if finding.get("cache_left_out") else []
    if draws := finding.get("draws"):
        words.append(f"mean of {numbers.counted(len(draws), 'draw')}")
    said = ", ".join(word for word in words if word)
    return f" ({said})" if said else ""


def _table(entries: Sequence[StudyTrial]) -> str:
    rows = [row_of(entry) for entry in entries]
    return table(headings("search", rows), lines_of(rows, "search"))


def _verdict(entry: StudyTrial) -> str:
    return VERDICT.cell(row_of(entry))


def _spent(entries: Sequence[StudyTrial]) -> str:
    states = Counter(entry.state for entry in entries)
    early = sum(
        e.state == "dropped" and e.estimate is not None and e.estimate.fidelity == "proxy"
        for e in entries
    )
    parts = [
        f"{states['complete']} trials measured in full",
        f"{states['dropped'] - early} dropped after their first windows",
        f"{early} dropped by a proxy before they were quantized",
        f"{states['failed']} failed or given up",
    ]
    return ", ".join(line for line in parts if not line.startswith("0 "))


def _terminal(
    answer: Answer,
    entries: Sequence[StudyTrial],
    command_of: CommandOf,
    directory: Path,
    notes: Sequence[str] = (),
) -> str:
    whole = len({entry.key for entry in entries})
    tried = f"{whole - len(answer.untried)} of {whole} combinations that could be tried"
    lines = ["", f"what to ship, of the {tried}:" if answer.untried else "what to ship:"]
    shown: dict[str, list[str]] = {}
    doubts: dict[str, list[str]] = {}
    found: dict[str, StudyTrial] = {}
    for title, entry, doubt in _questions(answer):
        if entry is not None:
            word = title[0].lower() + title[1:]
            shown.setdefault(entry.key, []).append(f"{word}?" if doubt else word)
            doubts.setdefault(entry.key, []).extend([f"open: {doubt}"] if doubt else [])
            found[entry.key] = entry
    if answer.best_per_gb is not None and answer.decision.note:
        doubts[answer.best_per_gb.key].append(f"mind that {answer.decision.note}")
    for key, titles in shown.items():
        entry = found[key]
        row = row_of(entry)
        lines.append(
            f"  {entry.name}: {SIZE_GB.cell(row)} GB, ratio "
            f"{numbers.ratio(PPL_RATIO.get(row))}, {_verdict(entry)}{_counted(entry)}: "
            f"{'; '.join(titles)}"
        )
        lines += [f"    {line}" for line in dict.fromkeys(doubts[key])]
        lines.append(f"    {command_of(entry)}")
    if not shown:
        lines = ["", "no answer"]
    lines += notes
    if answer.untried:
        first = answer.untried[0]
        lines.append(f"{_of_all(answer, entries)}")
        lines.append(f"  the first: {first.name}: {numbers.one_line(first.reason or 'no reason')}")
    return "\n".join([*lines, f"answer, front and plots in {directory}/answer.md"])
