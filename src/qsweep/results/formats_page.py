"""The tables of ``docs/formats.md`` from the classes; ``tools/formats_page.py`` writes them there."""

import re

from qsweep.formats.hardware import CARDS, GENERATIONS, native_on
from qsweep.formats.numbers import FORMATS, NumberFormat
from qsweep.results.markdown_table import table

_PART = re.compile(r"(<!-- (\w+), by tools/formats_page.py -->).*?(<!-- end -->)", re.DOTALL)
_HEADINGS = (
    "format", "what a weight is", "bits per weight", "activations", "container", "served by",
    "native on", "when to take it",
)  # fmt: skip
# What a scale takes, beside codes; per layer and per output that is next to nothing.
_SCALE_BITS = {
    "nvfp4": 8,
    "nvfp4a16": 8,
    "mxfp4": 8,
    "mxfp4a16": 8,
    "mxfp8": 8,
    "nf4": 32,
    "fp4": 32,
}
_WHEN = {
    "int": "the default: any bits and group size, in GPTQ's and AWQ's own containers",
    "w4a16": "4 bits on any card, where few requests run at once and memory is what counts",
    "w8a16": "8 bits on any card",
    "w8a8": "throughput on cards of before Ada; smoothquant where activations have outliers",
    "w4a8": "Arm CPUs",
    "w4afp8": "Hopper: the memory of 4 bits, the throughput of FP8",
    "fp8": "FP8 with nothing to compute while serving; calibrated on text like yours",
    "fp8_dynamic": "the usual 8 bits from Ada on: needs no calibration",
    "fp8_block": "models that were trained so (DeepSeek's layout)",
    "nvfp4": "Blackwell, for memory and throughput; its scales are finer than mxfp4's",
    "nvfp4a16": "the weights of nvfp4 alone, on any card",
    "mxfp4": "Blackwell, where runtimes want the open standard",
    "mxfp4a16": "the weights of mxfp4 alone, on any card",
    "mxfp8": "Blackwell, FP8 with finer scales",
    "nf4": "what bitsandbytes loads: fine-tuning with adapters on top",
    "fp4": "bitsandbytes' other type",
    "ternary": "to see what two bits can hold; models are trained for it",
    "q2_k": "llama.cpp and ollama, the smallest that is solved",
    "q3_k": "llama.cpp and ollama, where 4 bits do not fit",
    "q4_k": "llama.cpp and ollama, the usual 4 bits",
    "q5_k": "llama.cpp and ollama, close to the model",
    "q6_k": "llama.cpp and ollama, hardly told from the model",
    "q4_0": "llama.cpp's quickest kernels on phones and Arm CPUs",
    "q8_0": "llama.cpp and ollama, 8 bits",
}


def formats_table() -> str:
    """A row for each number format, from its class."""
    return table(_HEADINGS, map(_line, FORMATS.values()), figures=False)


def cards_table() -> str:
    """A row for each generation of GPUs, the oldest first."""
    lines = []
    for generation in GENERATIONS:
        cards = [card for card in CARDS.values() if card.generation == generation]
        names = ", ".join(f"{card.name} ({card.memory_gb} GB)" for card in cards)
        lines.append([generation.capitalize(), names])
    return table(("generation", "cards"), lines, figures=False)


def with_tables(page: str) -> str:
    """The page with its tables between their marks. Raises KeyError where a mark names none."""
    parts = {"formats": formats_table, "cards": cards_table}
    return _PART.sub(lambda found: f"{found[1]}\n\n{parts[found[2]]()}\n\n{found[3]}", page)


def _line(number: type[NumberFormat]) -> list[str]:
    what = (number.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
    holders = number.containers or ("gptq", "awq", "compressed-tensors")
    return [
        number.name,
        what.rstrip(".").replace("``", ""),
        _bits(number),
        number.activations or "16 bits",
        ", ".join(dict.fromkeys((*holders, "gguf") if number.gguf else holders)),
        ", ".join(number.runtimes),
        native_on(number),
        _WHEN[number.name],
    ]


def _bits(number: type[NumberFormat]) -> str:
    if (stored := getattr(number, "stored_bits", None)) is not None:
        return f"{stored:g}"
    if number.bits is None:
        return "bits + 16 / group_size"
    size = number.group_size
    if size in (None, -1):
        return f"{number.bits}"
    scale = _SCALE_BITS.get(number.name, 0 if number.name == "fp8_block" else 16)
    bits = 8 if number.name == "w4a8" else number.bits  # in whole bytes
    return f"{bits + scale / size:g}"
