"""The part of a trial's configuration that says what its quantizer may see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.schema import build, nearest
from qsweep.sweep.blends import OF_OWN_FILE
from qsweep.text.blend import Blend
from qsweep.text.calibrated import Packing
from qsweep.text.corpora import MOST_TOKENS
from qsweep.text.corpus import CorpusConfig


@dataclass(frozen=True)
class CalibrationConfig:
    """The text that a quantizer may see, and how much of it.

    Attributes:
        blend: One text, or several with their shares.
        num_samples: How many samples of ``max_seq_len`` tokens are drawn, by ``seed``.
        packing: ``stream``: samples are windows at random places of the joined text. ``documents``:
            they are filled with whole documents. ``conversations``: with whole conversations in the
            model's chat template; of texts without any, with whole documents.
        all_experts: Sends every token to every expert of a mixture where statistics are gathered.
    """

    blend: Blend
    num_samples: int = 32
    max_seq_len: int = 512
    seed: int = 0
    packing: Packing = "stream"
    all_experts: bool = False

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"calibration.{name}={getattr(self, name)}: must be at least 1")
        self.blend.check_counts(self.num_samples, MOST_TOKENS // self.max_seq_len)


_OWN = tuple(name for name in CalibrationConfig.__dataclass_fields__ if name != "blend")
# A quantizer sees whole texts: what is scored of them is no matter of calibration.
_OF_MEASURING = ("assistant_only", "new_tokens")
_OF_TEXT = tuple(n for n in CorpusConfig.__dataclass_fields__ if n not in _OF_MEASURING)


def calibration_config(values: Mapping[str, Any]) -> CalibrationConfig:
    """What a resolved ``calibration`` says: a text's options beside the sampling's, or a blend.

    Raises:
        ConfigError: One line that names the option.
    """
    own = {name: value for name, value in values.items() if name in _OWN}
    rest = {name: value for name, value in values.items() if name not in _OWN}
    if "blend" not in rest:
        blend = _single(rest)
    else:
        blend = _blend(rest)
        # Of texts whose files say nothing of it, the defaults count.
        own = {name: value for name, value in own.items() if value is not None}
    return build(CalibrationConfig, {"blend": blend, **own}, "calibration")


def without_texts_sampling(values: Any) -> Any:
    """A resolved ``calibration`` whose texts, if they are several, no longer say how much is drawn.

    Each one's file says so for where it is alone; of a blend the blend's own options count.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("blend"), Mapping):
        return values
    blend = {
        name: {key: value for key, value in spec.items() if key not in _OWN}
        if isinstance(spec, Mapping)
        else spec
        for name, spec in values["blend"].items()
    }
    return {**values, "blend": blend}


def _single(values: Mapping[str, Any]) -> Blend:
    known = [*_OWN, *_OF_TEXT]
    for name in values:
        if name not in known:
            raise ConfigError(f"calibration.{name}: no such option{nearest(name, known)}")
    return Blend((build(CorpusConfig, values, "calibration"),))


def _blend(values: Mapping[str, Any]) -> Blend:
    known = ("blend", *OF_OWN_FILE, *_OWN)
    for name in values:
        if name not in known:
            raise ConfigError(
                f"calibration.{name}: no such option of a blend{nearest(name, known)}"
            )
    members = values["blend"]
    if not isinstance(members, Mapping) or not members:
        raise ConfigError("calibration.blend: names no text; choose some with calibration=[A,B]")
    texts, weights = [], []
    for name, spec in members.items():
        where = f"calibration.blend.{name}"
        if not isinstance(spec, Mapping) or "source" not in spec:
            there = [
                n
                for n, other in members.items()
                if isinstance(other, Mapping) and "source" in other
            ]
            raise ConfigError(f"{where}: no such text in this blend{nearest(str(name), there)}")
        own = {key: value for key, value in spec.items() if key not in (*_OWN, "share")}
        for option in own:
            if option not in _OF_TEXT:
                raise ConfigError(f"{where}.{option}: no such option{nearest(option, _OF_TEXT)}")
        texts.append(build(CorpusConfig, {"name": str(name), **own}, where))
        weights.append(_share(spec.get("share", 1), where))
    return Blend(tuple(texts), tuple(weights))


def _share(value: Any, where: str) -> float:
    try:
        return float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        raise ConfigError(f"{where}.share={value}: a share is a number above 0") from None
