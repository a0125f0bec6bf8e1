"""The record of a trial: everything that is known of it, from the trial to every output. Pure.

``record_file`` reads and writes it as JSON, ``columns`` names its figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qsweep.base.contents import is_number
from qsweep.evaluate.verdicts import SILENT_KLD, expected_ratio
from qsweep.formats.hardware import Card, Fit, fit
from qsweep.formats.numbers import FORMATS, NumberFormat
from qsweep.results.peer import Peer
from qsweep.results.standing import Standing
from qsweep.results.tensor_summary import TensorSummary
from qsweep.tasks.long.compare import LongFigures

Number = int | float

# What serves models to others. A quantizing library's own kernel loads an artifact too, but is not
# what one ships with.
SERVING = ("vllm", "sglang", "transformers", "llama.cpp", "ollama", "tensorrt-llm", "exllama")


class Figures(dict[str, Any]):
    """Figures by their names in ``columns``, where everything is named that may be among them."""


@dataclass(frozen=True)
class ArtifactFacts:
    """What was made: where it lies, its format, what serves it, how large it is."""

    key: str | None = None
    path: str | None = None
    format: str | None = None
    runtimes: tuple[str, ...] = ()
    size_gb: Number | None = None
    bpw: Number | None = None
    bpw_total: Number | None = None
    active_gb: Number | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept_layers(self) -> int:
        """How many linear layers stayed in 16 bits."""
        return len(self.details.get("kept_layers") or ())

    @property
    def kept_by(self) -> str:
        """Why they did, in few words: ``router, shape, quant.rules: *.o_proj``."""
        found = self.details.get("kept_by")
        return ", ".join(map(str, found)) if isinstance(found, Mapping) else ""


@dataclass(frozen=True)
class ServedRun:
    """A further run of a measurement, with more than the weights as they are served.

    Attributes:
        name: What its figures among the measurement's are called by, ``activations`` or ``kv``.
        serving: What was served, as its key has it.
        key: In the store.
        facts: How it was measured, and what was seen of what is served.
        file: The folder with its arrays.
        refused: Why it could not be run; None where it was.
    """

    name: str
    serving: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One model on one corpus by one preset.

    Attributes:
        corpus: What was read.
        preset: In which windows.
        metrics: Figures of the columns that belong to a measurement.
        primary: Whether verdict and quality of the trial rest on it.
        key: In the store.
        facts: How it was measured; equal ones may be compared (:mod:`qsweep.results.comparable`).
        verdict: Of its perplexity ratio; None where there is none.
        file: The folder with its arrays.
        reference_ppl: The reference's perplexity, where its own figures do not tell it.
        no_verdict: Why it has no verdict, where its reference cannot bear one.
        served: The runs beside that of the weights alone; None where there are none.
    """

    corpus: str
    preset: str
    metrics: Figures
    primary: bool = False
    key: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    verdict: str | None = None
    file: str | None = None
    reference_ppl: Number | None = None
    no_verdict: str | None = None
    served: tuple[ServedRun, ...] | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Corpus and preset."""
        return self.corpus, self.preset

    @property
    def overrides(self) -> Mapping[str, Any]:
        """What of the preset the configuration changed."""
        found = self.facts.get("overrides")
        return found if isinstance(found, Mapping) else {}

    @property
    def windows_cut(self) -> bool:
        """Whether fewer windows were asked for than the text has: ``eval.max_windows`` is a most."""
        most: Any = self.overrides.get("max_windows")
        whole = self.facts.get("whole")
        there = (whole if isinstance(whole, Mapping) else self.facts).get("windows")
        return is_number(most) and bool((there or most) >= most)


@dataclass(frozen=True)
class Speed:
    """What the serving kernels did: figures of the columns that belong to a timing."""

    figures: Figures


@dataclass(frozen=True, kw_only=True)
class BesideReference:
    """Answers beside the reference's; each figure is None where there is none.

    Attributes:
        retention: (score - chance) / (reference_score - chance), with its 95 % interval.
        difference: To the reference's score, with its 95 % interval.
        p: Of no difference, by ``test``, not corrected for other comparisons.
        lost: Answers that the reference alone had right; ``gained``: that the trial alone has. Of
            several draws their mean.
        flips: The share of all answers that are either, with its 95 % interval.
        changed: The share of answers by another choice, from wrong to wrong too, with its interval.
    """

    retention: Number | None = None
    retention_low: Number | None = None
    retention_high: Number | None = None
    difference: Number | None = None
    difference_low: Number | None = None
    difference_high: Number | None = None
    p: Number | None = None
    test: str | None = None
    samples: int | None = None
    lost: Number | None = None
    gained: Number | None = None
    flips: Number | None = None
    flips_low: Number | None = None
    flips_high: Number | None = None
    changed: Number | None = None
    changed_low: Number | None = None
    changed_high: Number | None = None


@dataclass(frozen=True, kw_only=True)
class TaskScore(BesideReference):
    """One task on the trial's model; figures are None where it did not run.

    Attributes:
        name: What it was asked for by.
        status: ``finished``, ``failed``, or ``partial`` where some of its parts failed.
        capability: What it is a test of.
        reason: Why it, or a part of it, did not run.
        metric: What a score is: ``acc``, ``perplexity`` and so on.
        score: With ``score_low`` and ``score_high``, its 95 % interval.
        long: What its answers suffered, if they are long ones.
    """

    name: str
    status: str
    capability: str
    reason: str | None = None
    parts: int = 1
    seconds: Number = 0.0
    keys: tuple[str, ...] = ()
    metric: str | None = None
    score: Number | None = None
    chance: Number | None = None
    reference_score: Number | None = None
    measurable: bool | None = None
    score_low: Number | None = None
    score_high: Number | None = None
    facts: Mapping[str, Any] | None = None
    long: LongFigures | None = None


@dataclass(frozen=True, kw_only=True)
class CapabilityResult(BesideReference):
    """What a trial kept of one capability, over its tasks.

    Attributes:
        measurable: Whether the reference is so far above chance that a loss could be seen.
        tasks: What it was measured by.
        at_chance: Those of them in which the reference is at chance.
        samples_needed: So many would show a loss of two points four times out of five.
    """

    measurable: bool = False
    tasks: tuple[str, ...] | None = None
    at_chance: tuple[str, ...] | None = None
    samples_needed: int | None = None


@dataclass(frozen=True)
class Worst:
    """The capability of which least was kept, and how much."""

    capability: str
    retention: Number | None = None


@dataclass(frozen=True)
class CalibrationCoverage:
    """Tokens of the calibration text that were asked for, and how many different ones there were."""

    asked: Number | None = None
    distinct: Number | None = None


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        key: Of all that determines it.
        status: ``finished``, ``failed`` or ``skipped``; ``reason`` says why it is not finished.
        name: Model, method and what sets it apart, as tables call it.
        reference: Whether it is the unquantized model.
        options: The quantizer's effective options.
        calibration: The text's name; None where the quantizer sees none.
        fidelity: ``full``, or what a search measured in its place.
        config: Its configuration, passwords left out.
        model_hash: Of the model's content; None in records of before there was one.
        dequantized_from: What the model was before, such as ``fp8 block 128x128``, where it was
            given quantized alone and its reference is what dequantizing it gives.
        capabilities: By name; None where no tasks were run.
        long: What long answers suffered, over all tasks that have any.
        tensors: How they are stored; None of the reference, and in records of before it was there.
        quantize_s: Seconds; ``shared_s`` of them in a pass that other trials share.
        implied: Whether it ran for others' sake alone: a reference, or a check's baseline.
        cached: Whether nothing of it was made in the sweep's last run.
        draws: The trials whose figures it pools, which differ in nothing but the draw; None of a
            trial.
    """

    key: str
    status: str
    name: str = "unknown"
    reference: bool = False
    model: str = "unknown"
    method: str = "unknown"
    backend: str = "unknown"
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: str | None = None
    fidelity: str = "full"
    config: Mapping[str, Any] = field(default_factory=dict)
    model_hash: str | None = None
    dequantized_from: str | None = None
    vocab_size: Number | None = None
    reason: str | None = None
    artifact: ArtifactFacts | None = None
    measurements: tuple[Measurement, ...] = ()
    tensors: TensorSummary | None = None
    speed: Speed | None = None
    tasks: tuple[TaskScore, ...] | None = None
    capabilities: Mapping[str, CapabilityResult] | None = None
    suffers_most: Worst | None = None
    long: LongFigures | None = None
    quantize_s: Number | None = None
    shared_s: Number | None = None
    calibration_tokens: CalibrationCoverage | None = None
    evaluate_s: Number | None = None
    peak_memory_gb: Number | None = None
    peak_host_memory_gb: Number | None = None
    device: str | None = None
    dtype: str | None = None
    sweep: str | None = None
    command: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    log: str | None = None
    cached: bool | None = None
    implied: bool | None = None
    seconds: Number | None = None
    started: str | None = None
    ended: str | None = None
    draws: "tuple[Record, ...] | None" = None

    @property
    def finished(self) -> bool:
        """Whether it came to its figures."""
        return self.status == "finished"

    @property
    def silent_kld(self) -> Number:
        """The divergence in nats below which nothing ranks it: the configuration's ``silent_kld``."""
        asked: Any = self.config.get("silent_kld")
        return asked if is_number(asked) else SILENT_KLD

    @property
    def existed(self) -> bool:
        """Whether its artifact was there before: somebody else's, which was only measured."""
        return self.method == "existing"

    @property
    def primary(self) -> Measurement | None:
        """The measurement that verdict and quality rest on; None if nothing was measured."""
        first = self.measurements[0] if self.measurements else None
        return next((m for m in self.measurements if m.primary), first)

    @property
    def details(self) -> Mapping[str, Any]:
        """What the quantizer tells of its artifact; nothing where there is none."""
        return {} if self.artifact is None else self.artifact.details

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What loads the artifact."""
        return () if self.artifact is None else self.artifact.runtimes

    @property
    def can_serve(self) -> bool:
        """Whether one of the artifact's runtimes is one that people deploy with."""
        return any(runtime.lower().startswith(SERVING) for runtime in self.runtimes)

    @property
    def only_own_run(self) -> str | None:
        """Why there are figures of llama.cpp's own run only; None if there are the usual ones.

        Such a trial takes no part in verdicts and comparisons: it was measured by other means, on a
        sample of windows.
        """
        return self.details.get("unexplained") if self.finished else None

    @property
    def number_format(self) -> type[NumberFormat] | None:
        """What codes mean; None where that is not known, as of others' artifacts."""
        return None if self.existed else FORMATS.get(self.options.get("format", "int"))

    def fit(self, card: Card) -> Fit:
        """How the artifact runs on a card; what is not known may run there."""
        holder = None if self.artifact is None else self.artifact.format
        number = self.number_format
        return Fit("unpacked") if number is None else fit(number, card, holder)

    @property
    def total_seconds(self) -> Number | None:
        """Seconds of quantizing and measuring together."""
        known = [value for value in (self.quantize_s, self.evaluate_s) if value is not None]
        return sum(known) if known else None

    @property
    def expected(self) -> tuple[float, float] | None:
        """The ratios that the field expects of its method; None where it names none.

        A K-quant that fell back on other types for some rows is not what its name says, so nothing
        is expected of it either; nor of a file whose ratio cannot be measured.
        """
        no_row = self.details.get("fallback") or self.details.get("unexplained")
        return None if no_row else self.expected_by_name

    @property
    def expected_by_name(self) -> tuple[float, float] | None:
        """What the field's table has for its method and bits, whatever its artifact became.

        It is of integers and of llama.cpp's types, in all layers alike.
        """
        if "format" in self.options or "rules" in self.options:
            return None
        return expected_ratio(self.method, self.options.get("type") or self.options.get("bits"))

    @property
    def model_config(self) -> Mapping[str, Any]:
        """The configuration's ``model``; nothing where the record has none."""
        model = self.config.get("model")
        return model if isinstance(model, Mapping) else {}


@dataclass(frozen=True)
class Row:
    """A record beside one of its measurements: what a table has a line for.

    Attributes:
        label: What it is called in the table, apart from all others.
        series: What it is drawn with: its method.
        noise_floor: The KLD of its reference from itself, below which one says nothing.
        suffers: Its worst capability in words.
        peer: What it is compared with at equal size, where that was looked for.
        standing: The ranks that it may have, where that was looked for.
    """

    record: Record
    measurement: Measurement | None = None
    label: str = ""
    series: str = ""
    noise_floor: float | None = None
    suffers: str = ""
    peer: Peer | None = None
    standing: Standing | None = None

    @property
    def key(self) -> str:
        """The trial's key."""
        return self.record.key

    @property
    def no_verdict(self) -> str | None:
        """Why its measurement has no verdict; None where it has one, or there is none."""
        return None if self.measurement is None else self.measurement.no_verdict
