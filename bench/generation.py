"""Long answers by qsweep's loop, by transformers' generate, and by lm-evaluation-harness's own model.

The same prompts (list problems, whose answers end far apart), the same loaded model, greedy, to the
same stop text. Sides take turns; a figure is the fastest of its rounds, tokens of new text per second
(of the processor, where --processor-time is given). Every side's tokens or texts are compared with
those of transformers' generate one prompt at a time.

    python bench/generation.py --quick
    python bench/generation.py --model DIR --json bench/results/generation.json
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SRC = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SRC))

STOP = "\n\n"


def main() -> None:
    """Run all sides in turns; print and store the table."""
    options = parse()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = load(options.model)
    count = options.problems or (12 if options.quick else 48)
    texts, new = problems(lm, count)
    clock = time.process_time if options.processor_time else time.perf_counter
    sides = sides_of(lm, texts, new, options.batch_sizes)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, list[str]] = {}
    for number in range((options.rounds or (1 if options.quick else 3)) + 1):
        for name, run in sides.items():
            if number == 0 and name == ALONE and not options.quick:
                continue  # it is long enough to need no warming up
            started = clock()
            said[name] = run()
            if number:
                seconds[name].append(clock() - started)
    tokens = sum(len(lm.encode(text)) for text in said[ALONE])
    rows = [
        {
            "side": name,
            "prompts": count,
            "tokens": tokens,
            "seconds": min(seconds[name]),
            "tokens_per_s": tokens / min(seconds[name]),
            "speedup": min(seconds[ALONE]) / min(seconds[name]),
            "other_texts": sum(a != b for a, b in zip(said[name], said[ALONE], strict=True)),
        }
        for name in sides
    ]
    for row in rows:
        print(line(row))
    if options.json:
        from origin import write

        what = "tokens per second of long greedy answers: qsweep, transformers, lm-eval"
        write(options.json, what, rows, ("torch", "transformers", "lm_eval"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer prompts, fewer rounds")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--model", type=Path, help="a model's folder; default: the embedded one")
    parser.add_argument("--problems", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument(
        "--processor-time", action="store_true", help="for a busy machine, with one thread"
    )
    return parser.parse_args()


def load(path: Path | None) -> Any:
    """A model in float32 as tasks see it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from qsweep.models.tiny import MODEL_DIR
    from qsweep.tasks.model import LanguageModel

    path = path or MODEL_DIR
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return LanguageModel(model, tokenizer, model.config.max_position_embeddings)


def problems(lm: Any, count: int) -> tuple[list[str], int]:
    """Prompts, and how many tokens may follow each."""
    from qsweep.tasks.long.problems import lists, problems

    solved = [problem.text for problem in problems(lists, 3, 4, "examples")]
    asked = problems(lists, count, 16, "bench")
    prompts = [STOP.join([*solved, problem.prompt]) + "\n" for problem in asked]
    return prompts, 2 * max(len(lm.encode(problem.answer)) for problem in asked)


ALONE = "transformers, one by one"


def sides_of(
    lm: Any, texts: Sequence[str], new: int, sizes: Sequence[int]
) -> dict[str, Callable[[], list[str]]]:
    """By name, what answers all prompts."""
    from functools import partial

    return {
        "qsweep": partial(ours, lm, texts, new),
        ALONE: partial(theirs, lm, texts, new, 1),
        **{f"transformers, batch {n}": partial(theirs, lm, texts, new, n) for n in sizes},
        **{f"lm-eval, batch {n}": partial(harness, lm, texts, new, n) for n in sizes},
    }


def ours(lm: Any, texts: Sequence[str], new: int) -> list[str]:
    """qsweep's own way for this model."""
    from qsweep.tasks.requests import Sampling

    return list(lm.generate([lm.encode(text) for text in texts], Sampling(new, (STOP,))))


def theirs(lm: Any, texts: Sequence[str], new: int, size: int) -> list[str]:
    """transformers' generate, the longest prompts first."""
    import torch

    from qsweep.tasks.batches import decode_batch
    from qsweep.tasks.generation import cut
    from qsweep.tasks.requests import Ask, Sampling

    asks = [Ask(tuple(lm.encode(text)), new) for text in texts]
    order = sorted(range(len(asks)), key=lambda n: -len(asks[n].prompt))
    found: dict[int, str] = {}
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size]
        with torch.inference_mode():
            answers = decode_batch(lm, [asks[n] for n in chosen], Sampling(new, (STOP,)), True)
        for number, answer in zip(chosen, answers, strict=True):
            text = lm.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
            found[number] = cut(text, (STOP,))
    return [found[n] for n in range(len(asks))]


def harness(lm: Any, texts: Sequence[str], new: int, size: int) -> list[str]:
    """lm-evaluation-harness's own model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=size)
    options = {"until": [STOP], "max_gen_toks": new, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, options), 0) for text in texts]
    return list(model.generate_until(requests, disable_tqdm=True))


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['side']:28} {row['tokens_per_s']:8.0f} tokens/s ({row['tokens']} in "
        f"{row['seconds']:.2f} s), {row['speedup']:.2f} times one by one, other texts "
        f"{row['other_texts']} of {row['prompts']}"
    )


if __name__ == "__main__":
    main()
