"""Where divergence sits: its distribution over tokens, and among tokens that are alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qsweep.base import numbers
from qsweep.results.arrays import FindArrays, read_arrays, stored_arrays
from qsweep.results.columns.table import KLD, KLD_MEDIAN, KLD_P99, PPL_RATIO
from qsweep.results.html.data import Group, front, is_finite
from qsweep.results.html.panel import Panel, Spec, decades
from qsweep.results.html.theme import colour_by
from qsweep.results.html.token_bins import ARRAYS, Tokens, by_confidence, by_entropy, by_position
from qsweep.results.record import Row

if TYPE_CHECKING:
    import numpy as np

# Arrays are large (3 MB per 335k tokens), and more curves than this cannot be told apart.
_TRIALS = 6
_NEEDED = {"token_kld", "reference_confidence"}
# From where on a token counts as diverging, in nats.
_EDGE = 1e-5


def divergence_by_token(group: Group, find: FindArrays = stored_arrays) -> list[Panel]:
    """Panels of the distribution of KLD over tokens, and of its size among tokens that are alike."""
    found: list[Tokens] = []
    for row in _candidates(group.quantized):
        if len(found) == _TRIALS:
            break
        measurement = row.record.primary
        path = find(row.record, measurement) if measurement else None
        if path is not None and (arrays := read_arrays(path, *ARRAYS)) and arrays.keys() >= _NEEDED:
            found.append(Tokens(row, arrays))
    if not found:
        return _gone(group)
    names = [one.row.label for one in found]
    shares = [share for one in found for share in _shares(one.row.label, one.kld)]
    few = "" if len(group.quantized) <= len(found) else f", {len(names)} trials of the sweep"
    return [
        _distribution(found, shares, names, few),
        *by_confidence(found),
        *by_entropy(found),
        *by_position(found),
    ]


def _distribution(
    found: Sequence[Tokens],
    shares: list[dict[str, Any]],
    names: list[str],
    few: str,
) -> Panel:
    if not shares:
        return Panel(
            id="tokens",
            title="Divergence by token",
            note=f"No token diverges by more than {_EDGE:g} nats{few}.",
        )
    return Panel(
        id="tokens",
        title="Divergence by token",
        note=f"How many tokens diverge by more than x{few}: an average hides the tail.",
        alt="; ".join(
            f"{one.row.label}: median {numbers.divergence(KLD_MEDIAN.get(one.row))}, "
            f"99th percentile {numbers.divergence(KLD_P99.get(one.row))} nats"
            for one in found
        ),
        spec=_tail(shares, names),
    )


def _gone(group: Group) -> list[Panel]:
    if not any(is_finite(KLD.get(row)) for row in group.quantized):
        return []
    return [
        Panel(
            id="tokens",
            title="Divergence by token",
            note="The per-token values of these trials are not where they were measured any more: "
            "running the sweep again brings them back.",
        )
    ]


def _candidates(rows: Sequence[Row]) -> list[Row]:
    # The front first, evenly thinned; then the best of each other method; then the rest, for where
    # arrays are gone. Each costs a look at the disk, or a download.
    best = front(rows)
    step = max(1, -(-len(best) // _TRIALS))
    ranked = sorted(rows, key=PPL_RATIO.get)
    by_method = {row.series: row for row in reversed(ranked)}
    chosen = {row.key: row for row in (*best[::-1][::step], *by_method.values(), *ranked)}
    return list(chosen.values())[: 3 * _TRIALS]


def _shares(label: str, kld: "np.ndarray") -> list[dict[str, Any]]:
    import numpy as np

    edges = np.logspace(np.log10(_EDGE), 1.5, 53)
    ordered = np.sort(kld)
    more = len(kld) - np.searchsorted(ordered, edges, side="right")
    return [
        {"label": label, "kld": float(edge), "share": float(count) / len(kld)}
        for edge, count in zip(edges, more, strict=True)
        if count
    ]


def _tail(values: list[dict[str, Any]], names: list[str]) -> Spec:
    return {
        "height": 300,
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "kld",
                "type": "quantitative",
                "scale": {"type": "log", "nice": False},
                "axis": {
                    "format": "~g",
                    "grid": False,
                    "values": decades(v["kld"] for v in values),
                },
                "title": "KLD of a token, nats, log scale",
            },
            "y": {
                "field": "share",
                "type": "quantitative",
                "scale": {"type": "log", "nice": False},
                "axis": {"format": "~%", "values": decades(v["share"] for v in values)},
                "title": "share of tokens beyond, log scale",
            },
            "color": colour_by("label", names),
            "strokeDash": {"field": "label", "type": "nominal", "scale": {"domain": names}},
            "tooltip": [
                {"field": "label", "title": "trial"},
                {"field": "kld", "format": ".2g", "title": "KLD above"},
                {"field": "share", "format": ".3~%", "title": "share of tokens"},
            ],
        },
    }
