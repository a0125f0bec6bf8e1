"""The view of an experiment that the MLflow UI opens with qsweep's columns and charts.

The UI's "share" button stores a view in a tag of the experiment, and a link names it. qsweep stores
one of its own: the columns that matter, and charts of quality against size, bits and time.
"""

import json
from typing import Any

from qsweep.results.columns.column import TABLE
from qsweep.results.columns.table import BPW, KLD, PPL_RATIO, QUANTIZE_S, SIZE_GB

KEY = "qsweep"
TAG = f"mlflow.sharedViewState.{KEY}"
# Those of a sweep's own run; those of trials have their places in the table of columns.
_OF_SWEEPS = (
    ("tags", "best_trial"),
    ("tags", "best_verdict"),
    ("metrics", f"best_{PPL_RATIO.name}"),
    ("metrics", f"best_{SIZE_GB.name}"),
)
# A sweep's own run has its best figures; those of trials appear as their rows are unfolded.
_CHARTS = (
    ("Best of each sweep: quality against size", f"best_{SIZE_GB.name}", f"best_{PPL_RATIO.name}"),
    ("Quality against size", SIZE_GB.name, PPL_RATIO.name),
    ("Divergence against size", SIZE_GB.name, KLD.name),
    ("Quality against bits per weight", BPW.name, PPL_RATIO.name),
    ("Quality against time to quantize", QUANTIZE_S.name, PPL_RATIO.name),
)
# As many as the UI draws at most.
_RUNS = 500


def view() -> str:
    """The tag's value: what the UI itself stores, as plain JSON."""
    placed = sorted((c.view[1], c.view[0], c.name) for c in TABLE if c.view)
    columns = [*_OF_SWEEPS, *((kind, name) for _, kind, name in placed)]
    state: dict[str, Any] = {
        "selectedColumns": [f"{kind}.`{name}`" for kind, name in columns],
        "compareRunSections": [
            {"uuid": "qsweep", "name": "Quality", "display": True, "isReordered": False}
        ],
        "compareRunCharts": [
            {
                "uuid": f"qsweep-{number}",
                "type": "SCATTER",
                "displayName": title,
                "metricSectionId": "qsweep",
                "runsCountToCompare": _RUNS,
                "deleted": False,
                "isGenerated": False,
                "xaxis": {"type": "METRIC", "key": x},
                "yaxis": {"type": "METRIC", "key": y},
            }
            for number, (title, x, y) in enumerate(_CHARTS)
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": False,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }
    return json.dumps(state)


def runs_page(experiment: str, *, stored: bool = True) -> str:
    """The UI's address of an experiment's runs, without host and port.

    ``workflowType`` opens MLflow 3's pages for runs whatever the browser showed last; ``stored``
    false leaves qsweep's view out, which the experiment does not hold yet.
    """
    view = f"viewStateShareKey={KEY}&" if stored else ""
    return f"#/experiments/{experiment}/runs?{view}workflowType=machine_learning"
