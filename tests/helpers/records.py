"""Records of trials, made by hand."""

import io
import math
from pathlib import Path

from rich.console import Console

from helpers.typed import typed
from qsweep.evaluate.verdicts import verdict
from qsweep.results.terminal import print_results
from qsweep.tasks.long.compare import LongFigures


def trial(name: str, method: str, ratio=None, half=0.005, *, bits=None, size_gb=0.006, **more):
    reference = method == "none"
    measured = ratio is not None
    record = {
        "key": f"key-{name}",
        "status": "finished" if measured else "failed",
        "reason": None,
        "sweep": "demo",
        "name": f"pocket {name}",
        "reference": reference,
        "model": "pocket",
        "method": method,
        "backend": "qsweep",
        "options": {} if reference else {"bits": bits, "group_size": 128, "sym": True},
        "calibration": None,
        "artifact": {
            "key": f"a-{name}",
            "path": f"/store/artifacts/{name}",
            "format": "gptq",
            "runtimes": ["gptqmodel", "vllm"],
            "size_gb": size_gb,
            "bpw": 4.25,
            "bpw_total": 5.0,
            "details": {},
        }
        if measured
        else None,
        "measurements": [measurement(ratio, half, size_gb)] if measured else [],
        "speed": None,
        "quantize_s": 12.5,
        "evaluate_s": 20.0,
        "peak_memory_gb": 0.9,
        "config": {},
        "environment": {},
        "command": "python -m qsweep -m",
        "log": f"/logs/{name}",
    }
    return record | more


def reference(**more):
    record = trial("none", "none", 1.0, 0.0, size_gb=0.0118, **more)
    record["measurements"][0]["metrics"] |= {"kld": 0.0, "kld_stderr": 0.0}
    return record


def shown(records, width: int, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False)
    print_results(typed(records), Path("outputs/sweeps/demo"), console)
    return out.getvalue()


def measurement(ratio: float, half: float, size_gb: float, place=("python_docs", "paper"), **more):
    quality = min(1.0, 1 - math.log(ratio) / math.log(1.2))
    metrics = {
        "ppl": 18.0 * ratio,
        "ppl_stderr": 0.4,
        "ppl_ratio": ratio,
        "ppl_ratio_low": ratio - half,
        "ppl_ratio_high": ratio + half,
        "kld": max(0.0, ratio - 1),
        "kld_stderr": 0.001,
        "kld_p99": 0.3,
        "top1_agreement": 0.93,
        "quality": quality,
        "quality_per_gb": quality / size_gb if quality > 0 else quality,
        **more,
    }
    return {
        "corpus": place[0],
        "preset": place[1],
        "primary": place == ("python_docs", "paper"),
        "key": "m",
        "metrics": metrics,
        "facts": {"windows": 41, "tokens_scored": 41943},
        "verdict": verdict(ratio),
        "file": "/nowhere",
    }


def long_figures(**more) -> LongFigures:
    """What a task's long answers suffered."""
    plain = {
        "problems": 20, "samples": 80, "length": 240.0, "reference_length": 200.0, "length_ratio": 1.2,
        "length_ratio_low": 1.1, "length_ratio_high": 1.32, "truncated": 0.25, "loops": 0.1,
        "reference_truncated": 0.0, "reference_loops": 0.0, "departed": 0.8, "longest": 180,
        "divergence_token": 37, "divergence_token_low": 21, "divergence_token_high": 60,
        "tokens": (10, 37, 150), "shares": (0.9, 0.5, 0.2),
    }  # fmt: skip
    return LongFigures(**plain | more)
