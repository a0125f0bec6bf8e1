"""How fast perplexity and divergence are measured, beside what people use and beside the floor.

Every contender runs in a process of its own, which has its model loaded and warmed up, and they take
turns; a figure is the fastest of its rounds. The text is the same for all; the floor is the
transformer's body alone on the default preset's windows, with neither head nor scores.

    python bench/evaluate.py --quick
    python bench/evaluate.py --model smollm2 --json bench/results/evaluate.json
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SRC))

CONTENDERS = {
    "script": "usual script: batch 1, window 1024, stride 512, full logits",
    "lm-eval": "lm-evaluation-harness, rolling log-likelihood, batch 1",
    "gptq": "qsweep, preset paper",
    "strided": "qsweep, preset strided",
    "divergence": "qsweep, preset paper, with divergence",
    "floor": "floor of gptq: transformer body alone",
    "floor-strided": "floor of strided: transformer body alone",
}
# SmolLM2-135M's shape; random weights take as long as trained ones.
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TOKENS = {"pocket": (8192, 24576), "smollm2": (4096, 8192)}


def main() -> None:
    """Run all contenders and print the table."""
    options = parse()
    if options.worker:
        work(options)
        return
    rows = []
    for model in options.model or list(TOKENS):
        rows += compare(model, options)
    if options.json:
        from origin import write

        what = "seconds to measure perplexity and divergence of a text"
        write(options.json, what, rows, ("torch", "transformers", "lm_eval"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="less text, fewer rounds")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--model", action="append", choices=list(TOKENS))
    parser.add_argument("--only", action="append", choices=list(CONTENDERS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, help="length of the text")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, help="threads of the CPU; default: all cores")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processor's seconds, not the clock's: for a busy machine, with --threads 1",
    )
    parser.add_argument("--worker", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    return parser.parse_args()


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def compare(model: str, options: argparse.Namespace) -> list[dict]:
    """Run one model's contenders in turns; print and return their rows."""
    tokens = options.tokens or TOKENS[model][0 if options.quick else 1]
    rounds = options.rounds or (2 if options.quick else 5)
    names = options.only or list(CONTENDERS)
    if not installed("lm_eval"):
        names = [name for name in names if name != "lm-eval"]
    workers = {name: start(name, model, tokens, options) for name in names}
    found: dict[str, list[dict]] = {name: [] for name in names}
    for worker in workers.values():
        answer(worker)  # ready
    for _ in range(rounds):
        for name, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            found[name].append(answer(worker))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    clock = "processor_s" if options.processor_time else "wall_s"
    best = {name: min(runs, key=lambda run: run[clock]) for name, runs in found.items()}
    rows = [
        {"model": model, "contender": name, "text_tokens": tokens, "seconds": run[clock], **run}
        for name, run in best.items()
    ]
    print(f"\n{model}: {tokens} tokens, {options.device}, fastest of {rounds} rounds ({clock})")
    print(table(rows))
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text, with ratios to the script and to the floor."""
    seconds = {row["contender"]: row["seconds"] for row in rows}
    lines = [f"{'':<62}{'s':>8}{'tok/s':>9}{'x script':>10}{'x floor':>9}{'ppl':>13}{'GB':>7}"]
    for row in rows:
        name, took = row["contender"], row["seconds"]
        floor = seconds.get("floor-strided" if "strided" in name else "floor")
        cells = [
            f"{CONTENDERS[name]:<62}",
            f"{took:8.2f}",
            f"{row['text_tokens'] / took:9.0f}",
            f"{seconds['script'] / took:10.2f}" if "script" in seconds else " " * 10,
            f"{took / floor:9.2f}" if floor else " " * 9,
            f"{row['ppl']:13.6g}" if row["ppl"] is not None else " " * 13,
            f"{row['peak_gb']:7.2f}",
        ]
        lines.append("".join(cells))
    if {"divergence", "gptq"} <= seconds.keys():
        extra = seconds["divergence"] / seconds["gptq"] - 1
        lines.append(f"divergence costs {100 * extra:.0f} % on top of perplexity")
    return "\n".join(lines)


def start(name: str, model: str, tokens: int, options: argparse.Namespace) -> subprocess.Popen:
    """A contender's process, loading its model."""
    command = [sys.executable, __file__, "--worker", name, "--model", model]
    command += ["--tokens", str(tokens), "--device", options.device]
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    if options.threads:
        command += ["--threads", str(options.threads)]
        environment["OMP_NUM_THREADS"] = str(options.threads)
    return subprocess.Popen(  # noqa: S603 - this very file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def answer(worker: subprocess.Popen) -> dict:
    """A worker's next line of JSON, past whatever its libraries print."""
    for line in worker.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a contender ended early: {' '.join(worker.args[2:4])}")


def work(options: argparse.Namespace) -> None:
    """A contender's process: get ready, then run once per line of input."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model[0], options.device)
    run = prepare(options.worker, model, tokenizer, options)
    run()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        ppl = run()
        if options.device != "cpu":
            torch.cuda.synchronize()
        report = {
            "wall_s": time.perf_counter() - began,
            "processor_s": time.process_time() - used,
            "ppl": ppl,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        }
        print(json.dumps(report), flush=True)


def load(name: str, device: str):
    """The model in the dtype that qsweep takes on that device, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, logging

    from qsweep.models.tiny import MODEL_DIR

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if name == "pocket":
        model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2), dtype=dtype)
    model.config.use_cache = False
    return model.to(device).eval(), AutoTokenizer.from_pretrained(MODEL_DIR)


def the_text(tokenizer, tokens: int) -> str:
    """A text of just so many tokens (nearly: a cut inside a word may add one)."""
    from qsweep.models.tiny.text import documents

    ids = tokenizer("\n\n".join(documents("docs", "train")), verbose=False)["input_ids"]
    return tokenizer.decode(ids[: tokens + 1])


def prepare(name: str, model, tokenizer, options: argparse.Namespace) -> Callable[[], float | None]:
    """What a contender does: called again and again, returns the perplexity."""
    from qsweep.evaluate import build_reference, measure, open_reference
    from qsweep.text.windows import PRESETS, make_windows

    text = the_text(tokenizer, options.tokens)
    limit = model.config.max_position_embeddings
    if name == "script":
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
        return lambda: usual_script(model, ids.to(model.device))
    if name == "lm-eval":
        return rolling(model, tokenizer, text, min(limit, 2048))
    preset = PRESETS["strided" if "strided" in name else "paper"]
    windows = make_windows([text], tokenizer, preset, limit)
    if name.startswith("floor"):
        return lambda: body_alone(model, windows)
    if name != "divergence":
        return lambda: measure(model, windows).metrics["ppl"]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        (Path(folder) / "cache").mkdir()
        build_reference(model, windows, Path(folder) / "cache")
        reference = open_reference(
            Path(folder) / "cache", Path(folder) / "model", options.device, model.dtype
        )
    return lambda: measure(model, windows, reference).metrics["ppl"]


def usual_script(model, ids, context: int = 1024, stride: int = 512) -> float:
    """The guide's loop (https://huggingface.co/docs/transformers/perplexity), tokens weighed right."""
    import torch

    total, count, before = 0.0, 0, 0
    length = ids.shape[1]
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        part = ids[:, begin:end]
        labels = part.clone()
        labels[:, : before - begin] = -100
        with torch.no_grad():
            loss = model(part, labels=labels).loss
        scored = int((labels[:, 1:] != -100).sum())
        total, count, before = total + float(loss) * scored, count + scored, end
        if end == length:
            break
    return math.exp(total / count)


def rolling(model, tokenizer, text: str, limit: int) -> Callable[[], float]:
    """lm-evaluation-harness's way to a perplexity."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    with contextlib.redirect_stdout(io.StringIO()):
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=limit)
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    tokens = len(tokenizer(text, verbose=False)["input_ids"])
    return lambda: math.exp(
        -harness.loglikelihood_rolling([request], disable_tqdm=True)[0] / tokens
    )


def body_alone(model, windows) -> None:
    """What no perplexity can be faster than: the same windows through the body, in qsweep's batches."""
    import torch

    from qsweep.evaluate.engine import batch_size, keep_freed_memory, open_engine

    with torch.inference_mode(), keep_freed_memory(model):
        batch = batch_size(open_engine(model, windows.ids), windows.ids.shape[1])
        for ids in windows.ids.to(model.device).split(batch):
            model.model(input_ids=ids, use_cache=False)


if __name__ == "__main__":
    main()
