"""The typed configuration of a trial. Below this file nothing knows Hydra or OmegaConf."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from qsweep.base.config_files import group_choices
from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.base.names import absolute_path, folder_name
from qsweep.base.remote_settings import RemoteSettings
from qsweep.base.schema import build, locate, nearest
from qsweep.base.secrets import hidden_tree
from qsweep.evaluate.until import parse_until
from qsweep.evaluate.verdicts import SILENT_KLD
from qsweep.formats.kv_cache.spec import KVCache, kv_cache
from qsweep.formats.numbers import Int, NumberFormat
from qsweep.launch import Launcher
from qsweep.models.settings import DType, ModelConfig
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.quantizers.protocol import Quantizer
from qsweep.sweep.calibration import (
    CalibrationConfig,
    calibration_config,
    without_texts_sampling,
)
from qsweep.text.corpus import CorpusConfig
from qsweep.text.windows import (
    CONVERSATIONS,
    PRESET_ALIASES,
    PRESETS,
    preset_name,
    with_preset_names,
)
from qsweep.tracking import Tracker

# What concerns a sweep as a whole, and cannot differ between its trials.
SWEEP_WIDE = (
    *("sweep", "outputs_dir", "n_jobs", "timeout_s", "silent_kld", "seeds"),
    *("store", "launch", "tracking"),
)
# What a quantizer must have, beside its fields.
_QUANTIZERS_OWN = (
    *("method", "backend", "uses_calibration"),
    *("options", "version", "check", "quantize"),
)
# Rules that are longer are counted in a name, with the first digits of a hash that tells them apart.
_LONGEST_RULES = 40
# The backend that a method's name alone means, as in conf/quant; one of another is named.
_USUAL_BACKEND = {"rtn": "qsweep", "gptq": "native", "awq": "native"}


@dataclass(frozen=True)
class EvalConfig:
    """What is measured, and by which presets of the protocol.

    ``context``, ``stride`` and ``max_windows`` override the presets', for quick looks; the numbers
    are then not those of the named preset and say so in their facts.

    ``until`` is when a quantized model's interval is narrow enough, so that no more windows are read
    (:mod:`qsweep.evaluate.until`); None: all are.

    ``tasks`` are names of tasks and suites, or paths of users' own; ``limit``, ``num_fewshot``,
    ``batch_size``, ``chat_template`` and ``unsafe_code`` concern them alone; ``samples``, ``steps``
    and ``max_new_tokens`` only those with long answers.
    """

    presets: tuple[str, ...] = ("paper",)
    primary: str | None = None
    divergence: bool = True
    noise_floor: bool = True
    context: int | None = None
    stride: int | None = None
    max_windows: int | None = None
    until: str | None = None
    dtype: DType = "auto"
    speed: bool = False
    kld_native: bool = False
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | Literal["auto"] = "auto"
    chat_template: bool = False
    unsafe_code: bool = False
    samples: int = 4
    steps: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self):
        names = tuple(dict.fromkeys(map(preset_name, self.presets)))
        object.__setattr__(self, "presets", names)  # frozen
        if not self.presets:
            raise ConfigError("eval.presets: name at least one of " + ", ".join(PRESETS))
        for preset in self.presets:
            if preset not in PRESETS:
                raise ConfigError(
                    f"eval.presets: no preset {preset!r}{nearest(preset, (*PRESETS, *PRESET_ALIASES))}"
                )
        counts = ("context", "stride", "max_windows", "limit", "batch_size")
        for name in (*counts, "samples", "steps", "max_new_tokens"):
            value = getattr(self, name)
            if value not in (None, "auto") and value < 1:
                raise ConfigError(f"eval.{name}={value}: must be at least 1")
        if self.until is not None:
            rule = parse_until(self.until)
            if rule.figure == "kld" and not self.divergence:
                raise ConfigError(f"eval.until={rule}: set eval.divergence=true, which measures it")
            object.__setattr__(self, "until", str(rule))
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"eval.num_fewshot={self.num_fewshot}: must be at least 0")

    def presets_for(self, corpus: CorpusConfig) -> tuple[str, ...]:
        """What a text is cut by: conversations are whole, whichever presets others have."""
        return (CONVERSATIONS.name,) if corpus.answers else self.presets


@dataclass(frozen=True)
class TrialConfig:
    """One resolved configuration: what is quantized, how, and what is measured on it."""

    model: ModelConfig
    quant: Quantizer
    calibration: CalibrationConfig
    corpora: tuple[CorpusConfig, ...]
    eval: EvalConfig
    device: str
    format: NumberFormat = field(compare=False, hash=False, kw_only=True)
    """As chosen; the quantizer has it, too, if it makes several."""
    resolved: dict[str, Any] = field(compare=False, hash=False)
    """The mapping this was made from, for the trial's own process."""
    written: dict[str, Any] = field(compare=False, hash=False)
    """The same for records: interpolations of the environment, and no password."""
    kv_cache: KVCache = KVCache()
    """What keys and values are stored as in a further run of each measurement."""

    @property
    def elsewhere(self) -> bool:
        """Whether its jobs run on other machines, which may have GPUs where this one has none."""
        target = _group(self.resolved, "launch").get("_target_")
        return bool(target) and getattr(locate(str(target), "launch._target_"), "elsewhere", False)

    @property
    def primary(self) -> str:
        """The corpus that verdict and quality rest on."""
        return self.eval.primary or self.corpora[0].name

    @property
    def name(self) -> str:
        """Short and readable: ``pocket gptq 4-bit g128``."""
        return f"{self.model.name} {describe(self.quant)}"


@dataclass(frozen=True)
class SweepConfig:
    """What concerns the sweep as a whole and no single number in it."""

    name: str | None
    outputs_dir: Path
    n_jobs: int | Literal["auto"]
    timeout_s: float | None
    silent_kld: float = SILENT_KLD
    store: RemoteSettings = RemoteSettings()
    """Where a copy of the store lies that other machines share."""
    launcher: Any = None
    """A :class:`~qsweep.launch.Launcher`."""
    tracker: Any = None
    """A :class:`~qsweep.tracking.Tracker`."""

    def __post_init__(self):
        if self.n_jobs != "auto" and self.n_jobs < 1:
            raise ConfigError(f"n_jobs={self.n_jobs}: a number from 1, or auto")
        # NaN compares with nothing, and a wait for ever is what null says.
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise ConfigError(f"timeout_s={self.timeout_s}: seconds above 0, or null")
        if not 0 <= self.silent_kld < math.inf:
            raise ConfigError(f"silent_kld={self.silent_kld}: nats from 0; 0: rank all")


def trial_config(resolved: Mapping[str, Any]) -> TrialConfig:
    """Validate one composed configuration.

    Raises:
        ConfigError: one line that names the option and, for a typo, the nearest right word.
    """
    corpora = _corpora(_group(resolved, "corpus"))
    number = number_format(resolved.get("format"))
    written = getattr(resolved, "written", None) or hidden_tree(resolved)
    cache = kv_cache(resolved.get("kv_cache"))
    quant = quantizer(_group(resolved, "quant"), number)
    resolved, written = (
        {
            **with_preset_names(_with_rules_in_order(config, quant)),
            "kv_cache": str(cache),
            "calibration": without_texts_sampling(config.get("calibration")),
        }
        for config in (resolved, written)
    )
    trial = TrialConfig(
        model=build(ModelConfig, _group(resolved, "model"), "model"),
        quant=quant,
        calibration=calibration_config(_group(resolved, "calibration")),
        corpora=corpora,
        eval=build(EvalConfig, _group(resolved, "eval"), "eval"),
        device=check_device(str(resolved.get("device", "auto"))),
        format=number,
        resolved=resolved,
        written=written,
        kv_cache=cache,
    )
    names = [c.name for c in corpora]
    if trial.primary not in names:
        raise ConfigError(
            f"eval.primary={trial.primary}: not among the corpora{nearest(trial.primary, names)}"
        )
    return trial


def own_config(trial: TrialConfig) -> dict[str, Any]:
    """What a trial's configuration says of itself: all but what concerns the sweep as a whole."""
    return {name: value for name, value in trial.resolved.items() if name not in SWEEP_WIDE}


def _with_rules_in_order(config: Mapping[str, Any], quant: Quantizer) -> Mapping[str, Any]:
    # Of several rules the first counts, and files of JSON have their keys sorted.
    rules = quant.options().get("rules")
    if not rules or not isinstance(config.get("quant"), Mapping):
        return config
    return {**config, "quant": {**config["quant"], "rules": rules}}


def sweep_config(resolved: Mapping[str, Any], name: str | None = None) -> SweepConfig:
    """The part of a composed configuration that concerns the sweep. Raises ConfigError.

    ``name`` is what the sweep is called, for launchers that want to know it.
    """
    outputs = resolved.get("outputs_dir", "outputs")
    if not isinstance(outputs, str) or not outputs.strip() or "\0" in outputs:
        raise ConfigError(f"outputs_dir={outputs}: a folder, which is made if it is not there")
    given = resolved.get("sweep")
    values = {
        "name": None if given is None else folder_name(given, "sweep"),
        "outputs_dir": absolute_path(outputs, "outputs_dir"),
        "n_jobs": resolved.get("n_jobs", "auto"),
        "timeout_s": resolved.get("timeout_s"),
        "silent_kld": resolved.get("silent_kld", SILENT_KLD),
    }
    own = {"n_jobs": values["n_jobs"], "outputs_dir": values["outputs_dir"]}
    if name is not None:
        own["sweep"] = name
    return replace(
        build(SweepConfig, values, ""),
        store=build(RemoteSettings, _store(resolved), "store"),
        launcher=component(Launcher, _group(resolved, "launch"), "launch", **own),
        tracker=component(Tracker, _group(resolved, "tracking"), "tracking"),
    )


def _store(resolved: Mapping[str, Any]) -> Mapping[str, Any]:
    values = resolved.get("store") or {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"store={values}: give store.remote=URL")
    return values


def component(kind: type, values: Mapping[str, Any], group: str, **sweeps: Any) -> Any:
    """What a group's ``_target_`` names, made with the group's other values as its options.

    Of ``sweeps``, values of the sweep, it gets those that it has a field for and no value of its own.

    Raises:
        ConfigError: there is no ``_target_``, an option is wrong, or it is not of this kind.
    """
    if not (target := values.get("_target_")):
        raise ConfigError(f"{group}: no _target_; choose one with {group}=NAME")
    cls = locate(str(target), f"{group}._target_")
    if inspect.isabstract(cls):
        raise ConfigError(f"{group}._target_: {target} is only what others are derived from")
    fields = {name: value for name, value in sweeps.items() if name in _fields_of(cls)}
    own = {str(name): value for name, value in values.items() if name != "_target_"}
    made: Any = build(cls, fields | own, group)
    if not isinstance(made, kind):
        raise ConfigError(
            f"{group}._target_: {target} is no {kind.__name__}; {kind.__module__} says what one is"
        )
    return made


def _fields_of(cls: Any) -> Mapping[str, Any]:
    return getattr(cls, "__dataclass_fields__", {})


def check_one_sweep(configs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse trials of one sweep that differ in what concerns the whole of it. Raises ConfigError."""
    for name in SWEEP_WIDE:
        if any(config.get(name) != configs[0].get(name) for config in configs):
            raise several_values(name)


def check_attached(config: SweepConfig) -> None:
    """Refuse to leave jobs to others where their results decide on the next. Raises ConfigError."""
    if getattr(config.launcher, "detach", False):
        raise ConfigError("launch.detach: a search waits for results to choose by; leave it out")


def several_values(name: str) -> ConfigError:
    """What is wrong where one of ``SWEEP_WIDE`` is varied within a sweep."""
    return ConfigError(
        f"{name}: a sweep has one value of it, and here are several; give one, or run a command "
        "for each; one value with commas in it stands in quotes, 'NAME=\"1,2\"'"
    )


def _group(resolved: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = resolved.get(name)
    if not isinstance(values, Mapping):
        problem = "nothing is chosen" if values is None else f"{values!r} is no choice"
        raise ConfigError(f"{name}: {problem}; choose with {name}=NAME (qsweep --help)")
    return values


def number_format(values: Mapping[str, Any] | None) -> NumberFormat:
    """The number format that ``format`` describes; integers where a configuration is of before it."""
    if values is None:
        return Int()
    made: NumberFormat = component(NumberFormat, _group({"format": values}, "format"), "format")
    return made


def quantizer(values: Mapping[str, Any], number: NumberFormat | None = None) -> Quantizer:
    """The quantizer that ``quant`` describes.

    ``_target_`` names its class; where there are several ``backends``, ``backend`` names one. It is
    given the number format if it has a field ``format``.
    """
    selecting = ("_target_", "backend", "backends")
    fields = {str(k): v for k, v in values.items() if k not in selecting}
    target = values.get("_target_")
    if backends := values.get("backends"):
        if not isinstance(backends, Mapping):
            raise ConfigError(f"quant.backends={backends}: must be a mapping of names to classes")
        backend = str(values.get("backend"))
        if backend not in backends:
            raise ConfigError(
                f"quant.backend={backend}: no such backend{nearest(backend, backends)}"
            )
        target = backends[backend]
    if not target:
        raise ConfigError("quant: no _target_; choose one with quant=NAME")
    cls = locate(str(target), "quant._target_")
    known = {*dir(cls), *cls.__dataclass_fields__}  # type: ignore[attr-defined]
    if lacking := [name for name in _QUANTIZERS_OWN if name not in known]:
        raise ConfigError(
            f"quant._target_: {target} is no Quantizer, it has no {', '.join(lacking)}; "
            "qsweep.quantizers.protocol says what one is"
        )
    if "env" not in known:
        # It works in qsweep's own environment, and has nothing to choose.
        fields.pop("env", None)
    if "format" in _fields_of(cls) and number is not None:
        fields["format"] = number
    return build(cls, fields, "quant")  # type: ignore[return-value]


def describe(quant: Quantizer) -> str:
    """A quantizer in a few words, from its effective options."""
    if isinstance(quant, ExistingArtifact):
        return quant.label
    options = quant.options()
    words = ["gptaq" if options.get("gptaq_alpha") else quant.method]
    if (named := options.get("type") or options.get("format")) is not None:
        words.append(str(named))
    elif options.get("bits"):
        words.append(f"{options['bits']}-bit")
    group = options.get("group_size")
    if group is not None and "format" not in options:
        words.append("channel" if group == -1 else f"g{group}")
    if group not in (None, -1) and not (
        options.get("act_group_aware", True) or options["desc_act"]
    ):
        words.append("plain")  # columns as they stand, which is nobody's default
    words += [w for w in ("desc_act", "imatrix", "double_quant") if options.get(w)]
    if (share := options.get("smoothquant")) is not None:
        words.append(f"smoothquant {share:g}")
    if (held := options.get("container")) is not None:
        words.append(str(held))
    if rules := options.get("rules"):
        told = " ".join(rules)
        counted = f"{len(rules)} rules {key_of(rules)[:4]}"
        words.append(told if len(told) <= _LONGEST_RULES else counted)
    if (export := options.get("export")) is not None:
        words.append(str(export))
    if quant.backend != _USUAL_BACKEND.get(quant.method, quant.backend):
        # Rows of one method by several libraries must be told apart.
        words.append(f"· {quant.backend}")
    return " ".join(words)


def check_device(device: str) -> str:
    """Accept auto, cpu, cuda and cuda:N. Raises ConfigError for anything else."""
    kind, _, index = device.partition(":")
    if device in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit()):
        return device
    raise ConfigError(
        f"device={device}: not a device{nearest(kind, ('auto', 'cpu', 'cuda', 'cuda:0'))}"
    )


def _corpora(values: Mapping[str, Any]) -> tuple[CorpusConfig, ...]:
    # Each choice of the group adds a mapping under its own name; what `corpus=file` takes as
    # `corpus.path` are plain values beside them.
    chosen = {name: spec for name, spec in values.items() if isinstance(spec, Mapping)}
    if not chosen:
        raise ConfigError("corpus: none chosen; for example corpus=python_docs")
    for name, spec in chosen.items():
        if "source" not in spec:
            there = group_choices()["corpus"]
            raise ConfigError(
                f"corpus.{name}: has no source; choose it with corpus=[{name}]"
                if name in there
                else f"corpus.{name}: no such corpus{nearest(str(name), there)}"
            )
    plain = ("path", "field", "assistant_only")
    for name in values.keys() - chosen.keys() - {*plain}:
        raise ConfigError(f"corpus.{name}: no such option{nearest(str(name), plain)}")
    return tuple(
        build(CorpusConfig, {"name": name, **spec}, f"corpus.{name}")
        for name, spec in chosen.items()
    )
