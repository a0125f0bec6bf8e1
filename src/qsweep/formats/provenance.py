"""Who made an artifact, of which model and how: what it says of itself, believed in nothing else.

A model card's front matter (https://huggingface.co/docs/hub/model-cards), ``quantization_config``,
GGUF's ``general.*`` keys (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and the
``__metadata__`` of safetensors. Nothing in them is run or rendered; it is cut to a line.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.errors import QsweepError
from qsweep.base.files import open_regular
from qsweep.base.manifest import MANIFEST
from qsweep.formats.artifact_files import is_stored
from qsweep.formats.weights import find_settings
from qsweep.models.facts import read_config
from qsweep.models.files import saved_weight_files

# No front matter is longer; what a card says after it is for people.
_CARD_BYTES = 65536
_MOST_BRACKETS = 500
_LONGEST = 120
_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")
_HUB = re.compile(r"^https?://huggingface\.co/([\w.-]+/[\w.-]+)/?$")


@dataclass(frozen=True)
class Provenance:
    """What an artifact says of itself.

    Attributes:
        method: Its ``quant_method``, as ``gptq``; None where it has none.
        options: As far as it states them: ``bits``, ``group_size``, ``desc_act``, ``sym``, ``type``.
        producer: The library that wrote it, with its version.
        quantized_by: A person or an organization.
        base_models: Repositories that it says it was made from, the most certain first.
        license: As its card or file names it.
    """

    method: str | None = None
    options: Mapping[str, Any] | None = None
    producer: str | None = None
    quantized_by: str | None = None
    base_models: tuple[str, ...] = ()
    license: str | None = None

    def details(self) -> dict[str, Any]:
        """What of it a record tells, beside the options."""
        found = {
            "producer": self.producer,
            "quantized_by": self.quantized_by,
            "base_models": list(self.base_models),
            "license": self.license,
        }
        return {name: value for name, value in found.items() if value}


def read_provenance(place: Path) -> Provenance:
    """What a GGUF file, a checkpoint or a store's entry says of itself; nothing that cannot be read.

    Raises:
        QsweepError: Its settings or metadata are damaged.
    """
    if is_stored(place):
        return _of_the_store(place)
    card = read_card(place / "README.md" if place.is_dir() else place.parent / "README.md")
    if place.is_file():
        return _of_gguf(place, card)
    return _of_checkpoint(place, card)


def read_card(file: Path) -> dict[str, Any]:
    """The front matter of a model card, between its first two lines of dashes; empty if it has none.

    Only so many bytes are read as any has, and YAML's safe loader makes plain values of them.
    """
    import yaml

    try:
        with open_regular(file) as stream:
            text = stream.read(_CARD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return {}
    found = re.match(r"\ufeff?\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    # Lists in lists take the loader seconds, and are no model's description.
    if found is None or found[1].count("[") + found[1].count("{") > _MOST_BRACKETS:
        return {}
    try:
        content = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _of_the_store(place: Path) -> Provenance:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        with open_regular(place / MANIFEST) as stream:
            identity = json.loads(stream.read()).get("identity") or {}
        options = identity.get("options") or {}
        return Provenance(
            _line(identity.get("method")), _plain(options), _line(f"qsweep {identity['backend']}")
        )
    return Provenance()


def _of_checkpoint(place: Path, card: Mapping[str, Any]) -> Provenance:
    config = read_config(place)
    settings = find_settings(place) or {}
    names = [config.get("_name_or_path"), _mapping(settings.get("meta")).get("base_model")]
    return Provenance(
        method=_line(settings.get("quant_method")),
        options=stated_options(settings),
        producer=_producer(settings) or _written_by(place),
        quantized_by=_line(card.get("quantized_by")),
        base_models=_repos([*_several(card.get("base_model")), *names]),
        license=_line(card.get("license")),
    )


def _of_gguf(file: Path, card: Mapping[str, Any]) -> Provenance:
    from qsweep.formats.gguf.facts import read_gguf_facts
    from qsweep.formats.gguf.reader import read_gguf
    from qsweep.formats.gguf.types import FILE_TYPES

    facts = read_gguf_facts(read_gguf(file))
    stated = None if facts.file_type is None else FILE_TYPES.get(facts.file_type)
    options = {"type": facts.file_type, "bits": None if stated is None else stated.bits}
    return Provenance(
        method="gguf",
        options=_plain(options),
        quantized_by=_line(facts.quantized_by or card.get("quantized_by")),
        base_models=_repos(
            [*(m.repository for m in facts.base_models), *_several(card.get("base_model"))]
        ),
        license=_line(facts.license or card.get("license")),
    )


def stated_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that rows are told apart by, as far as a ``quantization_config`` states them.

    >>> stated_options({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True})
    {'bits': 4, 'group_size': 64, 'sym': False}
    >>> stated_options({"quant_method": "bitsandbytes", "load_in_4bit": True,
    ...                 "bnb_4bit_quant_type": "nf4"})
    {'type': 'nf4', 'bits': 4}
    """
    method = settings.get("quant_method")
    if method == "compressed-tensors":
        return _of_schemes(settings)
    if method == "bitsandbytes":
        four = settings.get("load_in_4bit") or settings.get("_load_in_4bit")
        kind = settings.get("bnb_4bit_quant_type", "fp4") if four else "int8"
        return _plain({"type": kind, "bits": 4 if four else 8})
    if method in ("fp8", "fbgemm_fp8", "mxfp4"):
        return {"type": "mxfp4", "bits": 4} if method == "mxfp4" else {"type": "fp8", "bits": 8}
    inner = _mapping(_mapping(settings.get("quant_config")).get("weight_quant_params"))
    asymmetric = settings.get("zero_point")
    found = {
        "bits": settings.get("bits", settings.get("w_bit", inner.get("nbits"))),
        "group_size": settings.get(
            "group_size", settings.get("q_group_size", inner.get("group_size"))
        ),
        "desc_act": settings.get("desc_act"),
        "sym": settings.get("sym", None if asymmetric is None else not asymmetric),
        "type": settings.get("quant_algo"),
    }
    return _plain(found)


def _of_schemes(settings: Mapping[str, Any]) -> dict[str, Any]:
    groups = settings.get("config_groups")
    schemes = [
        group["weights"]
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    if not schemes or any(scheme != schemes[0] for scheme in schemes):
        return {"type": "mixed"} if schemes else {}
    (one, bits) = schemes[0], schemes[0].get("num_bits")
    named = re.match(r"nvfp4|mxfp\d", str(settings.get("format") or ""))
    kind = named[0] if named else f"fp{bits}" if one.get("type") == "float" else None
    channel = one.get("strategy") in ("channel", "tensor")
    return _plain(
        {
            "type": kind,
            "bits": bits,
            "group_size": -1 if channel and kind is None else one.get("group_size"),
            "sym": one.get("symmetric") if kind is None else None,
        }
    )


def _producer(settings: Mapping[str, Any]) -> str | None:
    """The tool that a ``quantization_config`` names: ``gptqmodel:7.6.0``, ``auto-round 0.9``."""
    named = [_mapping(settings.get("meta")).get("quantizer"), settings.get("quantizer")]
    for value in named:
        if value:
            return _line(" ".join(map(str, value)) if isinstance(value, list) else value)
    if settings.get("autoround_version"):
        return _line(f"auto-round {settings['autoround_version']}")
    if settings.get("quant_method") == "compressed-tensors" and settings.get("version"):
        return _line(f"compressed-tensors {settings['version']}")
    producer = settings.get("producer")
    if isinstance(producer, Mapping):
        return _line(f"{producer.get('name')} {producer.get('version') or ''}")
    return _line(settings.get("provider"))


def _written_by(place: Path) -> str | None:
    """What the metadata of its safetensors names beside their framework."""
    try:
        file = saved_weight_files(place)[0]
        with open_regular(file) as stream:
            length = min(int.from_bytes(stream.read(8), "little"), 100_000_000)
            metadata = json.loads(stream.read(length)).get("__metadata__") or {}
    except (QsweepError, OSError, ValueError, AttributeError, RecursionError):
        return None
    named = (metadata.get(key) for key in ("quantizer", "producer", "generator", "software"))
    return next((line for line in map(_line, named) if line), None)


def _repos(names: Iterable[Any]) -> tuple[str, ...]:
    """Those of the names that are a hub's repositories, each once."""
    found: dict[str, None] = {}
    for name in names:
        if isinstance(name, str):
            linked = _HUB.match(name.strip())
            text = linked[1] if linked else name.strip()
            if _REPO.match(text) and len(text) <= _LONGEST and not Path(text).exists():
                found.setdefault(text)
    return tuple(found)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _several(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list) else [value]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("type", "bits", "group_size", "desc_act", "sym")
    return {
        name: _line(options[name]) if isinstance(options[name], str) else options[name]
        for name in shown
        if isinstance(options.get(name), (bool, int, str))
    }


def _line(value: Any) -> str | None:
    """A text as one printable line, cut where it is longer than any name."""
    if isinstance(value, list):
        # Of texts alone: aliases of YAML make gigabytes of a few nested lists.
        value = ", ".join(item for item in value[:3] if isinstance(item, str))
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        return None
    text = "".join(c if c.isprintable() else " " for c in str(value)[: 4 * _LONGEST])
    text = " ".join(text.split())
    return (text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…") or None
