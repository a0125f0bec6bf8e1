"""How long greedy answers stay the reference's, and what became of them, where answers are long."""

from collections.abc import Sequence
from typing import Any

from qsweep.results.columns.table import DIVERGENCE_TOKEN, LONG_LENGTH_RATIO, LOOPS, TRUNCATED
from qsweep.results.html.data import Group, front
from qsweep.results.html.panel import Panel, Spec
from qsweep.results.html.theme import colour_by
from qsweep.results.record import Row

# More curves than this cannot be told apart.
_TRIALS = 6
_SHOWN = (LONG_LENGTH_RATIO, TRUNCATED, LOOPS, DIVERGENCE_TOKEN)


def panel(group: Group) -> Panel | None:
    """The curves of the trials on the front first, and all trials' figures below them."""
    measured = {row.key: row for row in group.rows if row.record.long is not None}
    quantized = [row for row in group.quantized if row.key in measured]
    if not quantized:
        return None
    ranked = {row.key: row for row in (*front(quantized)[::-1], *quantized)}
    chosen = list(ranked.values())[:_TRIALS]
    cut = f" {len(chosen)} of {len(ranked)} trials." if len(ranked) > len(chosen) else ""
    names = [row.label for row in chosen]
    return Panel(
        id="long",
        title="Long answers",
        note=(
            "Share of greedy answers that are still the reference's, token by token, after so many "
            "tokens (Kaplan-Meier: an answer that ended unchanged says only that it held so long)."
            + cut
        ),
        alt="; ".join(
            f"{row.label}: parts at token {DIVERGENCE_TOKEN.cell(row)}" for row in chosen
        ),
        spec=_curves([p for row in chosen for p in curve(row)], names),
        headings=("trial", "answer length", "truncated", "loops", "parts at token"),
        lines=[[row.label, *(column.cell(row) for column in _SHOWN)] for row in measured.values()],
    )


def curve(row: Row) -> list[dict[str, Any]]:
    """The steps of a trial's curve, from where all answers are the reference's to the longest."""
    found = row.record.long
    if found is None:
        return []
    shares = dict(zip(found.tokens, found.shares, strict=True))
    last = found.shares[-1] if found.shares else 1.0
    points = {0: 1.0, **shares, found.longest: shares.get(found.longest, last)}
    return [{"label": row.label, "token": t, "share": s} for t, s in sorted(points.items())]


def _curves(values: Sequence[dict[str, Any]], names: Sequence[str]) -> Spec:
    return {
        "height": 300,
        "data": {"values": list(values)},
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "token", "type": "quantitative", "title": "tokens of the answer"},
            "y": {
                "field": "share",
                "type": "quantitative",
                "scale": {"domain": [0, 1]},
                "axis": {"format": "%"},
                "title": "still the reference's",
            },
            "color": colour_by("label", names),
            "strokeDash": {"field": "label", "type": "nominal", "scale": {"domain": list(names)}},
            "tooltip": [
                {"field": "label", "title": "trial"},
                {"field": "token", "title": "token"},
                {"field": "share", "format": ".1%", "title": "still the reference's"},
            ],
        },
    }
