"""GPTQ on llama.cpp's grids beside llama.cpp's own types with an importance matrix, by KLD.

    python bench/kquants.py --json bench/results/kquants-pocket.json
    python bench/kquants.py --json FILE --model smollm2-135m --windows 16 --formats q4_k q3_k
    python bench/kquants.py --json FILE --quick                one format, little text

All see the same calibration text. A format is compared with the mixture of llama.cpp's that has its
type for most layers, and the next larger one: the mean difference of the windows' mean KLD, with its
95 % interval (t, paired by window). Where a mixture takes other types for some layers, it has more bits.
The same command again measures what FILE lacks.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from origin import origin
from parity import Bench, add_bench_arguments, model_directory
from qsweep.base.files import write_bytes
from qsweep.formats.numbers import Q2K, Q3K, Q4K, Q5K, Q6K, Q40
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.gguf import GGUF
from qsweep.quantizers.native import NativeGPTQ

# What each is compared with, by types of quant=gguf with quant.imatrix=true.
AGAINST = {
    Q2K(): ("Q2_K_S", "Q2_K"),
    Q3K(): ("Q3_K_S", "Q3_K_M"),
    Q4K(): ("Q4_K_S", "Q4_K_M"),
    Q40(): ("Q4_0",),
    Q5K(): ("Q5_K_S", "Q5_K_M"),
    Q6K(): ("Q6_K",),
}
METHODS = {"gptq": 0.0, "gptaq": 0.5}


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bench_arguments(parser)
    names = [format_.name for format_ in AGAINST]
    parser.add_argument("--formats", nargs="+", default=names, choices=names)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.formats, arguments.windows, arguments.samples = ["q4_k"], 8, 4
    content: dict[str, Any] = {"what": "GPTQ on llama.cpp's grids beside its own", "rows": {}}
    if arguments.json.exists():
        content = json.loads(arguments.json.read_text(encoding="utf-8"))
    content |= origin(("torch", "transformers", "llama-cpp-python"))
    _fill(content["rows"], arguments)
    _write(arguments.json, content)
    print_table(content["rows"])


def _fill(rows: dict[str, Any], arguments: argparse.Namespace) -> None:
    chosen = [format_ for format_ in AGAINST if format_.name in arguments.formats]
    theirs = [type_ for format_ in chosen for type_ in AGAINST[format_] if type_ not in rows]
    ours = {
        f"{method} {format_.name}": NativeGPTQ(format=format_, gptaq_alpha=METHODS[method])
        for format_ in chosen
        for method in arguments.methods
    }
    ours = {name: quantizer for name, quantizer in ours.items() if name not in rows}
    if not theirs and not ours:
        return
    model = SourceModel(
        read_facts(model_directory(arguments.model), arguments.model), arguments.device
    )
    bench = _Bench(model, arguments)
    for type_ in theirs:
        rows[type_] = bench.alone(GGUF(type=type_, imatrix=True))
        print(type_, rows[type_]["kld"], flush=True)
    if ours:
        measured = bench.together(list(ours.values()))
        rows |= dict(zip(ours, measured, strict=True))


class _Bench(Bench):
    def _measure(self, artifact: Any) -> dict[str, Any]:
        measured = self._measured(artifact)
        kld = measured.arrays["token_kld"].double()
        by_window = kld.view(len(measured.arrays["window_nll"]), -1).mean(1)
        return {
            "bpw": artifact.size.bpw,
            "size_gb": artifact.size.weight_bytes / 1e9,
            "types": artifact.details["tensor_types"],
            "kld": round(float(by_window.mean()), 7),
            "window_kld": [round(value, 7) for value in by_window.tolist()],
        }


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, float]:
    """Mean difference of the windows' KLD, and half of its 95 % interval."""
    from scipy.stats import t

    pairs = zip(ours["window_kld"], theirs["window_kld"], strict=True)
    values = [one - other for one, other in pairs]
    count, mean = len(values), math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return mean, float(t.ppf(0.975, count - 1)) * error


def print_table(rows: Mapping[str, Any]) -> None:
    """Markdown: a line for each comparison."""
    print("| | bpw | KLD | llama.cpp's, imatrix | bpw | KLD | difference (95 %) | share |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for format_, types in AGAINST.items():
        for name in (f"{method} {format_.name}" for method in METHODS):
            for type_ in types:
                if name in rows and type_ in rows:
                    print(f"| {' | '.join(_cells(name, type_, rows))} |")


def _cells(name: str, type_: str, rows: Mapping[str, Any]) -> Sequence[str]:
    ours, theirs = rows[name], rows[type_]
    mean, half = difference(ours, theirs)
    figures = [f"{ours['bpw']:.2f}", f"{ours['kld']:.5f}", type_]
    figures += [f"{theirs['bpw']:.2f}", f"{theirs['kld']:.5f}"]
    return [name, *figures, f"{mean:+.5f} ± {half:.5f}", f"{ours['kld'] / theirs['kld']:.2f}"]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    head = json.dumps({name: value for name, value in content.items() if name != "rows"}, indent=1)
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in content["rows"].items()
    )
    text = f'{head.removesuffix(chr(10) + "}")},\n "rows": {{\n{lines}\n }}\n}}\n'
    write_bytes(file, text.encode())


if __name__ == "__main__":
    main()
