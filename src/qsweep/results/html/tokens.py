"""Where divergence sits: its distribution over tokens, and by the reference's confidence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base import numbers
from qsweep.results.arrays import FindArrays, read_arrays, stored_arrays
from qsweep.results.columns.table import KLD, KLD_MEDIAN, KLD_P99, PPL_RATIO
from qsweep.results.html.data import Group, front, is_finite
from qsweep.results.html.panel import Panel, Spec, decades
from qsweep.results.html.theme import colour_by
from qsweep.results.record import Row

if TYPE_CHECKING:
    import numpy as np

# Arrays are large (3 MB per 335k tokens), and more curves than this cannot be told apart.
_TRIALS = 6
_CONFIDENCE = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
# Below this many tokens a quantile of a bin would be one token's own value.
_FEW = 30
_LEAST = 1e-6
# From where on a token counts as diverging, in nats.
_EDGE = 1e-5


def divergence_by_token(group: Group, find: FindArrays = stored_arrays) -> list[Panel]:
    """Two panels: the distribution of KLD over tokens, and its size by confidence."""
    found: list[tuple[Row, np.ndarray, np.ndarray]] = []
    for row in _candidates(group.quantized):
        if len(found) == _TRIALS:
            break
        measurement = row.record.primary
        path = find(row.record, measurement) if measurement else None
        if path is not None and (arrays := _read(path)) is not None:
            found.append((row, *arrays))
    if not found:
        return _gone(group)
    names = [row.label for row, *_ in found]
    shares = [s for row, kld, _ in found for s in _shares(row.label, kld)]
    quantiles = [q for row, kld, sure in found for q in _by_confidence(row.label, kld, sure)]
    few = "" if len(group.quantized) <= len(found) else f", {len(names)} trials of the sweep"
    return [_distribution(found, shares, names, few), *_confidences(quantiles, names)]


def _distribution(
    found: "Sequence[tuple[Row, np.ndarray, np.ndarray]]",
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
            f"{row.label}: median {numbers.divergence(KLD_MEDIAN.get(row))}, "
            f"99th percentile {numbers.divergence(KLD_P99.get(row))} nats"
            for row, *_ in found
        ),
        spec=_tail(shares, names),
    )


def _confidences(quantiles: list[dict[str, Any]], names: list[str]) -> list[Panel]:
    if not quantiles:
        return []
    return [
        Panel(
            id="confidence",
            title="Divergence by the reference's confidence",
            note=(
                "Median of KLD (point) and its middle 90 % (bar) among tokens by the probability "
                "that the reference gives its favourite: damage where it was sure flips answers."
            ),
            alt="; ".join(
                f"{q['label']} at {q['bin']}: median {numbers.divergence(q['median'])}"
                for q in quantiles
            ),
            spec=_confidence(quantiles, names),
        )
    ]


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


def _read(path: Path) -> "tuple[np.ndarray, np.ndarray] | None":
    found = read_arrays(path, "token_kld", "reference_confidence")
    return (
        None
        if found is None or len(found) < 2
        else (found["token_kld"], found["reference_confidence"])
    )


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


def _by_confidence(label: str, kld: "np.ndarray", sure: "np.ndarray") -> list[dict[str, Any]]:
    import numpy as np

    made = []
    for low, high in zip(_CONFIDENCE[:-1], _CONFIDENCE[1:], strict=True):
        inside = kld[(sure >= low) & ((sure < high) | (high == 1.0))]
        if len(inside) >= _FEW:
            ends = np.maximum(np.quantile(inside, [0.05, 0.5, 0.95]), _LEAST)
            values = dict(zip(("p5", "median", "p95"), map(float, ends), strict=True))
            made.append(
                {"label": label, "bin": f"{low:g}-{high:g}", "tokens": len(inside), **values}
            )
    return made


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


def _confidence(values: list[dict[str, Any]], names: list[str]) -> Spec:
    x = {
        "field": "bin",
        "type": "ordinal",
        "title": "the reference's highest probability",
        "axis": {"labelAngle": 0},
    }
    offset = {"xOffset": {"field": "label", "type": "nominal", "scale": {"domain": names}}}
    scale = {"type": "log", "nice": False}
    y = {
        "type": "quantitative",
        "scale": scale,
        "axis": {"format": "~g", "tickCount": 6},
        "title": "KLD, nats, log scale",
    }
    return {
        "height": 300,
        "data": {"values": values},
        "encoding": {"x": x, **offset, "color": colour_by("label", names)},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"y": {"field": "p5", **y}, "y2": {"field": "p95"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {
                    "y": {"field": "median", **y},
                    "tooltip": [
                        {"field": "label", "title": "trial"},
                        {"field": "bin", "title": "confidence"},
                        {"field": "tokens", "title": "tokens"},
                        {"field": "p5", "format": ".2g", "title": "5th percentile"},
                        {"field": "median", "format": ".2g", "title": "median"},
                        {"field": "p95", "format": ".2g", "title": "95th percentile"},
                    ],
                },
            },
        ],
    }
