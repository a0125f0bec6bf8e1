"""Results of sweeps that were run before, from their folders or from a tracker."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.errors import QsweepError
from qsweep.results.frame import frame
from qsweep.results.record import Record
from qsweep.results.sources import known_sweeps, read_sweep, require_known

if TYPE_CHECKING:
    import pandas


def load(
    source: str | Path = "outputs", *, sweeps: Sequence[str] = (), experiment: str = "qsweep"
) -> "pandas.DataFrame":
    """The rows of sweeps, as in their ``results.csv``, numbers as numbers.

    Args:
        source: A sweep's folder, an outputs folder, or an MLflow tracking URI
            (``sqlite:///outputs/mlflow.db``, ``http://HOST:PORT``).
        sweeps: Only the sweeps of these names; by default all that are there. The column ``sweep``
            tells them apart.
        experiment: With a tracking URI, where sweeps were logged.

    Raises:
        QsweepError: There is no such folder, tracker or sweep.

    Example:
        >>> import qsweep
        >>> sweep = qsweep.run(
        ...     {"eval.max_windows": 2, "eval.noise_floor": False},
        ...     quant="none", corpus="python_docs", tracking="none",
        ... )
        >>> list(qsweep.load(sweep.directory)["method"])
        ['none']
    """
    records: list[Record] = []
    if "://" in str(source):
        from qsweep.tracking.records import TrackedSweeps

        tracked = TrackedSweeps(str(source), experiment, Path("outputs").absolute())
        found = tracked.sweeps(sweeps or tracked.names)
    else:
        found = [read_sweep(path) for path in _folders(Path(source).expanduser(), sweeps)]
    for sweep in found:
        records += [replace(record, sweep=sweep.name) for record in sweep.records]
    return frame(records)


def _folders(place: Path, names: Sequence[str]) -> list[Path]:
    if (place / "trials").is_dir() or (place / "sweep.json").is_file():
        return [place]
    known = known_sweeps(place)
    if not known:
        raise QsweepError(f"{place}: neither a sweep's folder nor one of outputs with sweeps in it")
    require_known(names, known, place)
    return [known[name] for name in names or known]
