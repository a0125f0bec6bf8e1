"""Colours and shapes, the same in every panel.

Hues are Okabe and Ito's, which people with any common colour blindness tell apart; a shape repeats
what a colour says. A specification names colours as CSS variables (``var(--ink)``), which the page
replaces by those of its light or dark scheme, and :func:`resolved` by the light ones.
"""

from collections.abc import Sequence
from typing import Any

from qsweep.evaluate.verdicts import BEYOND, BOUNDS

# Light scheme; style.css holds the same names for both schemes.
LIGHT = {
    "--ink": "#1b1f24",
    "--muted": "#5b6672",
    "--grid": "#dfe3e8",
    "--paper": "#ffffff",
    "--blue": "#0072b2",
    "--orange": "#b85c00",
    "--green": "#00795a",
    "--pink": "#a8497f",
    "--sky": "#2b87c4",
    "--yellow": "#8a7400",
    "--band-yes": "#e3f3ec",
    "--band-usually": "#eef5e0",
    "--band-marginal": "#fdf3d8",
    "--band-problematic": "#fae6df",
    "--heat-low": "#f7fbff",
    "--heat-high": "#6baed6",
    "--bits-low": "#cde0f2",
    "--bits-high": "#08306b",
}
# The first word of a series decides, so that a method looks the same on every page.
_SERIES = {
    "gptq": ("var(--blue)", "circle"),
    "awq": ("var(--orange)", "square"),
    "gguf": ("var(--green)", "diamond"),
    "rtn": ("var(--pink)", "triangle-up"),
    "reference": ("var(--ink)", "cross"),
}
_OTHERS = (
    ("var(--sky)", "triangle-right"),
    ("var(--yellow)", "triangle-left"),
    ("var(--muted)", "stroke"),
)
BANDS = (*((word, bound) for bound, word in BOUNDS), (BEYOND, None))


def series_scales(names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Colour and shape scales for series, by name."""
    taken: set[tuple[str, str]] = set()
    chosen = []
    for name in names:
        style = _SERIES.get(name.split(" ")[0])
        if style is None or style in taken:
            free = [s for s in (*_OTHERS, *_SERIES.values()) if s not in taken]
            style = free[0] if free else _OTHERS[len(taken) % len(_OTHERS)]
        taken.add(style)
        chosen.append(style)
    return (
        {"domain": names, "range": [colour for colour, _ in chosen]},
        {"domain": names, "range": [shape for _, shape in chosen]},
    )


def palette(count: int) -> list[str]:
    """Colours for lines that are no methods."""
    hues = ["--blue", "--orange", "--green", "--pink", "--sky", "--yellow", "--muted", "--ink"]
    return [f"var({hues[i % len(hues)]})" for i in range(count)]


def colour_by(field: str, names: Sequence[str]) -> dict[str, Any]:
    """The colour of a line or of points by what they are called, with a legend."""
    scale = {"domain": list(names), "range": palette(len(names))}
    return {"field": field, "type": "nominal", "title": None, "scale": scale}


def config() -> dict[str, Any]:
    """Vega-Lite's configuration: type, axes, legends."""
    text = {"labelColor": "var(--muted)", "titleColor": "var(--ink)", "titleFontWeight": 500}
    return {
        "background": None,
        "font": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {
            **text,
            "gridColor": "var(--grid)",
            "domainColor": "var(--muted)",
            "tickColor": "var(--muted)",
            "labelFontSize": 12,
            "titleFontSize": 12,
            "labelOverlap": "greedy",
        },
        "legend": {
            **text,
            "orient": "top",
            "labelFontSize": 12,
            "titleFontSize": 12,
            "labelLimit": 260,
            "symbolStrokeWidth": 2,
        },
        "header": {**text},
        "text": {"color": "var(--ink)", "fontSize": 12},
        "rule": {"color": "var(--ink)"},
    }


def resolved(spec: Any) -> Any:
    """A specification with the light scheme's colours in place of the variables."""
    if isinstance(spec, dict):
        return {name: resolved(value) for name, value in spec.items()}
    if isinstance(spec, list):
        return [resolved(value) for value in spec]
    if isinstance(spec, str) and spec.startswith("var("):
        return LIGHT[spec[4:-1]]
    return spec
