"""``answer.md`` of a budget, and what the terminal says of it."""

from pathlib import Path

from qsweep.base import numbers
from qsweep.base.files import write_text
from qsweep.quantizers.rules_file import as_file
from qsweep.results.assignment import assignment_in
from qsweep.results.assignment_text import text_map
from qsweep.results.columns.table import BPW, KLD, PPL_RATIO, SIZE_GB, VERDICT
from qsweep.results.markdown_table import table
from qsweep.results.record import Row
from qsweep.results.winner import MIN_WINDOWS
from qsweep.search.budget.limits import Limit
from qsweep.search.budget.run import BudgetResult
from qsweep.search.budget.verdict import Verdict
from qsweep.sweep.overrides import spelled
from qsweep.sweep.session import Sweep, command_line

_WORDS = {
    "better": "better than the best uniform one that was measured, beyond noise",
    "tie": "within noise of the best uniform one: not recommended",
    "worse": "worse than the best uniform one: not recommended",
    "untested": f"not compared with it, for {MIN_WINDOWS} windows are the least that tell; measure more",
    "alone": "no uniform one is small enough",
    "unrivalled": "no uniform one of its size was measured, so that nothing says whether it is better",
    "none": "no mix is within it that differs",
}
_HEADINGS = ("artifact", "size GB", "bpw", "KLD", "predicted KLD", "ratio (95 %)", "verdict", "")
# Of mixes and of uniform ones, so many are shown of each.
_SHOWN = 4
_FRONT = (
    "budget",
    "recommended",
    "size GB",
    "bpw",
    "KLD",
    "of the best uniform's (GB)",
    "ratio (95 %)",
)


def write_page(sweep: Sweep, result: BudgetResult) -> str:
    """Write ``answer.md``, and the rules of each best mix; returns the answer for the terminal."""
    directory = sweep.directory
    write_text(directory / "answer.md", budget_markdown(sweep, result))
    for verdict in result.verdicts:
        if verdict.mixes:
            rules = result.mixes[verdict.mixes[0].key].rules
            write_text(_rules_file(sweep, verdict.limit), as_file(rules))
    lines = [sentence(verdict, result) for verdict in result.verdicts]
    return "\n".join([*lines, f"answer: {directory / 'answer.md'}"])


def budget_markdown(sweep: Sweep, result: BudgetResult) -> str:
    """The answer on one page."""
    parts = [
        f"# {numbers.markdown(sweep.name)}: the best within a budget",
        "\n".join([f"- command: `{numbers.one_line(sweep.command)}`", *_spent(result)]),
    ]
    if len(result.verdicts) > 1:
        parts.append(table(_FRONT, [_point(verdict) for verdict in result.verdicts]))
    for verdict in result.verdicts:
        parts.append(f"## {_title(verdict.limit)}")
        parts.append(f"{numbers.markdown(sentence(verdict, result))}.")
        parts.append(table(_HEADINGS, [_line(row, verdict, result) for row in _rows(verdict)]))
        if verdict.unmeasured:
            names = numbers.markdown(", ".join(verdict.unmeasured))
            parts.append(f"Within it, and not measured, for more KLD was predicted: {names}.")
        if (row := verdict.recommended) is not None:
            path = row.record.artifact and row.record.artifact.path
            parts.append(f"Artifact: `{path}`")
        for row in verdict.mixes[:1]:
            words = result.mixes[row.key].made.config.words
            file = str(_rules_file(sweep, verdict.limit))
            rules = f"quant.rules={spelled(file, 'quant.rules')}"
            parts.append(f"The best mix by itself: `{command_line([*words, rules])}`")
            if (tensors := row.record.tensors) is not None:
                parts.append(text_map(assignment_in(tensors)))
    if result.left_out:
        parts.append("## Left out")
        parts.append(
            "\n".join(
                f"- {numbers.markdown(n)}: {numbers.markdown(r)}"
                for n, r in result.left_out.items()
            )
        )
    parts.append(_how(result))
    return "\n\n".join(parts) + "\n"


def sentence(verdict: Verdict, result: BudgetResult) -> str:
    """The answer for one budget, in a line."""
    row, budget = verdict.recommended, str(verdict.limit.budget)
    if row is None and not verdict.mixes:
        return f"{budget}: nothing that was measured is within it"
    if row is None:
        return f"{budget}: {verdict.mixes[0].label}: {_WORDS[verdict.word]}"
    said = f"{budget}: {row.label}, {_size(row)}, KLD {numbers.divergence(KLD.get(row))}"
    if verdict.word in ("better", "alone"):
        share = ""
        if verdict.share is not None:
            other = verdict.uniform[0]
            share = f" ({verdict.share:.2f} of {other.label}'s, {_size(other)})"
        return f"{said}{share}: {_WORDS[verdict.word]}"
    if verdict.mixes:
        return f"{said}; {verdict.mixes[0].label} is {_WORDS[verdict.word]}"
    return f"{said}; {_WORDS[verdict.word]}"


def _rules_file(sweep: Sweep, limit: Limit) -> Path:
    return sweep.directory / "rules" / f"{str(limit.budget).replace('=', '-')}.yaml"


def _title(limit: Limit) -> str:
    words = {
        "size_gb": f"{limit.budget.amount:g} GB",
        "bpw": f"{limit.budget.amount:g} bits per weight",
        "vram_gb": f"{limit.budget.amount:g} GB of memory",
    }[limit.budget.kind]
    if limit.beside is not None and limit.bytes is not None:
        words += (
            f": {numbers.gigabytes(limit.beside.cache / 1e9)} GB for the KV cache, "
            f"{numbers.gigabytes(limit.beside.buffers / 1e9)} GB for buffers, "
            f"{numbers.gigabytes(limit.bytes / 1e9)} GB for weights"
        )
    return words


def _point(verdict: Verdict) -> list[str]:
    row, budget = verdict.recommended, str(verdict.limit.budget)
    if row is None:
        return [budget, "nothing", *[""] * (len(_FRONT) - 2)]
    share, mixed = verdict.share, row in verdict.mixes
    return [
        budget,
        row.label,
        SIZE_GB.cell(row),
        BPW.cell(row),
        KLD.cell(row),
        f"{share:.2f} ({_size(verdict.uniform[0])})" if share is not None and mixed else "",
        PPL_RATIO.cell(row),
    ]


def _rows(verdict: Verdict) -> list[Row]:
    return [*verdict.mixes[:_SHOWN], *verdict.uniform[:_SHOWN]]


def _line(row: Row, verdict: Verdict, result: BudgetResult) -> list[str]:
    place = "recommended" if row is verdict.recommended else ""
    if verdict.difference is not None and row is verdict.mixes[0]:
        value, low, high = verdict.difference
        around = "" if low is None or high is None else f" ({low:+.4g} to {high:+.4g})"
        place = f"{place}; KLD {value:+.4g}{around} beside the uniform".removeprefix("; ")
    return [
        row.label,
        SIZE_GB.cell(row),
        BPW.cell(row),
        KLD.cell(row),
        numbers.divergence(_predicted(row, result)),
        PPL_RATIO.cell(row),
        VERDICT.cell(row),
        place,
    ]


def _predicted(row: Row, result: BudgetResult) -> float | None:
    if row.key in result.mixes:
        return result.mixes[row.key].proposal.loss
    losses = {one.name: one.loss for costs in result.families for one in costs.candidates}
    return losses.get(row.record.name)


def _size(row: Row) -> str:
    return f"{SIZE_GB.cell(row)} GB"


def _spent(result: BudgetResult) -> list[str]:
    words = [f"{what} {seconds:.0f} s" for what, seconds in result.seconds.items()]
    return [f"- time: {', '.join(words)}"] if words else []


def _how(result: BudgetResult) -> str:
    candidates = [one.name for costs in result.families for one in costs.candidates]
    groups = sum(len(costs.groups) for costs in result.families)
    lines = [
        "## How it was found",
        "- Chosen from "
        + numbers.markdown(", ".join(candidates))
        + f", for {groups} groups of layers.",
        "- Predicted KLD: the sum over layers of what each alone costs, from one backward pass of the "
        "unquantized model over the calibration text. It chooses; what is claimed was measured.",
    ]
    measured = [
        (row, predicted)
        for verdict in result.verdicts
        for row in _rows(verdict)
        if (predicted := _predicted(row, result)) and KLD.get(row)
    ]
    if measured:
        ratios = {row.key: KLD.get(row) / predicted for row, predicted in measured}
        low, high = min(ratios.values()), max(ratios.values())
        lines.append(f"- Measured KLD was {low:.2f} to {high:.2f} times the predicted.")
    return "\n".join(lines)
