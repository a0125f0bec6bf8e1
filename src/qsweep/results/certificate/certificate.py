"""A certificate: what was decided of a trial by its margins, and all that one needs to hold it to that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from qsweep.base import numbers
from qsweep.base.errors import ArtifactCorrupt, QsweepError
from qsweep.base.file_hashes import file_hash
from qsweep.base.keys import key_of
from qsweep.base.manifest import read_manifest
from qsweep.base.store import Store
from qsweep.base.version import __version__
from qsweep.evaluate.equivalence import Judged, OfAnswers, Outcome, Same, judge, overall
from qsweep.formats.artifact_files import counting_files, find_place
from qsweep.results.certificate.margins import Margin, Unit
from qsweep.results.certificate.measures import find_measure
from qsweep.results.certificate.sides import Measure, Sides
from qsweep.results.columns.table import SIZE
from qsweep.results.record import Record, Row
from qsweep.results.traits import setting
from qsweep.results.winner import MIN_WINDOWS

_WEIGHTS = (".safetensors", ".gguf")
_PACKAGES = ("torch", "transformers", "gptqmodel", "llama-cpp-python")
# What an outcome of all measures together says.
_SAID: dict[Outcome, str] = {
    "accept": "{trial} is no worse than {base} by more than these margins",
    "reject": "{trial} is worse than {base} by more than a margin",
    "inconclusive": "whether {trial} is worse than {base} by more than these margins is not decided "
    "by what was measured",
}


@dataclass(frozen=True)
class Line:
    """One measure of a certificate."""

    measure: Measure
    margin: Margin
    judged: Judged

    @property
    def needed(self) -> str:
        """What would decide it; empty where it is decided."""
        found, units = self.judged, self.measure.units
        if found.outcome != "inconclusive":
            return ""
        least = _least(self.measure)
        said = f"fewer than {least} {units} decide nothing; " if found.count < least else ""
        if found.more is None:
            if found.count < 2:
                return f"{said}at least {least - found.count} more {units}"
            return f"{said}measured at the margin: no number of {units} decides"
        one = f"{found.more} more {units if found.more > 1 else units[:-1]}"
        if found.towards == "accept":
            return f"{said}{one} would accept it{self._how}"
        return f"{said}measured beyond the margin: no number accepts it, {one} would reject it"

    @property
    def _how(self) -> str:
        """How more are come by where a rule says how many are read; empty where none does."""
        return (
            "; a narrower eval.until reads more, and without it all are" if self.measure.how else ""
        )


@dataclass(frozen=True)
class Certificate:
    """What a page of it shows.

    Attributes:
        outcome: Of all measures together.
        trial: What was certified.
        base: What it was compared with, in words.
        lines: Measure by measure.
        facts: Of model, artifact, protocol and versions: names and values.
        files: SHA-256 of the artifact's weight files, by name.
        commands: What makes it again.
        not_covered: What it does not say.
        made: When.
    """

    outcome: Outcome
    trial: Record
    base: str
    lines: tuple[Line, ...]
    facts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    not_covered: tuple[str, ...]
    made: str

    @property
    def sentence(self) -> str:
        """The answer."""
        return f"{self.outcome}: {self.said}"

    @property
    def rests(self) -> list[tuple[str, str]]:
        """Measures that rest on the same tokens or samples, with what tells these."""
        found: dict[str, list[str]] = {}
        for line in self.lines:
            found.setdefault(line.measure.identity, []).append(line.measure.name)
        return [(", ".join(names), identity) for identity, names in found.items()]

    @property
    def said(self) -> str:
        """What the outcome says."""
        return _SAID[self.outcome].format(trial=self.trial.name, base=self.base)


def certify(
    sides: Sides, margins: Sequence[Margin], records: Sequence[Record], command: str
) -> Certificate:
    """Test a trial by each margin.

    Args:
        sides: The trial and what it is compared with.
        margins: By measure.
        records: All that lie beside it, of which some may be other draws of it.
        command: What was typed.

    Raises:
        ConfigError: A measure is not known or was not measured, or a margin has another's unit.
    """
    lines = tuple(_line(margin, sides) for margin in margins)
    trial = sides.trial
    return Certificate(
        outcome=overall([line.judged.outcome for line in lines]),
        trial=trial,
        base=sides.base_name,
        lines=lines,
        facts=tuple(_facts(trial, sides)),
        files=tuple(_files(trial, sides.store)),
        commands=tuple(filter(None, dict.fromkeys([*_made_by(sides), command]))),
        not_covered=tuple(_not_covered(trial, lines, records)),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _made_by(sides: Sides) -> list[str | None]:
    """The commands whose sweeps hold both sides."""
    return [side.command for side in (sides.trial, sides.against) if side is not None]


def _line(margin: Margin, sides: Sides) -> Line:
    measure = find_measure(margin.measure, sides)
    margin = margin.require(measure.unit)
    return Line(measure, margin, judge(measure.evidence, margin.loss, _least(measure)))


def _least(measure: Measure) -> int:
    """How few units decide nothing: where a spread is a guess, or with answers none."""
    return 0 if isinstance(measure.evidence, OfAnswers | Same) else MIN_WINDOWS


def in_unit(loss: float, unit: Unit) -> float:
    """A loss as a person reads it: per cent of perplexity, nats, or points of answers."""
    if unit == "%":
        return 100 * math.expm1(min(loss, 700.0))
    return 100 * loss if unit == "points" else loss


def _facts(trial: Record, sides: Sides) -> list[tuple[str, str]]:
    made, model, environment = trial.artifact, trial.model_config, trial.environment
    packages = environment.get("packages") or {}
    options = ", ".join(f"{k}={v}" for k, v in trial.options.items() if v is not None)
    protocol = primary.facts.get("protocol") if (primary := trial.primary) else "unknown"
    cut = sorted({f"{n} {v}" for m in trial.measurements for n, v in m.overrides.items()})
    found = {
        "trial": trial.key,
        "compared with": sides.base_name
        + ("" if sides.against is None else f" (trial {sides.against.key})"),
        "model": " ".join(
            str(part) for part in (trial.model, model.get("repo"), model.get("revision")) if part
        ),
        "model's content": trial.model_hash,
        "method": f"{trial.method} ({trial.backend})",
        "options": options,
        "calibration": trial.calibration or "none",
        "artifact": made and made.key,
        "artifact's content": trial.options.get("content"),
        "size": SIZE.cell(Row(trial)),
        "protocol": f"version {protocol}"
        + (f"; not the presets' own: {', '.join(cut)}" if cut else ""),
        "run in": f"{trial.dtype} on {trial.device}",
        "versions": ", ".join(
            [
                f"qsweep {environment.get('qsweep') or 'unknown'}",
                *(f"{package} {packages[package]}" for package in _PACKAGES if package in packages),
            ]
        ),
        "commit": environment.get("git_commit"),
        "certified by": f"qsweep {__version__}",
    }
    return [(name, numbers.one_line(value)) for name, value in found.items() if value]


def _files(trial: Record, store: Store) -> list[tuple[str, str]]:
    """What one may hold the released files to; nothing where the artifact is not kept any more."""
    if trial.artifact is None or trial.artifact.key is None:
        return []
    if trial.existed:
        return _files_there(trial, store)
    try:
        files = read_manifest(store.path("artifacts", trial.artifact.key)).files
    except ArtifactCorrupt:
        return []
    return [(name, stamp.sha256) for name, stamp in files.items() if name.endswith(_WEIGHTS)]


def _files_there(trial: Record, store: Store) -> list[tuple[str, str]]:
    """Those of somebody else's artifact where it lies; nothing if they are not what was measured."""
    try:
        files = counting_files(find_place(str(trial.artifact and trial.artifact.path)))
        hashes = {name: file_hash(store, file) for name, file in files.items()}
    except (QsweepError, OSError):
        return []
    if key_of(hashes) != trial.options.get("content"):
        return []
    return [(f.name, hashes[name]) for name, f in files.items() if f.name.endswith(_WEIGHTS)]


def _not_covered(trial: Record, lines: Sequence[Line], records: Sequence[Record]) -> list[str]:
    named = {line.margin.measure for line in lines}
    texts = {line.measure.measured_on for line in lines if line.measure.units == "windows"}
    found = [
        "each interval is of the windows and samples that were drawn: other text, and other tasks, "
        "may tell otherwise",
    ]
    if trial.calibration:
        draws = {r.key for r in records if r.finished and setting(r) == setting(trial)}
        among = (
            f" ({len(draws)} draws of its setting lie here, and this is one)"
            if draws - {trial.key}
            else ""
        )
        found.append(
            "another draw of the calibration text, or another seed, makes another artifact, of which "
            f"nothing is said{among}"
        )
    windowed = [f"{m.corpus} ({m.preset})" for m in trial.measurements]
    if left := [place for place in windowed if place not in texts]:
        found.append(f"measured, and not named: {', '.join(left)}")
    by_task = {name for line in lines for name in line.measure.measured_on.split(", ")}
    if tasks := [t.name for t in trial.tasks or () if t.name not in by_task]:
        found.append(f"tasks that were run, and not named: {', '.join(tasks)}")
    if not trial.tasks:
        found.append(
            "no task was run: what the model can do is told by perplexity and divergence alone"
        )
    runs = {run.name for m in trial.measurements for run in m.served or ()}
    if unnamed := [run for run in sorted(runs) if not any(f"_{run}" in name for name in named)]:
        found.append(
            f"the weights alone: {', '.join(unnamed)} as served were measured, and not named"
        )
    found.append("a serving kernel's own rounding, and speed")
    return found
