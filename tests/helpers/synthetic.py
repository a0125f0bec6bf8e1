"""Records as a sweep would leave them, made up in any number, for pages that must hold them all."""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

from qsweep.evaluate.verdicts import verdict

_FACTS = {
    "batch": 4, "bos": "stream", "context": 2048, "device_type": "cuda", "dtype": "bfloat16",
    "head": "split", "overrides": {}, "preset": "paper", "protocol": 1, "windows": 141,
    "tokens_scored": 288627,
}  # fmt: skip
_GGUF = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0"}
_HARM = {"gptq": 0.8, "awq": 0.7, "gguf": 0.75, "rtn": 1.3}
_SERVED = {"gguf": ["llama.cpp", "ollama"], "rtn": ["gptqmodel", "transformers"]}
_TASKS = ("knowledge", "math", "code", "chinese")


def synthetic(count: int, model: str = "llama-8b", seed: int = 0) -> list[dict[str, Any]]:
    """So many trials of one model, the reference first, a few of them failed or skipped."""
    dice = random.Random(seed)
    made = [reference(model)]
    for number, setting in enumerate(itertools.islice(_settings(), count - 1)):
        made.append(_trial(model, number, dice, *setting))
    return made[:count]


def reference(model: str = "llama-8b") -> dict[str, Any]:
    """The unquantized model."""
    record = _outline(model, "none", "qsweep", f"{model} none", {}, None)
    record |= {"reference": True, "key": f"{model}-reference"}
    floor = {"kld_floor_dtype": 0.0011, "kld_floor_batch": 0.0004}
    return _finish(record, dict.fromkeys(("python_docs", "python_code"), 1.0), 0.0, 16.06, 16.0,
                   "hf", ["transformers", "vllm"], floor)  # fmt: skip


def _settings() -> Iterator[tuple[Any, ...]]:
    for repeat in itertools.count():
        for bits, group, order, text in itertools.product(
            (4, 3, 8, 2), (128, 64, 32, -1), (False, True), ("wikitext2", "c4", "code")
        ):
            for method in ("gptq", "awq", "gguf", "rtn"):
                yield method, bits, group, order, text, repeat


def _trial(model, number, dice, method, bits, group, order, text, repeat):
    options: dict[str, Any] = {"bits": bits, "group_size": group, "sym": True}
    name = f"{method} {bits}-bit " + ("channel" if group == -1 else f"g{group}")
    if method == "gptq":
        options |= {"desc_act": order, "damp_percent": round(0.01 * (repeat + 1), 4)}
        name += " desc_act" * order
    elif method == "gguf":
        options = {"bits": bits, "type": _GGUF[bits], "imatrix": order, "variant": number}
        name = f"gguf {_GGUF[bits]}" + " imatrix" * order
    else:
        options["variant"] = number
    calibration = text if method in ("gptq", "awq") or options.get("imatrix") else None
    backend = {"gguf": "llama.cpp", "rtn": "qsweep"}.get(method, "gptqmodel")
    record = _outline(model, method, backend, f"{model} {name}", options, calibration)
    record["key"] = f"{model}-{number:06d}"
    if number % 29 == 13:
        reason = "killed by signal 9: out of memory?" if number % 2 else "no kernel for <3> bits"
        return record | {"status": "failed" if number % 2 else "skipped", "reason": reason}
    harm = _HARM[method] * dice.uniform(0.9, 1.1) * (1 - 0.1 * order)
    spread = {128: 1.0, 64: 0.85, 32: 0.7, -1: 1.4}[group]
    log_ratio = harm * spread * 0.055 * 4.2 ** (4 - bits)
    ratios = {
        corpus: math.exp(min(log_ratio * factor * dice.uniform(0.95, 1.05), 6))
        for corpus, factor in (("python_docs", 1.0), ("python_code", 1.25))
    }
    bpw = bits + {128: 0.16, 64: 0.31, 32: 0.63, -1: 0.02}[group]
    size = 1.05 + 15.0 * bpw / 16 * dice.uniform(0.99, 1.01)
    served = _SERVED.get(method, ["gptqmodel", "transformers", "vllm"])
    record = _finish(record, ratios, log_ratio, size, bpw, "gguf" if method == "gguf" else method,
                     served, {})  # fmt: skip
    if method in ("gptq", "awq"):
        record["artifact"]["details"]["loss"] = {
            f"model.layers.{layer}.{part}": (0.1 + layer / 8) * log_ratio * dice.uniform(0.5, 2)
            for layer in range(8)
            for part in ("self_attn.q_proj", "mlp.down_proj")
        }
    record["speed"] = {
        "decode_tps": dice.uniform(40, 60) * 8 / (bits + 4) * (0.8 if order else 1),
        "prefill_tps": dice.uniform(4000, 5000),
        "peak_memory_gb_speed": size * 1.1,
    }
    record["capabilities"] = {
        task: {
            "retention": (left := max(0.0, 1 - log_ratio * factor)),
            "measurable": True,
            "retention_low": max(0.0, left - 0.02),
            "retention_high": left + 0.02,
        }
        for task, factor in zip(_TASKS, (0.4, 1.1, 0.8, 0.6), strict=True)
    }
    return record


def _outline(model, method, backend, name, options, calibration):
    return {
        "status": "finished", "reason": None, "reference": False, "sweep": "demo", "name": name,
        "model": model, "method": method, "backend": backend, "options": options,
        "calibration": calibration, "config": {}, "artifact": None, "measurements": [],
        "speed": None, "quantize_s": None, "evaluate_s": None, "peak_memory_gb": None,
        "peak_host_memory_gb": None, "command": "python -m qsweep -m quant=gptq,awq",
        "environment": {"qsweep": "0.1.0", "python": "3.11.7", "cpu": "EPYC", "cpu_cores": 16,
                        "memory_gb": 128, "packages": {"torch": "2.13.0"},
                        "gpus": [{"name": "H100", "memory_gb": 85.5}]},
    }  # fmt: skip


def _finish(record, ratios, log_ratio, size, bpw, format_, served, more):
    measured = []
    for corpus, ratio in ratios.items():
        width = 0.002 + 0.06 * math.log(ratio)
        quality = min(1.0, 1 - math.log(ratio) / math.log(1.2))
        metrics = {
            "ppl": 6.24 * ratio, "ppl_stderr": 0.11, "ppl_ratio": ratio,
            "ppl_ratio_low": ratio * math.exp(-width), "ppl_ratio_high": ratio * math.exp(width),
            "kld": 0.6 * math.log(ratio), "kld_stderr": 0.0004 + 0.01 * math.log(ratio),
            "kld_median": 0.2 * math.log(ratio), "kld_p99": 5 * math.log(ratio),
            "top1_agreement": max(0.05, 1 - 0.6 * math.log(ratio)), "quality": quality,
            "quality_per_gb": quality / size if quality > 0 else quality, **more,
        }  # fmt: skip
        measured.append(
            {
                "corpus": corpus,
                "preset": "paper",
                "primary": not measured,
                "key": f"{record['key']}-{corpus}",
                "metrics": metrics,
                "facts": {**_FACTS, "fingerprint": f"{record['model']}-{corpus}"},
                "verdict": verdict(ratio),
                "file": "/nowhere",
            }
        )
    artifact = {
        "key": "a" * 32, "path": "/nowhere", "format": format_, "runtimes": served,
        "size_gb": size, "bpw": bpw, "bpw_total": bpw + 0.3, "details": {},
    }  # fmt: skip
    return record | {
        "artifact": artifact, "measurements": measured, "device": "cuda:0", "dtype": "bfloat16",
        "quantize_s": 20 + 400 * log_ratio, "evaluate_s": 30.0, "peak_memory_gb": size + 4,
    }  # fmt: skip
