"""What a search aims at: metrics with a direction, and how far their measured values can be trusted.

A *span* is (low, value, high): where a metric lies by its confidence interval. Ends are infinite
where nothing is known, so that whoever decides by a span never decides on noise.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.schema import nearest
from qsweep.evaluate.metrics import quality, quality_per_gb
from qsweep.results.columns.column import TABLE
from qsweep.results.columns.derived import stopped_ends
from qsweep.results.columns.table import (
    DECODE_TPS,
    FLIPS,
    KLD,
    KLD_NATIVE,
    KLD_STDERR,
    LOOPS,
    PPL,
    PPL_RATIO,
    PPL_RATIO_HIGH,
    PPL_RATIO_LOW,
    QUALITY,
    QUALITY_PER_GB,
    RETENTIONS,
    SIZE_GB,
)
from qsweep.results.columns.views import figure as figure_of
from qsweep.results.columns.views import searchable
from qsweep.results.record import Record
from qsweep.tasks.suite import is_long

Span = tuple[float, float, float]
Direction = Literal["minimize", "maximize"]

_OF_RATIO = tuple(column.name for column in (PPL, PPL_RATIO, QUALITY, QUALITY_PER_GB))
# Formats pack scales and zero points differently: by what a proxy's size may be off.
_PROXY_SIZE = 0.03
# 95 % of a normal distribution; the KLD's standard error is over windows, as protocol.md says.
_Z = 1.96
# What a trial has one figure of; others are of its tasks and capabilities.
_OF_TRIAL = ("measurement", "artifact", "speed", "trial")
_WORDS: dict[str, Direction] = {"up": "maximize", "down": "minimize"}


@dataclass(frozen=True)
class Objective:
    """A metric and which way it should go."""

    metric: str
    direction: Direction

    def better(self, first: float, second: float) -> bool:
        """Whether ``first`` is better than ``second``."""
        return first > second if self.direction == "maximize" else first < second

    def best(self, span: Span) -> float:
        """The end of a span that is good news."""
        return span[2] if self.direction == "maximize" else span[0]

    def worst(self, span: Span) -> float:
        """The end of a span that is bad news."""
        return span[0] if self.direction == "maximize" else span[2]

    def __str__(self) -> str:
        return f"{self.metric} {'up' if self.direction == 'maximize' else 'down'}"


def parse_objective(text: str) -> Objective:
    """``quality_per_gb``, or with its direction ``decode_tps up``; a direction allows any metric.

    >>> str(parse_objective("size_gb"))
    'size_gb down'

    Raises:
        ConfigError: no metric is known by that name.
    """
    metric, _, word = text.strip().partition(" ")
    if word and word.strip() not in _WORDS:
        raise ConfigError(f"search.objective: {text!r}: the direction is up or down")
    if word:
        return Objective(metric, _WORDS[word.strip()])
    check_metric(metric, "search.objective", "; a metric of your own needs a direction: 'x up'")
    return Objective(metric, _WORDS[str(searchable()[metric].better)])


def check_metric(metric: str, where: str, otherwise: str = "") -> None:
    """Refuse a metric that is not known. Raises ConfigError with the nearest one."""
    if metric not in searchable():
        close = nearest(metric, searchable())
        raise ConfigError(f"{where}: no metric {metric!r}{close}{otherwise}")


def check_measured(metrics: Mapping[str, str], evaluation: Any) -> None:
    """Refuse what the configuration does not measure. ``metrics`` says where each one is named."""
    columns = {column.name: column for column in TABLE if column.of in _OF_TRIAL}
    measured = {
        DECODE_TPS.needs: evaluation.speed,
        KLD.needs: evaluation.divergence,
        KLD_NATIVE.needs: evaluation.kld_native,
        RETENTIONS[0].needs: bool(evaluation.tasks),
        LOOPS.needs: any(map(is_long, evaluation.tasks)),
        FLIPS.needs: not all(map(is_long, evaluation.tasks)),
    }
    for metric, where in metrics.items():
        column = columns.get(metric)
        if column is not None and not measured.get(column.needs, True):
            raise ConfigError(f"{where}: {metric} is not measured; {column.needs}")


def figure(record: Record, metric: str) -> float:
    """One figure of a finished trial. Raises QsweepError where it was not measured."""
    known = []
    for column in TABLE:
        if column.of in _OF_TRIAL:
            value = figure_of(record, column)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if column.name == metric:
                    return float(value)
                known.append(column.name)
    close = nearest(metric, known)
    raise QsweepError(f"{record.name}: no metric {metric!r} was measured{close}")


def spans(record: Record, metrics: tuple[str, ...], keeps: float | None = None) -> dict[str, Span]:
    """Where the metrics lie by a record of lower fidelity, which has its interval.

    With ``keeps`` the record is that of a proxy, worse than what it stands for: of the loss of log-
    perplexity at least this share remains, and of a divergence, quadratic in the error, its square.
    """
    return {metric: _span(record, metric, keeps) for metric in metrics}


def _span(record: Record, metric: str, keeps: float | None) -> Span:
    unknown = (-math.inf, math.nan, math.inf)
    column = searchable().get(metric)
    if column is not None and column.of == "artifact":  # counted: the same at every fidelity
        value = figure(record, metric)
        slack = 0.0 if keeps is None else _PROXY_SIZE
        return (value * (1 - slack), value, value * (1 + slack))
    try:
        value = figure(record, metric)
    except QsweepError:
        return unknown
    if metric in _OF_RATIO:
        low, high = figure_of(record, PPL_RATIO_LOW), figure_of(record, PPL_RATIO_HIGH)
        if low is None or high is None or low <= 0:
            return unknown
        if keeps is not None:
            low = math.exp(keeps * max(math.log(low), 0.0))
        ends = [_of_ratio(metric, ratio, record) for ratio in (low, high)]
        if keeps is not None and metric == QUALITY_PER_GB.name:
            ends = [end / (1 - _PROXY_SIZE) if end > 0 else end for end in ends]
        return (min(ends), value, max(ends))
    if metric == KLD.name:
        error = figure_of(record, KLD_STDERR)
        stopped = stopped_ends(record.primary) if record.primary else None
        if error is None and stopped is None:
            return unknown
        low, high = stopped or (value - _Z * error, value + _Z * error)
        low = max(low, 0.0)
        return (low if keeps is None else low * keeps**2, value, high)
    # Whatever has no interval is no reason to drop anything.
    return (-math.inf, value, math.inf)


def _of_ratio(metric: str, ratio: float, record: Record) -> float:
    if metric == PPL_RATIO.name:
        return ratio
    if metric == PPL.name:
        return float(figure_of(record, PPL) / figure_of(record, PPL_RATIO) * ratio)
    if math.isinf(ratio):
        return -math.inf
    found = quality(ratio)
    return found if metric == QUALITY.name else quality_per_gb(found, figure(record, SIZE_GB.name))


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CONSTRAINT = re.compile(
    rf"(?P<metric>\w+)\s*(?P<sign><=|>=|≤|≥|<|>)\s*(?P<bound>{_NUMBER})(?P<of>\s+of\s+reference)?"
)


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric, absolute or as a multiple of the reference's."""

    metric: str
    upper: bool
    bound: float
    of_reference: bool = False

    def excess(self, value: float, reference: float | None = None) -> float:
        """How far a value is beyond the bound; 0 or less is feasible. A NaN is infeasible."""
        bound = self.bound * reference if self.of_reference and reference else self.bound
        excess = value - bound if self.upper else bound - value
        return math.inf if math.isnan(excess) else excess

    def best(self, span: Span) -> float:
        """The end of a span that is likeliest to meet the bound."""
        return span[0] if self.upper else span[2]

    def __str__(self) -> str:
        of = " of reference" if self.of_reference else ""
        return f"{self.metric} {'<=' if self.upper else '>='} {self.bound:g}{of}"


def parse_constraint(text: str) -> Constraint:
    """``ppl_ratio <= 1.06``, ``size_gb <= 0.5 of reference``. Raises ConfigError.

    >>> parse_constraint("kld<=.05").excess(0.07) > 0
    True
    """
    found = _CONSTRAINT.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f'search.constraints: {text!r} is no bound; write "ppl_ratio <= 1.06" or '
            '"size_gb <= 0.5 of reference"'
        )
    check_metric(found["metric"], "search.constraints")
    upper = found["sign"] in ("<=", "<", "≤")
    return Constraint(found["metric"], upper, float(found["bound"]), bool(found["of"]))
