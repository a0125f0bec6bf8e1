"""What each method costs in each number format, beside llm-compressor's at the same settings.

    python bench/formats.py --json FILE                              the embedded model, all formats
    python bench/formats.py --json FILE --quick                      two formats, little text
    python bench/formats.py --json FILE --model smollm2-135m --formats nvfp4 mxfp4 --methods rtn gptq
    python bench/formats.py --json FILE --sides                      measure nothing, print the table
    python bench/formats.py --cost --json FILE                       what a grid over formats takes

Trials are those of a sweep, kept in the store below --outputs: the same command again finds them, and
each command adds its rows to FILE. llm-compressor's environment is made by ``qsweep env create
llmcompressor --folder ENVS``; both sides see the same calibration samples.

A comparison takes the windows' mean KLD, qsweep's less llm-compressor's, by the same method (gptaq,
which it lacks, against its gptq). It is lost if the one-sided t-test of mean > 0 stays below 5 % after
Holm's correction over all comparisons in FILE, and won if the other one does.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import qsweep
from origin import Clock, origin
from parity import model_directory
from qsweep.evaluate.pairs import holm
from qsweep.quantizers.environments.spec import load_spec
from qsweep.results.record import Row
from qsweep.results.rows import rows as table_rows
from qsweep.results.windows import windows_of

# Integers by their bits and group size, the others as in ``format=``.
FORMATS = (
    *("int4-g64", "int8-g64", "w4a16", "w8a16", "w8a8", "w4a8", "w4afp8"),
    *("fp8", "fp8_dynamic", "fp8_block"),
    *("nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16", "mxfp8"),
    *("nf4", "fp4", "ternary"),
)
# What llm-compressor has no scheme for.
OWN = ("nf4", "fp4", "ternary")
METHODS = ("rtn", "gptq", "gptaq", "awq")
SIDES = ("qsweep", "llm-compressor")
BACKEND = "llmcompressor"
# What a method is compared with.
COUNTERPART = {"gptaq": "gptq"}
LEVEL = 0.05
FIGURES = ("kld", "kld_stderr", "kld_activations", "ppl_ratio")


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="pocket, smollm2-135m, or a directory")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--sides", nargs="*", default=SIDES, choices=SIDES, help="what to measure")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--envs", type=Path, default=Path("outputs/envs"))
    parser.add_argument("--cost", action="store_true")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of --cost, of which the fastest counts"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.windows, arguments.samples, arguments.length = 8, 4, 128
        arguments.rounds = 1
        arguments.formats = [name for name in arguments.formats if name in ("nvfp4", "mxfp4")]
    if arguments.cost:
        rows = measure_cost(arguments)
        print_cost(rows)
        document: dict[str, Any] = {
            "what": "seconds of a grid over number formats beside one of integers"
        }
        document |= {"settings": {"model": Path(arguments.model).name, **_text(arguments)}}
    else:
        document = _open(arguments)
        rows = document.pop("rows")
        for side in arguments.sides:
            for formats in _together(arguments.formats, side):
                _merge(rows, measure(formats, side, arguments))
                _write(arguments.json, document, rows)
        print_table(rows)
    _write(arguments.json, document | origin(), rows)


# --- what comes out --------------------------------------------------------------------------------


def measure(
    formats: Sequence[str], side: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of formats that one sweep can have, by one side; of the store where they are there."""
    methods = [name for name in arguments.methods if side == SIDES[0] or name != "gptaq"]
    options: dict[str, Any] = {
        "quant": methods,
        "corpus": "python_docs",
        "tracking": "none",
        "outputs_dir": str(arguments.outputs),
        "calibration.num_samples": arguments.samples,
        "calibration.max_seq_len": arguments.length,
        "eval.context": arguments.length,
        "eval.max_windows": arguments.windows,
        "eval.noise_floor": False,
    }
    integers = _integers(formats[0])
    options |= integers or {"format": list(formats)}
    if arguments.model != "pocket":
        options |= {"model": "path", "model.path": str(model_directory(arguments.model))}
    if side != SIDES[0]:
        options |= {"quant.backend": BACKEND, "quant.env.folder": str(arguments.envs)}
    found = qsweep.run(options)
    rows = []
    for row in table_rows(found.shown):
        record = row.record
        if _is_asked(row):
            name = formats[0] if integers else record.options["format"]
            rows.append(_row(name, side, row))
        elif record.status != "finished":
            print(f"{side}: {record.name}: {record.status}, {record.reason}", flush=True)
    return rows


def _together(formats: Sequence[str], side: str) -> list[list[str]]:
    """Which formats one sweep can have: all that have bits of their own; integers one by one."""
    held = [name for name in formats if side == SIDES[0] or name not in OWN]
    fixed = [name for name in held if not _integers(name)]
    return [*([fixed] if fixed else []), *([name] for name in held if _integers(name))]


def _integers(name: str) -> dict[str, Any]:
    """The options of ``int4-g64``; nothing for other formats."""
    if not name.startswith("int"):
        return {}
    bits, _, size = name.removeprefix("int").partition("-g")
    return {"bits": int(bits), "group_size": int(size)}


def _is_asked(row: Row) -> bool:
    record = row.record
    return record.status == "finished" and not record.reference and not record.implied


def _row(format_: str, side: str, row: Row) -> dict[str, Any]:
    record, windows = row.record, windows_of(row)
    assert row.measurement and record.artifact and windows and windows.kld is not None
    figures = {name: row.measurement.metrics.get(name) for name in FIGURES}
    return {
        "format": format_,
        # At 8 bits, where nothing is propagated, only its search for scales is left of quant=gptaq.
        "method": "gptaq" if record.options.get("scale_search") == "loss" else record.method,
        "side": side,
        "bpw": round(record.artifact.bpw or 0.0, 4),
        **{name: round(value, 6) for name, value in figures.items() if value is not None},
        "quantize_s": record.quantize_s,
        "window_kld": [round(mean, 7) for mean in (windows.kld[0] / windows.tokens).tolist()],
    }


def _merge(rows: list[dict[str, Any]], new: Iterable[Mapping[str, Any]]) -> None:
    for row in new:
        rows[:] = [other for other in rows if _name(other) != _name(row)] + [dict(row)]
    order = [(f, m, s) for f in FORMATS for m in METHODS for s in SIDES]
    rows.sort(key=lambda row: order.index(_name(row)))


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["format"], row["method"], row["side"]


def compare(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each of qsweep's rows beside its counterpart: the mean difference, and Holm's p of both sides."""
    by_name = {_name(row): row for row in rows}
    found = []
    for format_, method, side in by_name:
        other = by_name.get((format_, COUNTERPART.get(method, method), SIDES[1]))
        if side == SIDES[0] and other is not None:
            row = by_name[format_, method, side]
            found.append({"ours": row, "theirs": other, **_paired(row, other)})
    for name in ("worse", "better"):
        for pair, p in zip(found, holm([pair[name] for pair in found]), strict=True):
            pair[name] = p
    return found


def _paired(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    from scipy.stats import t

    pairs = zip(ours["window_kld"], theirs["window_kld"], strict=True)
    values = [one - other for one, other in pairs]
    count, mean = len(values), math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    if not error:
        # As with codes that are equal bit by bit.
        return {"difference": mean, "worse": float(mean <= 0), "better": float(mean >= 0)}
    tails = {"worse": t.sf(mean / error, count - 1), "better": t.cdf(mean / error, count - 1)}
    return {"difference": mean, **{name: float(p) for name, p in tails.items()}}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Markdown: a line for each format and method."""
    heads = "format method bpw KLD with_activations llm-compressor's of_theirs p_worse p_better"
    print(f"| {' | '.join(heads.split()).replace('_', ' ')} |")
    print(f"| --- | --- |{' ---: |' * 7}")
    pairs = {_name(pair["ours"]): pair for pair in compare(rows)}
    for row in rows:
        if row["side"] != SIDES[0]:
            continue
        cells = [row["format"], row["method"], f"{row['bpw']:.2f}", f"{row['kld']:.5f}"]
        cells.append(f"{row['kld_activations']:.5f}" if "kld_activations" in row else "")
        if pair := pairs.get(_name(row)):
            share = row["kld"] / pair["theirs"]["kld"]
            cells += [f"{pair['theirs']['kld']:.5f}", f"{share:.3f}"]
            cells += [
                f"{pair[name]:.3f}{'*' * (pair[name] < LEVEL)}" for name in ("worse", "better")
            ]
        else:
            cells += [""] * 4
        print(f"| {' | '.join(cells)} |")
    lost, won = (sum(p[name] < LEVEL for p in pairs.values()) for name in ("worse", "better"))
    print(f"{len(pairs)} comparisons: significantly worse {lost}, significantly better {won}")


# --- what it costs ---------------------------------------------------------------------------------


def measure_cost(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a pass of twelve over three formats, and of twelve integer ones, in turns."""
    from transformers import AutoTokenizer

    from qsweep.formats.numbers import MXFP4, NVFP4, FP8Dynamic, Int
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid
    from qsweep.text.corpora import calibration_samples, load_documents
    from qsweep.text.corpus import CorpusConfig

    path = model_directory(arguments.model)
    model = SourceModel(read_facts(path, arguments.model), "cpu")
    text = load_documents(CorpusConfig("python", "python", split="calibration"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    samples = calibration_samples(text, tokenizer, arguments.samples, arguments.length, 0)
    # Equal widths and close group sizes on both sides.
    sides = {
        "integers": [(Int(), 4, 32), (Int(), 4, 64), (Int(), 8, -1)],
        "formats": [(NVFP4(), 4, 16), (MXFP4(), 4, 32), (FP8Dynamic(), 8, -1)],
    }
    rows: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        for side, formats in sides.items():
            quantizers: list[Any] = []
            for format_, bits, size in formats:
                same = {"bits": bits, "group_size": size, "format": format_}
                quantizers += [
                    NativeGPTQ(**same),
                    NativeGPTQ(**same, act_group_aware=False),
                    NativeGPTQ(**same, gptaq_alpha=0.5, scale_search="loss"),
                    NativeAWQ(**same),
                ]
            with tempfile.TemporaryDirectory() as folder:
                outs = [Path(folder) / str(place) for place in range(len(quantizers))]
                for out in outs:
                    out.mkdir()
                clock = Clock()
                made = quantize_grid(model, samples, list(zip(quantizers, outs, strict=True)))
                rows.append({"side": side, "round": number, **clock.read()})
            rows[-1]["shared_s"] = made[0].details["shared_s"]
            rows[-1]["configurations_s"] = [one.details["quantize_s"] for one in made]
    return rows


def print_cost(rows: Sequence[Mapping[str, Any]]) -> None:
    """The fastest round of each."""
    best = {
        side: {
            name: min(r[name] for r in rows if r["side"] == side) for name in ("seconds", "cpu_s")
        }
        for side in ("integers", "formats")
    }
    for side, spent in best.items():
        shares = [spent[name] / best["integers"][name] for name in spent]
        print(f"12 {side:10} {spent['seconds']:8.1f} s {shares[0]:6.2f}   ", end="")
        print(f"{spent['cpu_s']:8.1f} s of the processor {shares[1]:6.2f}")


# --- the file of results ---------------------------------------------------------------------------


def _open(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"model": Path(arguments.model).name, "windows": arguments.windows}
    settings |= {**_text(arguments), "llm-compressor": load_spec(BACKEND).pins()}
    if arguments.json and arguments.json.exists():
        content: dict[str, Any] = json.loads(arguments.json.read_text(encoding="utf-8"))
        if content["settings"] != settings:
            raise SystemExit(f"{arguments.json}: made with {content['settings']}; another --json")
        return content
    return {
        "what": "methods and number formats beside llm-compressor",
        "settings": settings,
        "rows": [],
    }


def _text(arguments: argparse.Namespace) -> dict[str, int]:
    return {"samples": arguments.samples, "length": arguments.length}


def _write(
    file: Path | None, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # One line per row, so that a difference between two files can be read.
    head = json.dumps(dict(document), indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    file.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
