"""The view of an experiment that the MLflow UI opens with qsweep's columns and charts.

The UI's "share" button stores a view in a tag of the experiment, and a link names it. qsweep stores
one of its own: the columns that matter, and charts of quality against size, bits and time.
"""

import json
from typing import Any

KEY = "qsweep"
TAG = f"mlflow.sharedViewState.{KEY}"
_COLUMNS = (
    ("tags", "best_trial"),
    ("tags", "best_verdict"),
    ("metrics", "best_ppl_ratio"),
    ("metrics", "best_size_gb"),
    ("tags", "verdict"),
    ("metrics", "ppl_ratio"),
    ("metrics", "kld"),
    ("metrics", "top1_agreement"),
    ("metrics", "size_gb"),
    ("metrics", "bpw"),
    ("metrics", "quality_per_gb"),
    ("tags", "method"),
    ("tags", "bits"),
    ("params", "group_size"),
    ("tags", "calibration"),
    ("metrics", "quantize_s"),
)
# A sweep's own run has its best figures; those of trials appear as their rows are unfolded.
_CHARTS = (
    ("Best of each sweep: quality against size", "best_size_gb", "best_ppl_ratio"),
    ("Quality against size", "size_gb", "ppl_ratio"),
    ("Divergence against size", "size_gb", "kld"),
    ("Quality against bits per weight", "bpw", "ppl_ratio"),
    ("Quality against time to quantize", "quantize_s", "ppl_ratio"),
)
# As many as the UI draws at most.
_RUNS = 500


def view() -> str:
    """The tag's value: what the UI itself stores, as plain JSON."""
    state: dict[str, Any] = {
        "selectedColumns": [f"{kind}.`{name}`" for kind, name in _COLUMNS],
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
