"""Train the embedded model on the text of this Python installation, on CPU or CUDA.

    python tools/train_pocket.py --steps 1000 --out outputs/pocket

Everything is seeded; the same Python version, torch version and thread count give the same model.
A checkpoint every ``--save-every`` steps lets a killed run go on where it was (``--resume``). At the
end the folder holds a standard Hugging Face checkpoint in bf16 and its model card.
"""

import argparse
import itertools
import json
import math
import platform
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from draw_splits import draw_splits
from qsweep.models.tiny import text
from qsweep.models.tiny.exercises import exercises

VOCABULARY = 4096
CONTEXT = 1024
END = "<|endoftext|>"
QUOTAS: dict[text.Split, dict[str, int]] = {
    "test": {"topic": 70_000, "module": 110_000},
    "calibration": {"topic": 60_000, "module": 220_000},
}
EXERCISE_SHARE = 0.08


def main() -> None:
    """Tokenizer, token stream, training, checkpoint, card."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.draw_splits:
        text.SPLITS_FILE.write_text(json.dumps(draw_splits(QUOTAS), indent=1) + "\n")
    documents = training_documents(args.seed)
    tokenizer = train_tokenizer(documents)
    save_tokenizer(tokenizer, out)
    stream = encode(tokenizer, documents, args.seed)
    print(f"{len(documents)} documents, {len(stream) / 1e6:.2f} M tokens", flush=True)
    model = build_model(tokenizer, args.architecture).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    started = time.time()
    curve = train(model, stream, args, out)
    model.to(torch.bfloat16).save_pretrained(out)
    model.float()
    held_out = {
        kind: perplexity(model, tokenizer, "\n\n".join(text.documents(kind, "test")))
        for kind in ("docs", "code")
    }
    write_card(out, model, args, curve, held_out, time.time() - started, len(stream))
    print("held-out perplexity", held_out, flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="outputs/pocket")
    parser.add_argument(
        "--architecture", default="llama", help="any of transformers' model types with these widths"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512, help="tokens; 1024 in the last fifth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--draw-splits", action="store_true", help="redraw splits.json first")
    return parser.parse_args()


def training_documents(seed: int) -> list[str]:
    """Prose, code and exercises of the training split; exercises in sheets of 40 lines."""
    docs, code = text.documents("docs", "train"), text.documents("code", "train")
    size = sum(map(len, docs + code)) * EXERCISE_SHARE
    lines = exercises("train", seed)
    sheets: list[str] = []
    while sum(map(len, sheets)) < size:
        sheets.append("\n".join(e.text for e in itertools.islice(lines, 40)))
    # Prose is a seventh of the code by size and is measured as often: show it three times.
    return docs * 3 + code + sheets


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's pre-tokenizer, which the GGUF converter knows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save it under the class name that every version of transformers, and vLLM, knows."""
    tokenizer.save_pretrained(out)
    file = out / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config = {
        k: v for k, v in config.items() if k not in ("backend", "is_local", "local_files_only")
    }
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str], seed: int) -> torch.Tensor:
    """All documents in a seeded order, each closed by the end token, as one stream of ids."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)  # noqa: S311 - not for cryptography
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(
        [documents[index] for index in order], add_special_tokens=False
    )
    ids = itertools.chain.from_iterable([*e.ids, tokenizer.eos_token_id] for e in encodings)
    return torch.tensor(list(ids), dtype=torch.int32)


def build_model(tokenizer: PreTrainedTokenizerFast, architecture: str) -> PreTrainedModel:
    """Every width is a multiple of 256, so that K-quants apply to all rows."""
    config = AutoConfig.for_model(
        architecture,
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def batches(stream: torch.Tensor, args: argparse.Namespace, first: int):
    """Batches of shape (windows, tokens + 1): shuffled passes over the stream at random offsets."""
    for step in range(first, args.steps):
        window = args.window if step < 0.8 * args.steps else CONTEXT
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        count = args.batch_tokens // window
        starts = torch.randint(0, len(stream) - window - 1, (count,), generator=rng)
        yield step, torch.stack([stream[s : s + window + 1] for s in starts.tolist()]).long()


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 2 %, constant, linear to zero over the last 45 %."""
    return min((step + 1) / (0.02 * steps), 1.0, (steps - step) / (0.45 * steps))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024, "Muon").

    torch.optim.Muon iterates in bfloat16, which is a hundred times slower than float32 on a CPU
    without bfloat16 units; this one iterates in float32.
    """

    def __init__(self, params, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every matrix; Nesterov momentum."""
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                state = self.state[weight]
                buffer = state.setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalize(weight.grad.lerp(buffer, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest orthogonal matrix, roughly: a quintic Newton-Schulz iteration in float32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(outer, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(model, stream, args, out: Path) -> list[tuple[int, float]]:
    """Run all steps; returns (step, mean loss in nats per token) every 20 steps."""
    optimizer_list = optimizers(model)
    base_rates = [o.param_groups[0]["lr"] for o in optimizer_list]
    curve: list[tuple[int, float]] = []
    first, checkpoint = 0, out / "checkpoint.pt"
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizer_list, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, curve = state["step"], [tuple(point) for point in state["curve"]]
    losses, started = [], time.time()
    for step, batch in batches(stream, args, first):
        batch = batch.to(args.device)
        factor = learning_rate_factor(step, args.steps)
        for optimizer, rate in zip(optimizer_list, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizer_list:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == args.steps:
            curve.append((step + 1, sum(losses) / len(losses)))
            rate = len(losses) * args.batch_tokens / (time.time() - started)
            print(f"step {step + 1} loss {curve[-1][1]:.4f} {rate:.0f} tokens/s", flush=True)
            losses, started = [], time.time()
        if (step + 1) % args.save_every == 0:
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizer_list],
                "step": step + 1,
                "curve": curve,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return curve


@torch.no_grad()
def perplexity(model, tokenizer, content: str) -> float:
    """Non-overlapping windows of the whole context, every position but the first scored."""
    ids = torch.tensor(tokenizer(content, add_special_tokens=False)["input_ids"])
    total, count = 0.0, 0
    for window in ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT).to(model.device):
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        count += CONTEXT - 1
    return math.exp(total / count)


def write_card(out, model, args, curve, held_out, seconds, stream_tokens) -> None:
    """The model card: facts of this very run."""
    parameters = sum(p.numel() for p in model.parameters())
    points = [p for i, p in enumerate(curve) if i % max(1, len(curve) // 12) == 0 or p == curve[-1]]
    rows = "\n".join(f"| {step} | {loss:.3f} |" for step, loss in points)
    (out / "README.md").write_text(
        f"""---
license: apache-2.0
language: [en, code]
---
# pocket

A {model.config.model_type} model of {parameters / 1e6:.2f} M parameters that qsweep ships, so that a sweep quantizes and measures a real
language model on any machine, offline, in minutes. It is a measuring object, not an assistant.

| | |
|---|---|
| architecture | {model.config.model_type}: {model.config.num_hidden_layers} layers, hidden {model.config.hidden_size}, intermediate {model.config.intermediate_size}, {model.config.num_attention_heads} heads ({model.config.num_key_value_heads} for keys and values), context {CONTEXT}, tied embeddings |
| tokenizer | byte-level BPE, {VOCABULARY} tokens, GPT-2's pre-tokenizer |
| data | Python {platform.python_version()}: `help()` topics and docstrings (shown three times), standard library source, and {EXERCISE_SHARE:.0%} generated arithmetic and logic; {stream_tokens / 1e6:.2f} M tokens |
| held out | the units in `splits.json`, drawn by a hash of their names |
| training | {args.steps} steps of {args.batch_tokens} tokens, Muon and AdamW, seed {args.seed}, torch {torch.__version__} on {args.device} |
| held-out perplexity | prose {held_out["docs"]:.2f}, code {held_out["code"]:.2f} (windows of {CONTEXT}) |
| licence | Apache-2.0; the training text is Python's own, under the PSF licence |

Loss, in nats per token, mean of the steps since the row before:

| step | loss |
|---|---|
{rows}

Made by `python tools/train_pocket.py {" ".join(sys.argv[1:])}`.
"""
    )


if __name__ == "__main__":
    main()
