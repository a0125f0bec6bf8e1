"""The table of an artifact's tensors in the store: made once, whatever measures the artifact."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.base.progress import Progress
from qsweep.base.store import Store
from qsweep.formats.artifact import Artifact
from qsweep.formats.tensor_table import from_csv, to_csv
from qsweep.formats.weight_errors import VERSION, left_out, tensor_table
from qsweep.models.facts import read_tensors
from qsweep.results.record import Record
from qsweep.results.tensor_flags import claim_of
from qsweep.results.tensor_summary import TensorSummary
from qsweep.results.tensors import summary_of
from qsweep.sweep.plan import Plan

FILE = "tensors.csv"
# What names an artifact of somebody else's in a configuration.
_NAMES = ("file", "path", "repo")


def has_table(plan: Plan, artifact: Artifact) -> bool:
    """Whether there is a table to make: an artifact's that leads back to its base's weights."""
    return not artifact.unexplained and _has_base(plan)


def lacks_table(plan: Plan, record: Record, store: Store) -> bool:
    """Whether a finished trial's table is still to be made, as in a store of before there was one."""
    none = record.only_own_run or not _has_base(plan)
    return not none and store.find("tensors", key_of(_identity(plan))) is None


def keep_tensors(plan: Plan, artifact: Artifact, store: Store, progress: Progress) -> None:
    """Bring the table of a trial's artifact into the store, unless it is there.

    Raises:
        ArtifactCorrupt: Some of its weights are NaN or infinite; the line names the tensor.
    """
    if has_table(plan, artifact):
        store.build("tensors", _identity(plan), partial(_make, plan, artifact, progress))


def find_tensors(plan: Plan, artifact: Artifact, store: Store) -> TensorSummary | None:
    """What a record says of the table; None where the store has none."""
    entry = store.find("tensors", key_of(_identity(plan)))
    if entry is None:
        return None
    file = entry.path / FILE
    rows = from_csv(file.read_text(encoding="utf-8"), file)
    quant = plan.trial.quant
    given = plan.trial.written.get("quant") or {}
    names = [Path(str(given[name])).name for name in _NAMES if given.get(name)]
    made_by = " ".join((quant.method, quant.backend, artifact.format, *names))
    claim = claim_of(quant.options(), made_by, names)
    return summary_of(rows, claim, entry.content["left_out"], str(file))


def _has_base(plan: Plan) -> bool:
    """Whether the trial has an artifact, and its base's weights are on this machine."""
    facts = plan.setting.facts
    with contextlib.suppress(ConfigError):
        # Of a reference that came without its model there is a head, and no layer.
        return not plan.is_reference and any(
            f"{name}.weight" in read_tensors(facts.path) for name in list(facts.linears)[:1]
        )
    return False


def _identity(plan: Plan) -> dict[str, Any]:
    # The model is part of the artifact's identity where it was made from it, and not where not.
    return {
        "tensors": plan.artifact_key,
        "model": plan.setting.model_hash,
        "version": VERSION,
    }


def _make(plan: Plan, artifact: Artifact, progress: Progress, out: Path) -> dict[str, Any]:
    facts = plan.setting.facts
    rows = tensor_table(artifact, facts, plan.setting.device, progress)
    (out / FILE).write_text(to_csv(rows), encoding="utf-8")
    return {"left_out": left_out(rows, facts.path)}
