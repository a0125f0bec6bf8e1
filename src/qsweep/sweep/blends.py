"""Blends of texts as people type them: ``calibration=[python_docs:0.7,python_code:0.3]``.

Hydra takes a list of choices for choices that are merged one over the other. A blend is one choice,
whose name is ``python_docs:0.7+python_code:0.3``; :mod:`hydra_plugins.qsweep_blends` makes its file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.text.blend import check_once, check_weight

GROUP = "calibration"
_AND = "+"
_EXAMPLE = "write calibration=[A:0.7,B:0.3], or calibration=[A,B] for equal shares"
# The text whose path is an option of the group.
_OWN_FILE = "file"
OF_OWN_FILE = ("path", "field")
"""What of it is."""


def with_blends_named(override: str) -> str:
    """An override whose lists of calibration texts are named as one choice each.

    >>> with_blends_named("calibration=[python_docs:0.7,python_code:0.3]")
    'calibration=python_docs:0.7+python_code:0.3'
    >>> with_blends_named("calibration=python_docs,[python_docs,python_code]")
    'calibration=python_docs,python_docs+python_code'

    Raises:
        ConfigError: A share is no number above 0, or only some texts have one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    name, _, value = override.partition("=")
    if name != GROUP or "[" not in value:
        return override
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return override
    if parsed.is_sweep_override():
        values = getattr(parsed.value(), "list", ())
    else:
        values = (parsed.value(),)
    if not any(isinstance(one, list) for one in values):
        return override
    return f"{name}={','.join(map(_choice, values))}"


def blend_config(name: str) -> dict[str, Any]:
    """The configuration file that a blend's name stands for.

    Each text's own file is put under ``blend.NAME``, with its share; how much is drawn is by default
    the most that any of them asks for.

    Raises:
        ConfigError: As :func:`with_blends_named`.
    """
    shares = _shares(name.split(_AND))
    config: dict[str, Any] = {
        "defaults": [*(f"{text}@blend.{text}" for text in shares), "_self_"],
        "blend": {text: {"share": share} for text, share in shares.items()},
        "num_samples": "${qsweep.most:num_samples}",
        "max_seq_len": "${qsweep.most:max_seq_len}",
        "seed": "${seed}",
    }
    if _OWN_FILE in shares:
        shared = {option: f"${{{GROUP}.{option}}}" for option in OF_OWN_FILE}
        config |= {"path": "???", "field": "text"}
        config["blend"][_OWN_FILE] |= shared
    return config


def most(option: str, group: Mapping[str, Any]) -> Any:
    """The largest value that an option has among the texts of a blend; None where none has it."""
    values = [spec.get(option) for spec in group["blend"].values()]
    return max((value for value in values if value is not None), default=None)


def _choice(value: Any) -> str:
    if not isinstance(value, list):
        return _text(value)
    words = [_text(one) for one in value]
    shares = _shares(words)
    # One alone is what it is, whatever its share. An exponent's plus would pass for another text.
    words = [word.replace("e+", "e").replace("E+", "e") for word in words]
    return _AND.join(words) if len(words) > 1 else next(iter(shares))


def _text(value: Any) -> str:
    # A text in quotes is an object of the parser's.
    return "".join(str(getattr(value, "text", value)).split())


def _shares(words: Iterable[str]) -> dict[str, float]:
    pairs: Sequence[tuple[str, str, str]] = [word.partition(":") for word in words]
    if not pairs or not all(text for text, _, _ in pairs):
        raise ConfigError(f"calibration: a blend names texts; {_EXAMPLE}")
    if len({colon for _, colon, _ in pairs}) > 1:
        without = next(text for text, colon, _ in pairs if not colon)
        raise ConfigError(f"calibration: {without} has no share, others have; {_EXAMPLE}")
    seen: set[str] = set()
    found = {}
    for text, colon, weight in pairs:
        check_once(text, seen)
        try:
            found[text] = float(weight) if colon else 1.0
        except ValueError:
            raise ConfigError(
                f"calibration: {text}:{weight}: a share is a number above 0; {_EXAMPLE}"
            ) from None
        check_weight(text, found[text])
    return found
