"""The card of an exported artifact: how it was made, what was measured, how to serve it."""

import json
from collections.abc import Sequence
from typing import Any

from qsweep.base import numbers
from qsweep.formats import hardware
from qsweep.formats.numbers import Int
from qsweep.models.architecture import CAUSAL
from qsweep.results import own_run
from qsweep.results.columns import derived
from qsweep.results.columns.table import BPW, BPW_TOTAL, MEASURED_ON, SIZE_GB
from qsweep.results.columns.views import headings, lines_of
from qsweep.results.markdown_table import table
from qsweep.results.record import ArtifactFacts, Record, Row

_PACKAGES = ("torch", "transformers", "gptqmodel", "llama-cpp-python")
# What transformers reads each format with.
_READS = {
    "gptq": "optimum gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
}


def model_card(
    record: Record,
    made: dict[str, Any],
    files: Sequence[str],
    name: str,
    auto: str = CAUSAL,
) -> str:
    """The README.md of an export.

    Args:
        record: Of the trial.
        made: What the artifact's maker said of it.
        files: The names of what is exported.
        name: What the export is called.
        auto: The automatic class of transformers that loads it.
    """
    parts = [
        _front_matter(record),
        f"# {numbers.markdown(name)}",
        f"{numbers.markdown(record.model)}, quantized with {numbers.markdown(record.method)} "
        f"by {numbers.markdown(record.backend)}. Made and measured by qsweep.",
        "## How it was made",
        _made(record, made),
        "## What was measured",
        _measured(record),
        "## How to serve it",
        *_serving(record, files, name, auto),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: Record) -> str:
    # JSON strings are YAML strings, whatever is in them.
    model = record.model_config
    lines = ["---", f"tags: {json.dumps(['quantized', record.method, 'qsweep'])}"]
    if model.get("repo"):
        lines += [f"base_model: {json.dumps(model['repo'])}", "base_model_relation: quantized"]
    return "\n".join([*lines, "---"])


def _made(record: Record, made: dict[str, Any]) -> str:
    model, environment = record.model_config, record.environment
    calibration = record.config.get("calibration") or {}
    options = ", ".join(f"{k}={v}" for k, v in record.options.items() if v is not None)
    packages = environment.get("packages") or {}
    facts = {
        "base model": model.get("repo") or record.model,
        "revision": model.get("revision"),
        "reference": record.dequantized_from and f"dequantized from {record.dequantized_from}",
        "method": f"{record.method} ({record.backend})",
        "options": options,
        "calibration": f"{record.calibration}, {calibration.get('num_samples')} samples of "
        f"{calibration.get('max_seq_len')} tokens, seed {calibration.get('seed')}"
        if record.calibration
        else "none",
        "quantized in": numbers.seconds(made.get("quantize_s")),
        "versions": ", ".join(
            [
                f"qsweep {environment.get('qsweep')}",
                *(f"{package} {packages[package]}" for package in _PACKAGES if package in packages),
            ]
        ),
        "commit": environment.get("git_commit"),
        "trial": record.key,
        "command": record.command,
    }
    return "\n".join(
        f"- {name}: {numbers.markdown(value)}" for name, value in facts.items() if value
    )


def _measured(record: Record) -> str:
    whole = Row(record)
    if record.only_own_run:
        return (
            f"{own_run.sentence(record)}. {SIZE_GB.cell(whole)} GB of weights, "
            f"{BPW_TOTAL.cell(whole)} bits per parameter of the whole model."
        )
    rows = [Row(record, measurement) for measurement in record.measurements]
    made = record.artifact or ArtifactFacts()
    kept, why = made.kept_layers, f" ({numbers.markdown(made.kept_by)})" if made.kept_by else ""
    size = (
        f"{SIZE_GB.cell(whole)} GB of weights, "
        f"{BPW.cell(whole)} bits per weight of the quantized layers"
        f"{f', {kept} linear layers stayed in 16 bits{why}' if kept else ''}."
    )
    words = [
        table(
            ["text", *headings("card", rows)],
            [
                [MEASURED_ON.cell(row), *cells]
                for row, cells in zip(rows, lines_of(rows, "card"), strict=True)
            ],
        ),
        size + " Perplexity is relative to the unquantized model on the same tokens, with a paired "
        "interval; KLD is in nats per token; top-1 is how often both prefer the same token. "
        "Measured on the dense weights: a serving kernel may add rounding of its own.",
    ]
    if record.expected:
        low, high = record.expected
        words.append(f"The field expects a ratio of {low:.2f} to {high:.2f} of this method.")
    if overrides := _overrides(record):
        words.append(
            f"**A quick look, not the full protocol:** the measurement was cut short ({overrides})."
        )
    return "\n\n".join(words)


def _overrides(record: Record) -> str:
    for measurement in record.measurements:
        found = dict(measurement.overrides)
        if not measurement.windows_cut:
            found.pop("max_windows", None)
        if found:
            return numbers.markdown(", ".join(f"{name} {value}" for name, value in found.items()))
    return ""


def _serving(record: Record, files: Sequence[str], name: str, auto: str) -> list[str]:
    runtimes = " ".join(record.runtimes)
    needs = derived.needs_generation(Row(record))
    gguf = next((file for file in files if file.endswith(".gguf")), None)
    words = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lower() or "model"
    if gguf and "llama.cpp" not in runtimes:
        return [
            "Nothing serves this file as it was measured: llama.cpp, and what builds on it, computes "
            "another function from it than the model's, or cannot run it."
        ]
    if gguf:
        return [
            "llama.cpp:",
            _code(f"llama-server -m {gguf} -c 8192 -ngl 99"),
            "Ollama, with the `Modelfile` here:",
            _code(f"ollama create {words} -f Modelfile\nollama run {words}"),
        ]
    found = []
    if "vllm" in runtimes:
        found += ["vLLM:", _code(f"vllm serve . --served-model-name {words}")]
    if "transformers" in runtimes:
        holder = record.artifact.format if record.artifact else None
        need = f"pip install transformers accelerate {_READS.get(holder or '', '')}".rstrip()
        code = (
            f"from transformers import {auto}, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            f'model = {auto}.from_pretrained(".", device_map="auto")\n'
            'inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)\n'
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"
        )
        found += ["transformers:", _code(need), _code(code, "python")]
    elif "gptqmodel" in runtimes:
        code = 'from gptqmodel import GPTQModel\n\nmodel = GPTQModel.load(".")'
        alone = "" if found else " (no server loads this)"
        found += [f"GPTQModel{alone}:", _code(code, "python")]
    if found and needs:
        number = record.number_format or Int
        found.insert(0, f"{number.name}: {hardware.where(number)}.")
    return found or ["Nothing that is known to qsweep serves this artifact."]


def _code(text: str, language: str = "bash") -> str:
    return f"```{language}\n{text}\n```"
