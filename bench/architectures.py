"""What works on which architecture: a miniature of each, by each method, held against others' code.

    python bench/architectures.py                                 all that is not in the cache
    python bench/architectures.py --only llama,qwen3_moe --methods rtn,gptq --again
    python bench/architectures.py --json bench/results/architectures.json --page

A miniature has random weights and two layers or a few more (``miniatures.py``). A cell is right if

- none: the engine's logits are those of transformers' own loop;
- rtn, gptq, awq: everything that 4 bits mean is quantized, the dense engine's weights are what numpy
  unpacks from the files, each where it was, and the logits are near the reference's;
- gguf: llama.cpp's own run of the file gives the logits that the dense engine reads in it.

Cells are kept below --outputs by the versions of all that takes part; an architecture has a process
of its own, which may die.
"""

import argparse
import functools
import hashlib
import inspect
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import miniatures
from architecture_parts.cells import METHODS, Cell, check
from architecture_parts.forked import fork, forked_interpreters
from architecture_parts.page import PAGE, page
from architecture_parts.rows import NOT_ALONE, Architecture, architectures
from origin import write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "architectures.json"
PACKAGES = ("qsweep", "transformers", "torch", "gguf", "llama-cpp-python")
STATES = ("right", "skipped", "wrong", "failed")


def main() -> None:
    """Check what is missing, then print how many cells are what."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--methods", default=",".join(METHODS), help="of none,rtn,gptq,awq,gguf")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at once")
    parser.add_argument("--again", action="store_true", help="also what is in the cache")
    parser.add_argument("--quick", action="store_true", help="twelve architectures")
    parser.add_argument("--timeout", type=int, default=300, help="seconds per architecture")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/architectures"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", action="store_true", help=f"write {PAGE}")
    arguments = parser.parse_args()
    rows = _chosen(arguments)
    methods = arguments.methods.split(",")
    place = arguments.outputs / cache_key()
    place.mkdir(parents=True, exist_ok=True)
    if arguments.again:
        for row in rows:
            for method in methods:
                _file(place, row, method).unlink(missing_ok=True)
    _run(rows, methods, place, arguments.jobs, arguments.timeout)
    cells = [
        json.loads(file.read_text())
        for r in rows
        for m in methods
        if (file := _file(place, r, m)).exists()
    ]
    print_counts(cells, methods)
    if arguments.json:
        write(arguments.json, "what works on which architecture", cells, PACKAGES)
    if arguments.page:
        document = json.loads((arguments.json or RESULTS).read_text())
        (ROOT / PAGE).write_text(page(document), encoding="utf-8")


def _chosen(arguments: argparse.Namespace) -> list[Architecture]:
    rows = architectures()
    if arguments.quick:
        wanted = set(
            "llama gemma3_text qwen3_moe gpt_oss deepseek_v3 qwen3_next mamba phi gpt2".split()
        )
    elif arguments.only:
        wanted = set(arguments.only.split(","))
        if unknown := wanted - {name for row in rows for name in (row.name, row.model_type)}:
            sys.exit(f"--only: no such architecture: {', '.join(sorted(unknown))}")
    else:
        return rows
    return [row for row in rows if row.name in wanted or row.model_type in wanted]


def cache_key() -> str:
    """Of everything that decides a cell: qsweep's source and this benchmark's, and the libraries."""
    from qsweep.base.environment import package_versions

    digest = hashlib.sha256()
    files = [
        ROOT / "bench" / "architecture_parts" / f"{name}.py" for name in ("cells", "independent")
    ]
    for file in sorted([*(ROOT / "src").rglob("*.py"), *files]):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    made_by = (miniatures.build, miniatures.draw_weights, miniatures.miniature)
    digest.update("".join(map(inspect.getsource, made_by)).encode())
    digest.update(json.dumps(package_versions(PACKAGES[1:]), sort_keys=True).encode())
    return digest.hexdigest()[:12]


def _file(place: Path, row: Architecture, method: str) -> Path:
    return place / f"{row.file}-{_sizes(row)}.{method}.json"


@functools.cache
def _sizes(row: Architecture) -> str:
    """The tables of sizes change more often than anything else: each row depends on its own only."""
    try:
        settings = miniatures.settings_of(row.model_type)
    except Exception as error:  # noqa: BLE001 - a class that makes no configuration by default
        settings = {"error": str(error)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]


# --- running ---------------------------------------------------------------------------------------


def _run(
    rows: Sequence[Architecture], methods: Sequence[str], place: Path, jobs: int, timeout: int
) -> None:
    waiting = [row for row in rows if _missing(place, row, methods)]
    if not waiting:
        return
    _preload()
    total, running = len(waiting), {}
    begin = time.monotonic()
    while waiting or running:
        while waiting and len(running) < jobs:
            row = waiting.pop(0)
            folder = Path(tempfile.mkdtemp(prefix="architectures-"))
            missing = _missing(place, row, methods)
            work = _work(row, missing, place, folder)
            running[fork(work, place / f"{row.file}.log")] = row, missing, folder, time.monotonic()
        _wait(running, timeout)
        for pid, (row, missing, folder, since) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del running[pid]
            shutil.rmtree(folder, ignore_errors=True)
            code = os.waitstatus_to_exitcode(status)
            _record_death(place, row, missing, code)
            if _missing(place, row, methods):
                waiting.insert(0, row)
                continue
            states = [json.loads(_file(place, row, m).read_text())["state"] for m in methods]
            at, spent = total - len(waiting) - len(running), time.monotonic() - since
            print(f"{at}/{total} {row.name}: {' '.join(states)} ({spent:.0f} s)", flush=True)
    print(f"{time.monotonic() - begin:.0f} s", flush=True)


def _wait(running: dict[int, Any], timeout: int) -> None:
    time.sleep(0.05)
    for pid, (_, _, _, since) in running.items():
        if time.monotonic() - since > timeout:
            os.killpg(pid, signal.SIGKILL)


def _record_death(place: Path, row: Architecture, missing: Sequence[str], code: int) -> None:
    """If a process ended before its time, the cell that it was at has failed."""
    left = _missing(place, row, missing)
    if left:
        why = (
            f"its process ended by signal {-code}" if code < 0 else f"its process ended with {code}"
        )
        _store(place, row, Cell(row.name, left[0], "failed", why))


def _missing(place: Path, row: Architecture, methods: Iterable[str]) -> list[str]:
    return [method for method in methods if not _file(place, row, method).exists()]


def _work(row: Architecture, methods: Sequence[str], place: Path, folder: Path) -> Any:
    def work() -> None:
        if why := NOT_ALONE.get(row.model_type):
            for method in methods:
                _store(place, row, Cell(row.name, method, "skipped", f"no language model: {why}"))
            return
        try:
            model = miniatures.miniature(row.model_type, folder / "model", row.auto)
        except Exception as error:  # noqa: BLE001 - whatever a configuration class raises
            reason = f"no miniature: {type(error).__name__}: {' '.join(str(error).split())}"[:240]
            for method in methods:
                _store(place, row, Cell(row.name, method, "skipped", reason))
            raise
        with forked_interpreters():
            for method in methods:
                begin = time.perf_counter()
                cell = check(row.name, method, model, row.auto)
                cell.figures["seconds"] = round(time.perf_counter() - begin, 2)
                _store(place, row, cell)

    return work


def _store(place: Path, row: Architecture, cell: Cell) -> None:
    file = _file(place, row, cell.method)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(cell.content(), indent=1) + "\n")
    temporary.rename(file)


def _preload() -> None:
    """Import once what every architecture needs, and transformers' own late imports with it."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = miniatures.build("llama")
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 4, dtype=torch.int64))


def print_counts(cells: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    """Cells by state and method, and the reasons of those that are not right."""
    print(f"{'':10}" + "".join(f"{state:>9}" for state in STATES))
    for method in methods:
        counts = Counter(cell["state"] for cell in cells if cell["method"] == method)
        print(f"{method:10}" + "".join(f"{counts[state]:9}" for state in STATES))


if __name__ == "__main__":
    main()
