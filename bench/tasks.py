"""qsweep's engine against lm-evaluation-harness's own model on the same tasks, model and machine.

Two tasks that need no network, written as YAML of the harness: multiple choice over contexts with
solved examples before them (log-likelihoods), and short answers (generation). Both sides run the
harness's evaluate() on the same loaded model and take turns; a figure is the fastest of its rounds,
in seconds of the processor where --processor-time is given. Results must agree.

    python bench/tasks.py --quick
    python bench/tasks.py --model DIR --json bench/results/tasks.json
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SRC = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SRC))

SEED = 1234
CHOICE = """task: bench_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {choice}, train: {examples}}}}}
test_split: test
fewshot_split: train
num_fewshot: 5
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{choices.index(answer)}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
CLOZE = """task: bench_cloze
dataset_path: json
dataset_kwargs: {{data_files: {{test: {cloze}}}}}
test_split: test
num_fewshot: 0
target_delimiter: ""
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{choices.index(answer)}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
GENERATE = """task: bench_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {choice}}}}}
test_split: test
num_fewshot: 0
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 16, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
TASKS = ("bench_choice", "bench_cloze", "bench_generate")


def main() -> None:
    """Run both sides in turns; print and store the table."""
    options = parse()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer, context = load(options.model)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), options.samples or (60 if options.quick else 200))
        for name in TASKS:
            rows.append(compare(name, folder, model, tokenizer, context, options))
            print(line(rows[-1]), flush=True)
    if options.json:
        from origin import write

        what = "seconds for a task: qsweep's engine and lm-evaluation-harness's own model"
        write(options.json, what, rows, ("torch", "transformers", "lm_eval"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples, fewer rounds")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--model", type=Path, help="a model's folder; default: the embedded one")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--processor-time", action="store_true", help="for a busy machine, with one thread"
    )
    return parser.parse_args()


def load(path: Path | None) -> tuple[Any, Any, int]:
    """Model in float32, tokenizer, and context."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from qsweep.models.tiny import MODEL_DIR

    path = path or MODEL_DIR
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(path), model.config.max_position_embeddings


def write_tasks(folder: Path, samples: int) -> None:
    """The tasks' files: YAML for the harness, items of the embedded suite as their data."""
    from qsweep.tasks.embedded import embedded_task
    from qsweep.tasks.task import TaskOptions

    files = {}
    for name, task in (("choice", "sequences"), ("cloze", "code_cloze")):
        examples, items = embedded_task(task, TaskOptions()).load()
        for part, chosen in ((name, items[:samples]), ("examples", examples)):
            rows = [{"prompt": i.prompt, "choices": i.choices, "answer": i.answer} for i in chosen]
            path = folder / f"{part}.jsonl"
            if part not in files:
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                files[part] = path
    for name, text in (("choice", CHOICE), ("cloze", CLOZE), ("generate", GENERATE)):
        (folder / f"{name}.yaml").write_text(text.format(**files))


def compare(
    name: str, folder: str, model: Any, tokenizer: Any, context: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Time both sides on one task; the harness by the batch size that suits it best."""
    from lm_eval.models.huggingface import HFLM

    from qsweep.tasks.harness_model import DenseModel
    from qsweep.tasks.model import LanguageModel

    clock = time.process_time if options.processor_time else time.perf_counter

    def ours() -> Any:
        return DenseModel(LanguageModel(model, tokenizer, context), lambda _: None)

    def theirs(batch: int) -> Callable[[], Any]:
        return lambda: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)

    sides = {"qsweep": ours} | {f"lm-eval, batch {b}": theirs(b) for b in options.batch_sizes}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, list[Any]] = {}
    for number in range((options.rounds or (1 if options.quick else 3)) + 1):
        for side, make in sides.items():
            lm, task = make(), harness_task(name, folder)
            started = clock()
            samples = run(name, lm, task)
            if number:  # the first round warms up
                seconds[side].append(clock() - started)
            found[side] = samples
    best = {side: min(values) for side, values in seconds.items()}
    fastest = min((side for side in best if side != "qsweep"), key=best.__getitem__)
    return {
        "task": name,
        "samples": len(found["qsweep"]),
        "seconds": best,
        "fastest_peer": fastest,
        "speedup": best[fastest] / best["qsweep"],
        **agreement(found["qsweep"], found[fastest]),
    }


def harness_task(name: str, folder: str) -> Any:
    """A fresh task of the harness: one keeps what it was answered."""
    from lm_eval.tasks import TaskManager

    task = TaskManager(include_defaults=False, include_path=folder).load([name])["tasks"][name]
    task.set_fewshot_seed(seed=SEED)
    return task


def run(name: str, lm: Any, task: Any) -> list[Any]:
    """What the harness's evaluate() has of each sample."""
    from lm_eval import evaluator

    found = evaluator.evaluate(lm=lm, task_dict={"tasks": {name: task}}, bootstrap_iters=0)
    assert found is not None
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def agreement(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """How far answers differ: relative for log-likelihoods, a count for texts and scores."""
    largest, texts = 0.0, 0
    for a, b in zip(ours, theirs, strict=True):
        for mine, other in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
            if isinstance(mine, str):
                texts += mine != other
            else:
                largest = max(largest, abs(mine[0] - other[0]) / max(1.0, abs(other[0])))
    metric = "acc" if "acc" in ours[0] else "exact_match"
    scores = sum(bool(a[metric] != b[metric]) for a, b in zip(ours, theirs, strict=True))
    return {
        "largest_relative_difference": largest,
        "other_texts": texts,
        "other_scores": scores,
        "score": float(sum(a[metric] for a in ours) / len(ours)),
    }


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    times = ", ".join(f"{side} {value:.2f} s" for side, value in row["seconds"].items())
    return (
        f"{row['task']} ({row['samples']} samples): {times}; {row['speedup']:.2f} times as fast as "
        f"{row['fastest_peer']}; score {row['score']:.3f}, other scores {row['other_scores']}, "
        f"other texts {row['other_texts']}, log-likelihoods within "
        f"{row['largest_relative_difference']:.1e}"
    )


if __name__ == "__main__":
    main()
