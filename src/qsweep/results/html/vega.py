"""Vega-Lite, as vl-convert ships it: one script for the page, and pictures without a browser."""

import contextlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any

from qsweep.base.files import write_bytes
from qsweep.results.html.panel import Spec, tidy
from qsweep.results.html.theme import LIGHT, config, resolved

VEGA_LITE = "6.4"


def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines ``vegaEmbed``.

    Putting it together takes seconds, so it is kept in the user's cache folder.
    """
    version = importlib.metadata.version("vl-convert-python")
    cached = _cache() / f"vega-lite-{VEGA_LITE}-vl-convert-{version}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = cached.read_text(encoding="utf-8")
        if text.endswith(_END):
            return text
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;", vl_version=VEGA_LITE)
    # Inside a page's script element, only this could end it.
    text = "(()=>{" + bundle.replace("</script", "<\\/script") + _END
    with contextlib.suppress(OSError):
        write_bytes(cached, text.encode())
    return text


def svg(spec: Spec, width: int = 900) -> str:
    """A specification as a picture in the light scheme, on white."""
    import vl_convert

    fixed = {**resolved(tidy(spec)), "width": width, "background": LIGHT["--paper"]}
    return str(vl_convert.vegalite_to_svg(fixed, vl_version=VEGA_LITE, config=_light_config()))


def png(spec: Spec, width: int = 900) -> bytes:
    """The same as pixels, for where a picture of vectors is not shown."""
    import vl_convert

    fixed = resolved(tidy(spec)) | {"background": LIGHT["--paper"]}
    fixed |= {} if "vconcat" in fixed else {"width": width}
    return bytes(
        vl_convert.vegalite_to_png(fixed, vl_version=VEGA_LITE, config=_light_config(), scale=1.5)
    )


def _light_config() -> dict[str, Any]:
    return {k: v for k, v in resolved(config()).items() if k != "background"}


_END = "\n})();\n"


def _cache() -> Path:
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "qsweep"
