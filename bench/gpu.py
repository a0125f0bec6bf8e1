"""Checks and measures everything on a GPU: correctness, evaluation, quantization, serving.

Needs no network: models have random weights, made on the device. Each part runs in a process of its
own for at most eight minutes, writes OUT/gpu-PART.json after every figure, and says what it skipped
and why.

    python bench/gpu.py --out results
    python bench/gpu.py --out results --part evaluate
    python bench/gpu.py --out /tmp/try --device cpu --quick      its code, where there is no GPU
"""

import argparse
import importlib
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

PARTS = ("correctness", "evaluate", "quantize", "serve")
LIMIT_S = 480
# Kept for the step that is running when the time is up, and for starting.
_RESERVE_S = 60


def main() -> int:
    """Run the parts that the command line asks for; 1 if a figure is out of its bounds."""
    options = parse()
    if options.here:
        return run_here(options.part[0], options)
    failed = [part for part in options.part or PARTS if run_apart(part, options)]
    print(
        f"\nresults are in {options.out}" + (f"; not well: {', '.join(failed)}" if failed else "")
    )
    return int(bool(failed))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all of them")
    parser.add_argument("--device", default="cuda:0", help="cuda:N; cpu tries the code only")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each part")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda":
        options.device = "cuda:0"
    return options


def run_apart(part: str, options: argparse.Namespace) -> int:
    """Run a part in a process of its own, which is killed when its time is up."""
    print(f"\n== {part}", flush=True)
    command = [sys.executable, __file__, "--here", "--part", part, "--out", str(options.out)]
    command += ["--device", options.device, "--limit", str(options.limit)]
    command += ["--quick"] if options.quick else []
    started = time.monotonic()
    try:
        status = subprocess.run(command, timeout=options.limit).returncode  # noqa: S603
    except subprocess.TimeoutExpired:
        status = 1
        print(f"{part}: stopped after {options.limit:.0f} s; what it found is kept", flush=True)
    print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
    return status


def run_here(part: str, options: argparse.Namespace) -> int:
    """Run a part in this process."""
    from gpu_parts.lab import Lab

    if options.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            print(f"{part}: skipped, torch {torch.__version__} sees no CUDA device")
            return 1
        torch.cuda.set_device(options.device)
    limit = max(options.limit - _RESERVE_S, options.limit / 2)
    lab = Lab(part, options.device, options.out.absolute(), options.quick, limit)
    importlib.import_module(f"gpu_parts.{part}").run(lab)
    return 0 if lab.finish() else 1


if __name__ == "__main__":
    sys.exit(main())
