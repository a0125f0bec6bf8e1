"""Divergence among tokens that are alike: by the reference's confidence, its entropy, their position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsweep.base import numbers
from qsweep.evaluate.metrics import end_positions
from qsweep.results.arrays import tells_positions
from qsweep.results.html.panel import Panel, Spec
from qsweep.results.html.theme import colour_by
from qsweep.results.record import Row

if TYPE_CHECKING:
    import numpy as np

ARRAYS = (
    "token_kld",
    "reference_confidence",
    "reference_entropy",
    "token_position",
    "window_tokens",
)
"""Of a measurement those that are read here; older ones have neither entropy nor position."""
# Below this many tokens a quantile of a bin would be one token's own value.
_FEW = 30
_LEAST = 1e-6
_CONFIDENCE = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_ENTROPY = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, float("inf"))
_MIDDLE = "Median of KLD (point) and its middle 90 % (bar) among tokens by"


@dataclass(frozen=True)
class Tokens:
    """A trial with the values of its tokens, by the names of :data:`ARRAYS`."""

    row: Row
    arrays: "Mapping[str, np.ndarray]"

    @property
    def kld(self) -> "np.ndarray":
        """The divergence of each, [tokens]."""
        return self.arrays["token_kld"]

    @property
    def positions(self) -> "np.ndarray | None":
        """Where each stands in its window, from 0; None where that is not known."""
        if (known := self.arrays.get("token_position")) is not None:
            return known
        facts = self.row.measurement.facts if self.row.measurement else {}
        context, counts = facts.get("context"), self.arrays.get("window_tokens")
        if not (tells_positions(facts) and isinstance(context, int) and counts is not None):
            return None
        return end_positions(counts, context)


def by_confidence(found: Sequence[Tokens]) -> list[Panel]:
    """By the probability that the reference gives its favourite."""
    return _intervals(
        found,
        "reference_confidence",
        _CONFIDENCE,
        Panel(
            id="confidence",
            title="Divergence by the reference's confidence",
            note=f"{_MIDDLE} the probability that the reference gives its favourite: damage where it "
            "was sure flips answers.",
        ),
        "the reference's highest probability",
    )


def by_entropy(found: Sequence[Tokens]) -> list[Panel]:
    """By how many continuations the reference weighed."""
    return _intervals(
        found,
        "reference_entropy",
        _ENTROPY,
        Panel(
            id="entropy",
            title="Divergence by the reference's entropy",
            note=f"{_MIDDLE} the entropy of the reference's prediction: near 0 it knew what comes, at "
            "2 nats it weighed about seven continuations.",
            folded=True,
        ),
        "entropy of the reference's prediction, nats",
    )


def by_position(found: Sequence[Tokens]) -> list[Panel]:
    """By how much a token is predicted from, in bins that double."""
    values = [mean for tokens in found for mean in _by_position(tokens)]
    if len({value["from"] for value in values}) < 2:
        return []
    names = list(dict.fromkeys(value["label"] for value in values))
    return [
        Panel(
            id="positions",
            title="Divergence by position",
            note="Mean KLD of tokens by how many the model reads before them, each bin twice as wide "
            "as the one before it: what rises towards the right errs more the longer the text.",
            alt="; ".join(
                f"{value['label']} at {value['bin']}: {numbers.divergence(value['kld'])}"
                for value in values
            ),
            spec=_lines(values, names),
            folded=True,
        )
    ]


def _by_position(tokens: Tokens) -> list[dict[str, Any]]:
    import numpy as np

    positions = tokens.positions
    if positions is None:
        return []
    # A position is the number of tokens before: 1 is the first that can be predicted.
    exponents = np.log2(positions).astype(int)
    made = []
    for exponent in range(int(exponents.max()) + 1):
        inside = tokens.kld[exponents == exponent]
        if len(inside) >= _FEW:
            low, high = 2**exponent, 2 ** (exponent + 1) - 1
            made.append({
                "label": tokens.row.label, "from": low, "bin": f"{low}-{high}",
                "tokens": len(inside), "kld": max(_LEAST, float(inside.mean(dtype="float64"))),
            })  # fmt: skip
    return made


def _intervals(
    found: Sequence[Tokens], name: str, bounds: Sequence[float], panel: Panel, axis: str
) -> list[Panel]:
    """A panel of quantiles of the divergence in bins of a value per token; none without any."""
    quantiles = [
        one
        for tokens in found
        if (by := tokens.arrays.get(name)) is not None
        for one in _quantiles(tokens.row.label, tokens.kld, by, bounds)
    ]
    if not quantiles:
        return []
    names = list(dict.fromkeys(one["label"] for one in quantiles))
    alt = "; ".join(
        f"{q['label']} at {q['bin']}: median {numbers.divergence(q['median'])}" for q in quantiles
    )
    spec = _bars(quantiles, names, axis)
    return [Panel(panel.id, panel.title, panel.note, alt, spec, folded=panel.folded)]


def _quantiles(
    label: str, kld: "np.ndarray", by: "np.ndarray", bounds: Sequence[float]
) -> list[dict[str, Any]]:
    import numpy as np

    made, last = [], bounds[-1]
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        inside = kld[(by >= low) & ((by < high) | (high == last))]
        if len(inside) >= _FEW:
            ends = np.maximum(np.quantile(inside, [0.05, 0.5, 0.95]), _LEAST)
            values = dict(zip(("p5", "median", "p95"), map(float, ends), strict=True))
            words = f"{low:g} and more" if high == float("inf") else f"{low:g}-{high:g}"
            made.append({"label": label, "bin": words, "tokens": len(inside), **values})
    return made


def _bars(values: list[dict[str, Any]], names: list[str], axis: str) -> Spec:
    bins = list(dict.fromkeys(value["bin"] for value in values))
    x = {
        "field": "bin",
        "type": "ordinal",
        "title": axis,
        "sort": sorted(bins, key=lambda words: float(words.split("-")[0].split()[0])),
        "axis": {"labelAngle": 0},
    }
    offset = {"xOffset": {"field": "label", "type": "nominal", "scale": {"domain": names}}}
    y = _divergences()
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
                        {"field": "bin", "title": axis},
                        {"field": "tokens", "title": "tokens"},
                        {"field": "p5", "format": ".2g", "title": "5th percentile"},
                        {"field": "median", "format": ".2g", "title": "median"},
                        {"field": "p95", "format": ".2g", "title": "95th percentile"},
                    ],
                },
            },
        ],
    }


def _lines(values: list[dict[str, Any]], names: list[str]) -> Spec:
    return {
        "height": 300,
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 2, "point": True},
        "encoding": {
            "x": {
                "field": "from",
                "type": "quantitative",
                "scale": {"type": "log", "base": 2, "nice": False},
                "axis": {"format": "~s", "grid": False},
                "title": "tokens before it, from, log scale",
            },
            "y": {"field": "kld", **_divergences()},
            "color": colour_by("label", names),
            "strokeDash": {"field": "label", "type": "nominal", "scale": {"domain": names}},
            "tooltip": [
                {"field": "label", "title": "trial"},
                {"field": "bin", "title": "tokens before"},
                {"field": "tokens", "title": "tokens"},
                {"field": "kld", "format": ".2g", "title": "mean KLD"},
            ],
        },
    }


def _divergences() -> Spec:
    return {
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {"format": "~g", "tickCount": 6},
        "title": "KLD, nats, log scale",
    }
