"""What options beyond plain GPTQ are worth: KLD and perplexity at equal bits, paired by window.

    python bench/beyond.py --json bench/results/beyond-pocket.json
    python bench/beyond.py --json FILE --model smollm2-135m --windows 16
    python bench/beyond.py --json FILE --only 10 --bits 2 3 4 --group-size 32

Every row is the native GPTQ, group-aware, at one width and symmetry; what it is compared with is
the same without the options. t is that of the mean difference of windows' NLL, kld_t that of their
KLD, negative if better.
"""

import argparse
from typing import Any

from origin import Clock, write
from parity import Bench, add_bench_arguments, model_directory, paired
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeGPTQ

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"scale_search": "mse"},
    {"scale_search": "loss"},
    {"gptaq_alpha": 0.25},
    {"gptaq_alpha": 0.5},
    {"gptaq_alpha": 1.0},
    {"gptaq_alpha": 0.5, "scale_search": "loss"},
    {"gptaq_alpha": 1.0, "scale_search": "loss"},
    {"damp_percent": 0.01},
    {"damp_percent": 0.1},
    # What it costs, which is cheaper.
    {"sequential": False},
    # What the output feels of each layer.
    {"gptq_output_hessian": True},
    {"scale_search": "loss", "gptq_output_hessian": True},
    {"gptaq_alpha": 0.5, "scale_search": "loss", "gptq_output_hessian": True},
    {"sequential": False, "gptq_output_hessian": True},
)


def main() -> None:
    """Measure all options, or the first and those whose numbers are given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bench_arguments(parser)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--group-size", type=int, default=64)
    numbers = range(len(OPTIONS))
    parser.add_argument("--only", type=int, nargs="+", default=numbers, choices=numbers)
    arguments = parser.parse_args()
    path = model_directory(arguments.model)
    model = SourceModel(read_facts(path, arguments.model), arguments.device)
    bench = Bench(model, arguments)
    settings = [(bits, sym) for bits in arguments.bits for sym in (True, False)]
    rows: list[dict[str, Any]] = []
    plain: list[dict[str, Any]] = []
    for options in (OPTIONS[number] for number in sorted({0, *arguments.only})):
        clock = Clock()
        measured = bench.together(
            [NativeGPTQ(bits, arguments.group_size, sym=sym, **options) for bits, sym in settings]
        )
        spent = clock.read()
        plain = plain or measured
        for (bits, sym), one, base in zip(settings, measured, plain, strict=True):
            rows.append({"bits": bits, "sym": sym, "options": options, **_compared(one, base)})
            _print(rows[-1])
        print(f"  {spent['cpu_s']:.0f} s of the processor, measuring included", flush=True)
    write(arguments.json, f"options of the native GPTQ on {arguments.model}", rows)


def _compared(one: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    figures = {name: value for name, value in one.items() if not name.startswith("window_")}
    figures["kld_share"] = round(one["kld"] / base["kld"], 4)
    for name, of in (("t", "window_nll"), ("kld_t", "window_kld")):
        mean, spread, _ = paired(one, base, of)
        figures[name] = round(mean / spread, 2) if spread else None
    return figures


def _print(row: dict[str, Any]) -> None:
    options = " ".join(f"{name}={value}" for name, value in row["options"].items()) or "plain"
    print(
        f"{row['bits']} bits {'sym' if row['sym'] else 'asym':4} {options:36} "
        f"ratio {row['ppl_ratio']:.4f}  KLD {row['kld']:.4f} ({row['kld_share']:.3f} of plain, t {row['kld_t'] or 0:+.1f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
