"""What a search costs beside the whole grid and beside random search, and what it misses.

The grid of the embedded model is measured once, with every trial's proxies and first windows
(``--measure OUTPUTS``: an hour on two cores; sweeps that are there are read). Searches then *replay*
that table, so that many seeds take seconds: they see measured records and pay measured seconds. As
the machine was shared, a kind of work (quantizing by one method, measuring at one fidelity) is paid
at its median.

    python bench/search.py --measure outputs     # writes bench/results/search-grid.json
    python bench/search.py --json bench/results/search.json
    python bench/search.py --overhead            # seconds per trial that the search itself takes
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

TABLE = ROOT / "bench" / "results" / "search-grid.json"
TYPES = "Q2_K,Q3_K_S,Q3_K_M,Q4_0,Q4_K_S,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
BITS, GROUPS = "bits=2,3,4,8", "group_size=128,64,32,-1"
FEW = ["eval.max_windows=8", "eval.noise_floor=false"]
PACKED = ["quant=rtn,gptq,awq", BITS, GROUPS, "desc_act=false,true"]
# By the names of sweeps: what they run, and what the table calls it.
SWEEPS = {
    "grid": ("full", PACKED),
    "gguf": ("full", ["quant=gguf", f"quant.type={TYPES}"]),
    "gridfew": ("few", [*PACKED, *FEW]),
    "gguffew": ("few", ["quant=gguf", f"quant.type={TYPES}", *FEW]),
    "nativegptq": (
        "native",
        ["quant=gptq", "quant.backend=native", "++quant.sequential=false", *PACKED[1:], *FEW],
    ),
    "nativeawq": ("native", ["quant=awq", "quant.backend=native", BITS, GROUPS, *FEW]),
}


def main() -> None:
    """Measure, replay or time, as asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path, metavar="OUTPUTS", help="make the table")
    parser.add_argument("--overhead", action="store_true", help="time the search itself")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="three seeds, 50 trials")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    seeds = range(3 if options.quick else options.seeds)
    rows = overhead(50 if options.quick else 200) if options.overhead else replay_all(seeds)
    for row in rows:
        print("  ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    if options.json:
        write(options.json, rows, overhead=options.overhead)


# --- the table ---------------------------------------------------------------------------------


def measure(outputs: Path) -> None:
    """Run the sweeps that are missing and write the table."""
    for name, (_, arguments) in SWEEPS.items():
        if not (outputs / "sweeps" / name / "results.csv").is_file():
            command = [sys.executable, "-m", "qsweep", "-m", *arguments, f"sweep={name}"]
            more = [f"outputs_dir={outputs}", "tracking=none", "corpus=[python_docs]"]
            subprocess.run([*command, *more], cwd=ROOT, check=True)  # noqa: S603
    rows = []
    for name, (kind, _) in SWEEPS.items():
        for file in sorted((outputs / "sweeps" / name / "trials").glob("*.json")):
            record = json.loads(file.read_text())
            if record["status"] == "finished" and not record.get("reference"):
                rows.append({"kind": kind, **slim(record)})
    TABLE.parent.mkdir(exist_ok=True)
    write(TABLE, rows)
    print(f"{len(rows)} records in {TABLE}")


def slim(record: dict) -> dict:
    """What a search looks at, and what it cost."""
    options, measurement = record["options"], record["measurements"][0]
    params = {"quant": record["method"]}
    if options.get("type"):
        params["quant.type"] = options["type"]
    else:
        params |= {"bits": str(options["bits"]), "group_size": str(options["group_size"])}
    if record["method"] == "gptq":
        # With one group per channel the native backend calls both orders by one name.
        params["desc_act"] = str(bool(record["config"]["desc_act"])).lower()
    names = ("ppl", "ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "kld", "kld_stderr")
    metrics = {n: measurement["metrics"].get(n) for n in (*names, "quality", "quality_per_gb")}
    return {
        "params": params,
        "name": record["name"],
        "metrics": metrics,
        "verdict": measurement["verdict"],
        "size_gb": record["artifact"]["size_gb"],
        "runtimes": record["artifact"]["runtimes"],
        "quantize_s": record["quantize_s"],
        "evaluate_s": record["evaluate_s"],
    }


def key_of(params: dict) -> str:
    """A trial's name in the table."""
    kept = {k: v for k, v in params.items() if not k.lstrip("+").startswith(("eval.", "search."))}
    if kept["quant"] != "gptq":
        kept.pop("desc_act", None)
    return " ".join(f"{k}={v}" for k, v in sorted(kept.items()))


class TableLab:
    """Answers from the table instead of running, and adds up what it would have cost."""

    width = 1

    def __init__(self, rows: list[dict]):
        self.rows = {(row["kind"], key_of(row["params"])): row for row in rows}
        self.cost_s = 0.0
        self.history: list[tuple[float, float]] = []
        self._done: set[tuple[str, str]] = set()
        spent: dict[tuple, list[float]] = defaultdict(list)
        for row in rows:
            spent["quantize", row["kind"] == "native", row["params"]["quant"]].append(
                row["quantize_s"]
            )
            spent["evaluate", row["kind"] == "full"].append(row["evaluate_s"])
        self.seconds = {what: statistics.median(values) for what, values in spent.items()}

    def plan(self, overrides):
        """A trial that the table has."""
        from qsweep.search.candidate import PlannedTrial

        row = self.rows[("full", key_of(overrides))]
        return PlannedTrial(key_of(overrides), row["name"], overrides["quant"], {})

    def run(self, batch):
        """Records of a batch; what was made or measured before costs nothing again."""
        from qsweep.results.record_file import record_of

        return [record_of(self._run(overrides)) for overrides in batch]

    def reference(self, fidelity):
        """None: no constraint here refers to it."""
        return None

    def _run(self, overrides):
        params = dict(overrides)
        fidelity = params.get("search.fidelity", "full")
        native = params.pop("quant.backend", None) == "native"
        params.pop("++quant.sequential", None)
        kind = "native" if native else "full" if fidelity == "full" else "few"
        key = key_of(params)
        # The native backend has one order of columns where a channel is one group.
        row = self.rows.get((kind, key)) or self.rows[(kind, key.replace("=true", "=false"))]
        self._pay(("quantize", native, params["quant"]), key)
        self._pay(("evaluate", kind == "full"), f"{kind} {key}")
        if fidelity == "full":
            self.history.append((self.cost_s, row["metrics"]["quality_per_gb"]))
        return {
            "name": row["name"],
            "key": key,
            "status": "finished",
            "fidelity": fidelity,
            "artifact": {
                "size_gb": row["size_gb"],
                "path": "",
                "runtimes": row["runtimes"],
                "bpw": None,
            },
            "measurements": [
                {
                    "corpus": "python_docs",
                    "preset": "paper",
                    "primary": True,
                    "metrics": row["metrics"],
                    "verdict": row["verdict"],
                }
            ],
        }

    def _pay(self, what: tuple, key: str) -> None:
        if (str(what), key) not in self._done:
            self._done.add((str(what), key))
            self.cost_s += self.seconds[what]


# --- the replay --------------------------------------------------------------------------------


def space(gguf: bool):
    """The grid as a space; as in sweeps/pareto.yaml."""
    from qsweep.search.space import Parameter, Space, When

    packed, gptq = When("quant", ("rtn", "gptq", "awq")), When("quant", ("gptq",))
    parameters = [
        Parameter("quant", ("rtn", "gptq", "awq", *(["gguf"] if gguf else []))),
        Parameter("bits", ("2", "3", "4", "8"), packed),
        Parameter("group_size", ("128", "64", "32", "-1"), packed),
        Parameter("desc_act", ("false", "true"), gptq),
    ]
    if gguf:
        parameters.append(
            Parameter("quant.type", tuple(TYPES.split(",")), When("quant", ("gguf",)))
        )
    return Space(tuple(parameters))


def replay_all(seeds: range) -> list[dict]:
    """Every strategy on both grids, averaged over seeds."""
    rows = json.loads(TABLE.read_text())["rows"]
    strategies = {
        "search, proxy rtn": {},
        "search, no proxy": {"rungs": ["few"]},
        "tpe on rungs, 30 trials": {"enumerate_below": 1, "trials": 30},
        "tpe alone": {"enumerate_below": 1, "rungs": [], "trials": 1000},
        "random": {"enumerate_below": 1, "rungs": [], "trials": 1000, "sampler": "random"},
    }
    found = []
    for gguf in (False, True):
        whole = TableLab(rows)
        every = list(space(gguf).combinations())
        whole.run(every)
        best = max(value for _, value in whole.history)
        budget = None
        for name, options in strategies.items():
            runs = [replay(rows, gguf, seed, **options) for seed in seeds]
            # What each could show when the first strategy was done.
            budget = budget or statistics.mean(lab.cost_s for lab, _ in runs)
            reached = [until(lab.history, best) for lab, _ in runs]
            at_budget = [
                max([v for c, v in lab.history if c <= budget], default=0) for lab, _ in runs
            ]
            hits = [r for r in reached if r is not None]
            found.append(
                {
                    "grid": f"{len(every)} trials{' with gguf' if gguf else ''}",
                    "strategy": name,
                    "seeds": len(runs),
                    "found_best": len(hits) / len(runs),
                    "cost": statistics.mean(lab.cost_s for lab, _ in runs) / whole.cost_s,
                    "cost_to_best": statistics.mean(hits) / whole.cost_s if hits else None,
                    "cost_to_best_worst": max(hits) / whole.cost_s if hits else None,
                    "quantized": statistics.mean(q for _, q in runs) / len(every),
                    "regret_at_search_cost": statistics.mean(1 - v / best for v in at_budget),
                }
            )
        found += fronts(rows, gguf, seeds, whole.cost_s)
    return found


def replay(rows: list[dict], gguf: bool, seed: int, **options):
    """One search; returns its lab, and how many trials were really quantized."""
    import optuna

    from qsweep.search.loop import Search
    from qsweep.search.objectives import parse_objective
    from qsweep.search.settings import search_config
    from qsweep.search.study import Study

    options = {"objective": ["quality_per_gb"], **options}
    settings = search_config({"seed": seed, **options})
    objectives = [parse_objective(text) for text in settings.objective]
    lab = TableLab(rows)
    study = Study(optuna.storages.InMemoryStorage(), "replay", objectives, {})
    where = space(gguf)
    with redirect_stdout(io.StringIO()):
        Search(settings, where, objectives, [], lab, study).run()
    lab.entries, lab.objectives = study.entries(), objectives
    return lab, sum(
        e.state == "complete" or (e.estimate is not None and e.estimate.fidelity == "few")
        for e in study.entries()
    )


def fronts(rows: list[dict], gguf: bool, seeds: range, whole_s: float) -> list[dict]:
    """How much of the front of size and quality a search finds, and at what cost."""
    from qsweep.search.answer import answer

    def front(lab) -> set[str]:
        return {e.key for e in answer(lab.entries, lab.objectives, True).front}

    goal = {"objective": ["size_gb", "quality"]}
    truth = front(replay(rows, gguf, 0, rungs=[], **goal)[0])
    runs = [replay(rows, gguf, seed, **goal) for seed in seeds]
    shares = [len(front(lab) & truth) / len(truth) for lab, _ in runs]
    number = sum(1 for _ in space(gguf).combinations())
    return [
        {
            "grid": f"{number} trials{' with gguf' if gguf else ''}",
            "strategy": f"search for the front ({len(truth)} trials)",
            "seeds": len(runs),
            "found_best": statistics.mean(shares),
            "cost": statistics.mean(lab.cost_s for lab, _ in runs) / whole_s,
            "cost_to_best": None,
            "cost_to_best_worst": None,
            "quantized": statistics.mean(q for _, q in runs) / number,
            "regret_at_search_cost": None,
        }
    ]


def until(history: list[tuple[float, float]], best: float) -> float | None:
    """What had been paid when the best was found."""
    return next((cost for cost, value in history if value >= best), None)


# --- the search's own time ---------------------------------------------------------------------


def overhead(trials: int) -> list[dict]:
    """Seconds per trial of the search itself, by storage, beside Optuna's own ask and tell."""
    from qsweep.search.storage import open_storage

    sys.path.insert(0, str(ROOT / "tests"))
    import search_lab

    rows = []
    for kind in ("sqlite", "journal"):
        with tempfile.TemporaryDirectory() as folder:
            storage = open_storage(None if kind == "sqlite" else kind, Path(folder))
            lab = search_lab.FormulaLab()
            search = search_lab.make_search(
                lab, storage, search_lab.LARGE, trials=trials, sampler="tpe", rungs=[]
            )
            stamps, busy, memory, run = [], [], [], lab.run

            def stamped(batch, stamps=stamps, busy=busy, memory=memory, run=run):
                stamps.append(time.perf_counter())
                busy.append(time.process_time())
                memory.append(resident_mb())
                return run(batch)

            lab.run = stamped
            with redirect_stdout(io.StringIO()):
                search.run()
            steps = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
            work = [b - a for a, b in zip(busy, busy[1:], strict=False)]
            aside = Path(folder) / "plain"
            aside.mkdir()
            url = f"sqlite:///{aside}/study.db"
            plain = ask_and_tell(url if kind == "sqlite" else open_storage(kind, aside), trials)
            rows.append(
                {
                    "storage": kind,
                    "trials": len(stamps),
                    "seconds_per_trial": statistics.mean(steps),
                    "processor_seconds_per_trial": statistics.mean(work),
                    "processor_seconds_first_fifty": statistics.mean(work[:50]),
                    "processor_seconds_last_fifty": statistics.mean(work[-50:]),
                    "optuna_ask_tell": plain,
                    "ratio": statistics.mean(steps) / plain,
                    "memory_growth_mb": memory[-1] - memory[len(memory) // 4],
                }
            )
    return rows


def ask_and_tell(storage, trials: int) -> float:
    """Optuna alone on the same storage: four suggestions, three values."""
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
        started = time.perf_counter()
        for _ in range(trials):
            trial = study.ask()
            quant = trial.suggest_categorical("quant", ("gptq", "awq", "rtn"))
            bits = int(trial.suggest_categorical("bits", ("2", "3", "4", "8")))
            trial.suggest_categorical("group_size", ("32", "64", "128"))
            trial.suggest_categorical("seed", tuple(map(str, range(20))))
            study.tell(trial, [float(bits), 1.0 if quant == "gptq" else 0.5])
        return (time.perf_counter() - started) / trials


def resident_mb() -> float:
    """This process's resident memory."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 1e6


def write(file: Path, rows: list[dict], overhead: bool = False) -> None:
    """Write rows with machine, versions and commit."""
    from origin import origin

    what = (
        "seconds a search takes by itself" if overhead else "searches replayed on a measured grid"
    )
    document = {
        "what": "a measured grid, proxies and first windows" if file == TABLE else what,
        **origin(("optuna", "torch", "gptqmodel")),
        "rows": rows,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1 if file != TABLE else None) + "\n")


if __name__ == "__main__":
    main()
