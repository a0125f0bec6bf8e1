"""A search whose trials follow a formula instead of a model, so that hundreds take a second.

``python search_lab.py STORAGE DIRECTORY SECONDS``: search in this process, ``SECONDS`` for a trial;
prints the key of every trial that it runs.
"""

import math
import sys
import time
from pathlib import Path

from qsweep.evaluate.metrics import quality, quality_per_gb
from qsweep.results.record import ArtifactFacts, Record
from qsweep.results.record_file import record_of
from qsweep.search.candidate import PlannedTrial
from qsweep.search.loop import Search
from qsweep.search.objectives import parse_constraint, parse_objective
from qsweep.search.settings import search_config
from qsweep.search.space import Parameter, Space, When
from qsweep.search.storage import open_storage
from qsweep.search.study import Study

WINDOWS = 96
GPTQ, CALIBRATED = When("quant", ("gptq",)), When("quant", ("gptq", "awq"))
SPACE = Space(
    (
        Parameter("quant", ("gptq", "awq", "rtn")),
        Parameter("bits", ("2", "3", "4", "8")),
        Parameter("group_size", ("32", "64", "128", "100")),
        Parameter("desc_act", ("false", "true"), GPTQ),
    )
)
LARGE = Space((*SPACE.parameters, Parameter("seed", tuple(map(str, range(20))), CALIBRATED)))


class FormulaLab:
    """Fewer bits and wider groups cost more; what is calibrated costs less, and more time."""

    width = 1

    def __init__(self, pause_s=0.0, noise=0.02, failing=lambda overrides: False, serves=True):
        self.pause_s, self.noise, self.failing, self.serves = pause_s, noise, failing, serves
        self.ran = []
        self.cost_s = 0.0
        self._quantized = set()

    def plan(self, overrides):
        if overrides["group_size"] == "100":
            return None
        return PlannedTrial(_key(overrides), _name(overrides), overrides["quant"], {})

    def run(self, batch):
        return [record_of(self._run(overrides)) for overrides in batch]

    def reference(self, fidelity):
        return Record("r", "finished", "reference", artifact=ArtifactFacts(size_gb=16.0))

    def log_ratio(self, overrides):
        bits, group = int(overrides["bits"]), int(overrides["group_size"])
        better = {"gptq": 0.5, "awq": 0.55, "rtn": 1.0}[overrides["quant"]]
        if overrides.get("desc_act") == "true":
            better -= 0.03
        better += 0.001 * int(overrides.get("seed", 0))
        return better * 0.04 * 4.0 ** (4 - bits) * (group / 128) ** 0.25

    def size(self, overrides):
        bits, group = int(overrides["bits"]), int(overrides["group_size"])
        return 1.0 + 7.0 / 8 * (bits + 20 / group)

    def _run(self, overrides):
        fidelity = overrides.get("search.fidelity", "full")
        self.ran.append((fidelity, _key(overrides)))
        if fidelity == "full":
            print(_key(overrides), flush=True)
        time.sleep(self.pause_s)
        record = {"name": _name(overrides), "key": _key(overrides), "fidelity": fidelity}
        if self.failing(overrides):
            return record | {"status": "failed", "reason": "the device is on fire"}
        if _key(overrides) not in self._quantized:
            self._quantized.add(_key(overrides))
            self.cost_s += {"rtn": 0.1, "gptq": 60.0, "awq": 120.0}[overrides["quant"]]
        windows = int(overrides.get("eval.max_windows", WINDOWS))
        self.cost_s += windows * 0.25
        mean, size = self.log_ratio(overrides), self.size(overrides)
        half = self.noise / math.sqrt(windows)
        metrics = {
            "ppl": 10 * math.exp(mean),
            "ppl_ratio": math.exp(mean),
            "ppl_ratio_low": math.exp(mean - half),
            "ppl_ratio_high": math.exp(mean + half),
            "quality": quality(math.exp(mean)),
            "quality_per_gb": quality_per_gb(quality(math.exp(mean)), size),
            "kld": mean,
            "kld_stderr": half**2,
        }
        verdict = "yes" if mean <= math.log(1.06) else "problematic"
        return record | {
            "status": "finished",
            "artifact": {
                "size_gb": size,
                "bpw": 4.0,
                "path": "/artifact",
                "runtimes": ["vllm"] if self.serves else ["gptqmodel"],
            },
            "measurements": [
                {
                    "corpus": "text",
                    "preset": "paper",
                    "primary": True,
                    "metrics": metrics,
                    "verdict": verdict,
                }
            ],
        }


def make_search(lab, storage, space=SPACE, name="study", identity=None, **options):
    """A search on a study."""
    settings = search_config({"seed": 0, **options})
    objectives = [parse_objective(text) for text in settings.objective]
    constraints = [parse_constraint(text) for text in settings.constraints]
    study = Study(storage, name, objectives, identity or {"space": space.describe()})
    return Search(settings, space, objectives, constraints, lab, study)


def _key(overrides):
    kept = {k: v for k, v in overrides.items() if not k.startswith(("eval.", "search."))}
    if kept["quant"] != "gptq":
        kept.pop("desc_act", None)
    if kept["quant"] == "rtn":
        kept.pop("seed", None)
    return " ".join(f"{k}={v}" for k, v in sorted(kept.items()))


def _name(overrides):
    return f"formula {overrides['quant']} {overrides['bits']}-bit"


if __name__ == "__main__":
    where = None if sys.argv[1] == "sqlite" else sys.argv[1]
    storage = open_storage(where, Path(sys.argv[2]))
    make_search(FormulaLab(pause_s=float(sys.argv[3])), storage, objective="quality_per_gb").run()
