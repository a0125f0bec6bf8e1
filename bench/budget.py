"""What bits per layer are worth at equal size: budgets beside uniform, llama.cpp's and random mixes.

    python bench/budget.py --json bench/results/budget-pocket.json
    python bench/budget.py --model smollm2-135m --samples 16 --windows 16 --context 512 --groups 32,64 --json FILE

For each budget, by size or by stored bits per weight of the linear layers: the KLD of the mix that
``qsweep --config-name=budget`` finds as a share of that of the best uniform artifact of at most its
size, with the interval of their difference; of the best of llama.cpp's own mixes, which are the uniform
ones of ``gguf``; and of mixes of that size whose layers are chosen at random. Then what that costs,
in seconds of measuring one uniform trial. What ``--outputs`` holds is not made again.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from origin import write
from parity import model_directory
from qsweep.results.budget import rows_of
from qsweep.results.columns.table import KLD
from qsweep.results.record import Row
from qsweep.search.batch import one_batch
from qsweep.search.budget.candidates import Family
from qsweep.search.budget.limits import Limit, bits_left
from qsweep.search.budget.proposals import Proposal
from qsweep.search.budget.run import BudgetResult, BudgetSearch
from qsweep.search.budget.settings import Budget, BudgetConfig
from qsweep.search.budget.verdict import Verdict
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import sweep_config
from qsweep.sweep.session import Session, Sweep, open_session, open_store

BITS = (2.5, 3.0, 3.5, 4.0, 4.5)
# What layers are chosen from: as in sweeps/budget.yaml. GGUF's are mixes of llama.cpp's own.
SPACES = {
    "gptq": ["quant=gptq", "bits=2,3,4,8"],
    "gguf": [
        "quant=gguf",
        "quant.type=IQ2_XS,Q2_K,IQ3_XXS,Q3_K_S,Q3_K_M,Q3_K_L,Q4_K_S,Q4_K_M,Q5_K_S,Q5_K_M,Q6_K,Q8_0",
        "quant.imatrix=true",
    ],
}


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="pocket, smollm2-135m, or a directory")
    parser.add_argument("--quants", nargs="+", default=list(SPACES), choices=list(SPACES))
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--windows", type=int, help="at most so many of each corpus")
    parser.add_argument("--context", type=int, help="tokens of a window")
    parser.add_argument("--groups", default="32,64,128", help="group sizes that gptq chooses from")
    parser.add_argument("--random", type=int, default=3, help="mixes at random for each budget")
    parser.add_argument("--quick", action="store_true", help="one budget, few windows")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/bench-budget"))
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.bits, arguments.windows, arguments.random = (3.5,), 8, 1
    rows = []
    for quant in arguments.quants:
        rows += measured(quant, arguments)
    write(arguments.json, f"budgets of {arguments.model}, beside uniform and random mixes", rows)


def measured(quant: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one quantizer, and what they cost."""
    configs = _configs(quant, arguments)
    budgets = [Budget("bpw", bits) for bits in arguments.bits]
    sweep = Sweep(sweep_config(configs[0]), f"budget-{quant}", "bench/budget.py")
    with (
        sweep.config.launcher as jobs,
        open_session(sweep, open_store(sweep.config), jobs) as session,
    ):
        search = BudgetSearch(session, configs, budgets, None, BudgetConfig())
        result = search.run()
        rows = []
        for verdict in result.verdicts:
            chance = _at_random(session, search, result, verdict, arguments.random)
            rows.append({"quant": quant, **_figures(verdict, result, chance)})
            _print(rows[-1])
        cost = _cost(result, session)
        print(f"  {cost}", flush=True)
        return [*rows, {"quant": quant, "cost": cost}]


def _configs(quant: str, arguments: argparse.Namespace) -> list[Composed]:
    from qsweep.api.composition import compose_trials

    words = [
        f"model.path={model_directory(arguments.model).absolute()}",
        f"outputs_dir={arguments.outputs}",
        "tracking=none",
        "corpus=python_docs",
        f"calibration.num_samples={arguments.samples}",
        *SPACES[quant],
    ]
    if arguments.windows:
        words.append(f"eval.max_windows={arguments.windows}")
    if arguments.context:
        words.append(f"eval.context={arguments.context}")
    if quant == "gptq":
        words.append(f"group_size={arguments.groups}")
    return list(one_batch(compose_trials(words), words))


def _at_random(
    session: Session, search: BudgetSearch, result: BudgetResult, verdict: Verdict, count: int
) -> list[float]:
    """KLD of mixes that nobody thought about, as large as the budget allows."""
    families: Sequence[Family] = search.families
    mixes = []
    for seed in range(count):
        proposal = _random(verdict.limit, families[0], seed)
        mixes.append(families[0].mixed(proposal))
    made = search.workshop.make(search.workshop.plan(mixes))
    records = session.run_configs([one.config for one in made]) if made else []
    return [float(KLD.get(row)) for row in rows_of(records)]


def _random(limit: Limit, family: Family, seed: int) -> Proposal:
    import numpy as np

    left, costs = bits_left(limit, family.costs)
    able = np.isfinite(costs.losses)
    bits = np.where(able, costs.bits, np.inf)
    choice = [int(n) for n in bits.argmin(1)]
    generator = random.Random(seed)  # noqa: S311
    places = list(range(len(choice)))
    generator.shuffle(places)
    for place in places:
        options = [n for n in range(bits.shape[1]) if able[place, n]]
        generator.shuffle(options)
        for option in options:
            others = sum(bits[p, n] for p, n in enumerate(choice) if p != place)
            if others + bits[place, option] <= left:
                choice[place] = option
                break
    return Proposal(limit, costs, tuple(choice))


def _figures(verdict: Verdict, result: BudgetResult, chance: Sequence[float]) -> dict[str, Any]:
    value, low, high = verdict.difference or (None, None, None)
    mix = verdict.mixes[0] if verdict.mixes else None
    return {
        "bpw": verdict.limit.budget.amount,
        "mix": _of(mix),
        "predicted": None if mix is None else result.mixes[mix.key].proposal.loss,
        "others": [_of(row) for row in verdict.mixes[1:]],
        "uniform": _of(verdict.uniform[0] if verdict.uniform else None),
        "share": verdict.share,
        "word": verdict.word,
        "difference": value,
        "difference_low": low,
        "difference_high": high,
        "random_kld": list(chance),
    }


def _of(row: Row | None) -> dict[str, Any] | None:
    if row is None or row.record.artifact is None:
        return None
    artifact = row.record.artifact
    figures = {"kld": KLD.get(row), "size_gb": artifact.size_gb, "bpw": artifact.bpw}
    return {"name": row.label, **figures}


def _cost(result: BudgetResult, session: Session) -> dict[str, Any]:
    """What came on top of the candidates, in seconds, and measuring one uniform trial."""
    spent = [
        record.evaluate_s
        for record in session.sweep.records.values()
        if record.finished and not record.reference and record.evaluate_s
    ]
    one = sum(spent) / max(len(spent), 1)
    mixes = [r for key, r in session.sweep.records.items() if key in result.mixes]
    measuring = sum(record.evaluate_s or 0 for record in mixes)
    on_top = result.seconds["sensitivities"] + result.seconds["mixes"] + measuring
    return {
        "seconds": dict(result.seconds),
        "measuring_one_s": one,
        "measuring_mixes_s": measuring,
        "on_top_s": on_top,
        "times_five_uniform": on_top / (5 * one) if one else None,
    }


def _print(row: dict[str, Any]) -> None:
    def kld(one: dict[str, Any] | None) -> str:
        return f"{one['kld']:.4f} ({one['bpw']:.2f})" if one else "-"

    chance = ", ".join(f"{value:.4f}" for value in row["random_kld"])
    share = f"{row['share']:.3f}" if row["share"] else "-"
    print(
        f"{row['quant']} {row['bpw']:.2f}: mix {kld(row['mix'])}, uniform {kld(row['uniform'])}, "
        f"share {share} ({row['word']}); predicted {row['predicted'] or 0:.4f}; random {chance}",
        flush=True,
    )


if __name__ == "__main__":
    main()
