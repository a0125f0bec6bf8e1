"""What a trial is, as names and values: all of its resolved configuration that made its figures."""

from collections.abc import Mapping
from typing import Any

from qsweep.base.contents import is_number
from qsweep.base.keys import key_of
from qsweep.base.schema import flat
from qsweep.formats.kv_cache.types import NONE
from qsweep.results.record import Record

# What concerns the sweep as a whole, or how a trial was found: no figure depends on it, and a
# tracker's or a study's address may hold a password.
_NOT_A_TRIALS = (
    "sweep",
    "outputs_dir",
    "n_jobs",
    "timeout_s",
    "silent_kld",
    "store",
    "launch",
    "tracking",
    "search",
    "hydra",
)
# A model is told by its name (qsweep.results.model_names), whatever place it came from.
_NAMES_A_MODEL = ("model.name", "model.path", "model.repo", "model.hint", "model.fallback")
# What a trial was made on is no part of its key; where that moves figures, how they were measured says so.
_NO_SETTING = "device"
# Whether its layers are held one at a time changes no figure.
_OF_NO_EFFECT = "model.stream"
OF_ARTIFACTS = "eval.until"
"""What a reference has no trait of: it is measured on all windows, whatever its artifacts stop by."""
# What a calibration has beside its text.
_SAMPLING = ("num_samples", "max_seq_len", "seed")


def traits(record: Record) -> dict[str, Any]:
    """Every option by its dotted name, from the most telling one on.

    Of the quantizer its *effective* options, as ``quant.bits``, the number format's among them; of the calibration nothing where the
    quantizer sees no text. Options of which others are made (``bits: 4`` at the top of the
    configuration) are left out.
    """
    calibrated = record.calibration
    found: dict[str, Any] = {"model": record.model, "calibration": calibrated}
    found["quant.backend"] = record.backend
    found |= {f"quant.{name}": value for name, value in record.options.items()}
    quant = record.config.get("quant")
    if "content" in record.options and isinstance(quant, Mapping):
        # An artifact that existed: its place says more than the hash of its content.
        found |= {"quant.content": None, "quant.path": quant.get("path")}
    config = {str(k): v for k, v in record.config.items()}
    corpora = config.get("corpus")
    if isinstance(corpora, Mapping):
        found["corpus"] = [name for name, spec in corpora.items() if isinstance(spec, Mapping)]
    for name, value in flat(config):
        group, _, rest = name.partition(".")
        # As `bits` for a quantizer's, so is `corpus.path` the path of the text `corpus.file`.
        shorthand = (not rest and name not in ("device", "kv_cache")) or (
            group == "corpus" and "." not in rest
        )
        if shorthand or group in (*_NOT_A_TRIALS, "quant", "format") or name in _NAMES_A_MODEL:
            continue
        if group == "calibration" and (calibrated is None or rest == "name"):
            continue
        if name == "kv_cache" and value == NONE:
            continue  # as before there were others
        if name == _OF_NO_EFFECT or (name == OF_ARTIFACTS and record.reference):
            continue
        found[name] = value
    return found


def implied_by(name: str) -> str | None:
    """The trait that names what a trait describes: a calibration's name stands for its text."""
    group, _, rest = name.partition(".")
    named = ("model", "corpus") if rest in _SAMPLING else ("model", "corpus", "calibration")
    return group if rest and group in named else None


def is_draw(name: str) -> bool:
    """Whether a trait only decides which of many equal possibilities is drawn."""
    return name.rpartition(".")[2] == "seed"


def seed_of(record: Record) -> int | None:
    """What draws a trial's calibration text, else its quantizer; None where nothing is drawn."""
    return next(iter(drawn_by(record)), None)


def drawn_by(record: Record) -> tuple[int, ...]:
    """Equal for the same draw: the seed of the calibration text, and the quantizer's if that is another."""
    text = record.config.get("calibration") if record.calibration is not None else None
    drawn: list[Any] = [text.get("seed")] if isinstance(text, Mapping) else []
    drawn += [record.options[name] for name in sorted(record.options) if is_draw(name)]
    return tuple(dict.fromkeys(int(value) for value in drawn if is_number(value)))


def seeds_asked(record: Record) -> tuple[int, ...]:
    """The seeds that ``seeds`` asked for, of which the record is one draw or all; none without it."""
    asked = record.config.get("seeds")
    return tuple(filter(is_number, asked)) if isinstance(asked, (list, tuple)) else ()


def setting(record: Record) -> str:
    """Equal for trials that differ in nothing but the draw; empty where there is none to differ in.

    Only what the quantizer itself depends on counts, and how it was measured.
    """
    found = traits(record)
    if not any(is_draw(name) and value is not None for name, value in found.items()):
        return ""
    kept = {n: value for n, value in found.items() if not is_draw(n) and n != _NO_SETTING}
    # What was read of a file has its names in another order.
    return key_of([record.model_hash, record.method, kept])
