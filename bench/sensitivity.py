"""Do sensitivities tell what swapping one layer costs? Every estimator beside measured swaps.

    python bench/sensitivity.py --json bench/results/sensitivity-pocket.json
    python bench/sensitivity.py --json FILE --model smollm2-135m --windows 4 --samples 8 --layers 24
    python bench/sensitivity.py --json FILE --quick

Candidates are made of the model by GPTQ and by rounding. Each of a sample of their layers is put into the
unquantized model by itself, and the KL divergence is measured on windows of the test text. Beside
it stands what each estimator says of the same layer from the calibration text: Spearman's rank
correlation over all swaps and, on average, within the layers of one candidate; and how far the mean of
ln(predicted / measured) is from 0. Whole artifacts are measured, too, beside the sum over their layers.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from origin import Clock, write
from parity import Bench, add_bench_arguments, model_directory
from qsweep.base.numbers import significant
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeGPTQ, quantize_grid
from qsweep.quantizers.rtn import RTN
from qsweep.quantizers.sensitivity.version import SAMPLES

# Of how many samples of the calibration text sensitivities are tried.
COUNTS = (1, 2, 4, 8, 16, 32)
SHOWN = ("gram", "relative gram", "diagonal", "kronecker", "per sequence", "fisher")


def main() -> None:
    """Measure, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bench_arguments(parser)
    parser.set_defaults(samples=32, windows=16)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--methods", nargs="+", default=["gptq", "rtn"], choices=["gptq", "rtn"])
    parser.add_argument("--layers", type=int, default=0, help="how many are swapped; 0: all")
    parser.add_argument("--swapped", type=int, default=0, help="of how many candidates; 0: all")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1], help="of the text")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.windows, arguments.samples, arguments.layers = 2, 2, 4
        arguments.bits, arguments.groups, arguments.draws = [3, 4], [128], [1]
    rows = measured(arguments)
    print_tables(rows)
    write(arguments.json, "sensitivities beside measured swaps", rows, ("torch", "transformers"))


class SwapBench(Bench):
    """A :class:`Bench` that measures a model in which one layer is swapped."""

    def __init__(self, model: SourceModel, arguments: argparse.Namespace):
        from qsweep.formats.hf import reference_artifact

        super().__init__(model, arguments)
        self.network = self._load(reference_artifact(model.facts))

    def whole(self, artifact: Any) -> float:
        """KLD of a whole artifact."""
        return float(self._measure(artifact)["kld"])

    def swapped(self, name: str, error: Any) -> float:
        """KLD of the model with ``error`` [out, in] added to one layer's weight."""
        import torch

        from qsweep.evaluate import compare, measure

        weight = self.network.get_submodule(name).weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight += error
            found = measure(self.network, self._windows, self._states)
            weight.copy_(before)
        return float((found.metrics | compare(found, self._reference))["kld"])

    def text(self, draw: int) -> Any:
        """The samples that a sensitivity is of."""
        return self._samples(draw)


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Everything that the file of results holds."""
    path = model_directory(arguments.model)
    model = SourceModel(read_facts(path, arguments.model), arguments.device)
    bench = SwapBench(model, arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        artifacts = _made(model, bench, arguments, Path(folder))
        for name, artifact in artifacts.items():
            clock = Clock()
            kld = bench.whole(artifact)
            rows.append({"row": "whole", "candidate": name, "kld": kld, **clock.read()})
            print(f"{name}: KLD {kld:.5f}", flush=True)
        predictions = {}
        for draw in arguments.draws:
            predictions[draw] = _predicted(model, bench.text(draw), artifacts)
            print(f"draw {draw} of the text: predicted", flush=True)
        rows += _walks(model, bench, artifacts)
        rows += _swaps(model, bench, artifacts, arguments)
    rows += _beside(rows, predictions)
    return rows


def _made(
    model: SourceModel, bench: SwapBench, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Candidates by name."""
    wanted: dict[str, Any] = {
        f"gptq {bits} g{group}": NativeGPTQ(bits, group)
        for bits in arguments.bits
        for group in arguments.groups
        if "gptq" in arguments.methods
    }
    outs = [folder / name for name in wanted]
    for out in outs:
        out.mkdir()
    pairs = list(zip(wanted.values(), outs, strict=True))
    made = (
        dict(zip(wanted, quantize_grid(model, bench.text(0), pairs), strict=True)) if pairs else {}
    )
    for bits in arguments.bits if "rtn" in arguments.methods else ():
        name = f"rtn {bits} g{arguments.groups[-1]}"
        (out := folder / name).mkdir()
        made[name] = RTN(bits, arguments.groups[-1]).quantize(model, None, out)
    return made


def _walks(
    model: SourceModel, bench: SwapBench, artifacts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """How long sensitivities of all candidates take, by the number of samples."""
    from qsweep.quantizers.sensitivity.predict import sensitivities
    from qsweep.text.calibration import CalibrationTokens

    rows = []
    samples = bench.text(0).samples
    for count in (1, SAMPLES):
        if count <= len(samples):
            clock = Clock()
            sensitivities(model, CalibrationTokens(samples[:count]), artifacts)
            rows.append(
                {"row": "walk", "samples": count, "candidates": len(artifacts), **clock.read()}
            )
    return rows


def _swaps(
    model: SourceModel,
    bench: SwapBench,
    artifacts: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The measured KLD of swapped layers, evenly spread over the model."""
    from qsweep.models.facts import read_tensors
    from qsweep.models.spelling import spelling_of
    from qsweep.quantizers.sensitivity.candidates import Candidate

    names = list(model.facts.linears)
    chosen = _spread(names, arguments.layers or len(names))
    spelling = spelling_of(bench.network, read_tensors(model.path))
    rows = []
    for key in _spread(list(artifacts), arguments.swapped or len(artifacts)):
        candidate = Candidate(artifacts[key], model, spelling)
        for name in chosen:
            clock = Clock()
            error = candidate.error(name, bench.network.get_submodule(name))
            kld = significant(bench.swapped(name, error), 5)
            rows.append(
                {"row": "swap", "candidate": key, "layer": name, "kld": float(kld)} | clock.read()
            )
        print(f"{key}: {len(chosen)} layers swapped", flush=True)
    return rows


def _spread(items: Sequence[str], count: int) -> list[str]:
    # A stride that is no multiple of the layers' kinds meets all of these.
    step = len(items) / count
    return [items[int(number * step)] for number in range(count)]


# By estimator, by candidate and layer: what it says from each sample of the text, or from all.
_Predicted = dict[str, dict[tuple[str, str], list[float]]]


def _predicted(model: SourceModel, text: Any, artifacts: Mapping[str, Any]) -> _Predicted:
    """What each estimator says of every layer and candidate."""
    from qsweep.models.facts import read_tensors
    from qsweep.models.spelling import spelling_of
    from qsweep.quantizers.native.gradients import gradients
    from qsweep.quantizers.native.graph import weight_of
    from qsweep.quantizers.native.network import load_network
    from qsweep.quantizers.sensitivity.candidates import Candidate
    from qsweep.quantizers.sensitivity.estimators import ESTIMATORS, gram

    network = load_network(model)
    spelling = spelling_of(network, read_tensors(model.path))
    read = {key: Candidate(one, model, spelling) for key, one in artifacts.items()}
    length = len(text.samples[0])
    # Those that are only compared are of as much text as the default takes.
    some = SAMPLES * length
    found: _Predicted = {name: {} for name in SHOWN}
    for together in gradients(network, text.samples, model.device, list(model.facts.linears)):
        outputs = {
            seen.name: gram(weight_of(seen.module), seen.inputs[:some], seen.gradients[:some], some)
            for seen in together
        }
        for key, candidate in read.items():
            for seen in together:
                error = candidate.error(seen.name, seen.module)
                place = key, seen.name
                few = seen.inputs[:some], seen.gradients[:some], min(some, seen.tokens)
                whole = {
                    name: ESTIMATORS[name](error, *few)
                    for name in ("gram", "diagonal", "kronecker")
                }
                whole["relative gram"] = whole["gram"] / outputs[seen.name]
                felt = ((seen.inputs @ error.T) * seen.gradients).sum(1).double().view(-1, length)
                for name, value in whole.items():
                    found[name][place] = [value]
                found["fisher"][place] = (felt.square().sum(1) / 2 / length).tolist()
                found["per sequence"][place] = (felt.sum(1).square() / 2 / length).tolist()
    return found


def _beside(
    rows: Sequence[Mapping[str, Any]], predictions: Mapping[int, _Predicted]
) -> list[dict[str, Any]]:
    """Each estimator beside what was measured."""
    swaps = {(r["candidate"], r["layer"]): r["kld"] for r in rows if r["row"] == "swap"}
    wholes = {r["candidate"]: r["kld"] for r in rows if r["row"] == "whole"}
    added: list[dict[str, Any]] = []
    for draw, found in predictions.items():
        for name, values in found.items():
            means = {place: math.fsum(v) / len(v) for place, v in values.items()}
            added.append(
                {"row": "estimator", "draw": draw, "estimator": name} | _ranks(swaps, means)
            )
        values = found["fisher"]
        samples = len(next(iter(values.values())))
        for count in (count for count in COUNTS if count <= samples):
            # Blocks of so many samples, of which each could have been the only one.
            blocks = [
                {place: math.fsum(v[start : start + count]) / count for place, v in values.items()}
                for start in range(0, samples - count + 1, count)
            ]
            each = [_ranks(swaps, block) for block in blocks]
            whole = {key: _sum(values_of(found), key) for key in wholes}
            sums = [
                math.log(_sum(block, key) / total)
                for block in blocks
                for key, total in whole.items()
            ]
            added.append(
                {"row": "tokens", "draw": draw, "samples": count}
                | {name: _mean([one[name] for one in each]) for name in each[0]}
                | {"spread_of_sums": round(math.sqrt(_mean([one**2 for one in sums])), 4)}
            )
        for key, kld in wholes.items():
            total = _sum(values_of(found), key)
            added.append(
                {"row": "sum", "draw": draw, "candidate": key, "predicted": round(total, 6)}
                | {"kld": kld, "ratio": round(total / kld, 4)}
            )
    return added


def values_of(found: _Predicted) -> dict[tuple[str, str], float]:
    """What the default estimator says from the whole text."""
    return {place: math.fsum(v) / len(v) for place, v in found["fisher"].items()}


def _sum(values: Mapping[tuple[str, str], float], candidate: str) -> float:
    return math.fsum(value for (key, _), value in values.items() if key == candidate)


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 4)


def _ranks(
    swaps: Mapping[tuple[str, str], float], values: Mapping[tuple[str, str], float]
) -> dict[str, float]:
    """Rank correlation over all swaps and within candidates, and the logarithm of the scale."""
    from scipy.stats import spearmanr

    def rank(places: Sequence[tuple[str, str]]) -> float:
        pairs = [values[place] for place in places], [swaps[place] for place in places]
        return float(spearmanr(*pairs).statistic)

    logs = [math.log(values[place] / swaps[place]) for place in swaps]
    middle = math.fsum(logs) / len(logs)
    spread = math.sqrt(math.fsum((one - middle) ** 2 for one in logs) / len(logs))
    within = [
        rank([place for place in swaps if place[0] == key])
        for key in dict.fromkeys(key for key, _ in swaps)
    ]
    return {
        "spearman": round(rank(list(swaps)), 4),
        "within": _mean(within),
        "worst_within": round(min(within), 4),
        "log_ratio": round(middle, 4),
        "log_spread": round(spread, 4),
    }


def print_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    """What the rows say."""

    def of(kind: str) -> list[Mapping[str, Any]]:
        return [row for row in rows if row["row"] == kind]

    swaps = of("swap")
    spent = math.fsum(row["seconds"] for row in swaps)
    print(f"{len(swaps)} swaps measured in {spent:.0f} s")
    heads = f"{'all':>7} {'within':>7} {'worst':>7} {'log ratio':>10} {'spread':>7}"
    print(f"\n{'estimator, draw':24} {heads}")
    for row in of("estimator"):
        print(f"{row['estimator'] + ', ' + str(row['draw']):24} {_figures(row)}")
    print(f"\n{'samples, draw':24} {heads} {'sums':>7}")
    for row in of("tokens"):
        label = f"{row['samples']}, {row['draw']}"
        print(f"{label:24} {_figures(row)} {row['spread_of_sums']:7.4f}")
    print(f"\n{'whole, draw':24} {'predicted':>10} {'measured':>10} {'ratio':>7}")
    for row in of("sum"):
        label = f"{row['candidate']}, {row['draw']}"
        print(f"{label:24} {row['predicted']:10.5f} {row['kld']:10.5f} {row['ratio']:7.3f}")
    print()
    for row in of("walk"):
        print(f"{row['candidates']} candidates, {row['samples']} samples: {row['seconds']:.1f} s")


def _figures(row: Mapping[str, Any]) -> str:
    return (
        f"{row['spearman']:7.4f} {row['within']:7.4f} {row['worst_within']:7.4f} "
        f"{row['log_ratio']:+10.4f} {row['log_spread']:7.4f}"
    )


if __name__ == "__main__":
    main()
