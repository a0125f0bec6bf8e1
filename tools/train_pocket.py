"""Train the embedded model on the text of this Python installation, on CPU or CUDA.

    python tools/train_pocket.py --steps 1000 --out outputs/pocket
    python tools/train_pocket.py --architecture moe --steps 400 --batch-tokens 4096 --window 256 \
        --out outputs/moe

``--architecture`` names a type of transformers, which gets the embedded model's widths, or one of
``SMALL``: models of under half its size, for tests, that share its tokenizer.

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
from collections import Counter
from collections.abc import Sequence
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
from qsweep.models.tiny import MODEL_DIR, text
from qsweep.models.tiny.exercises import exercises

VOCABULARY = 4096
END = "<|endoftext|>"
CHECKPOINT = "checkpoint.pt"
QUOTAS: dict[text.Split, dict[str, int]] = {
    "test": {"topic": 70_000, "module": 110_000},
    "calibration": {"topic": 60_000, "module": 220_000},
}
EXERCISE_SHARE = 0.08
BALANCE = 0.2  # weight of what keeps experts equally busy
POCKET = {
    # Every width is a multiple of 256, so that K-quants apply to all rows.
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
# Every width is a multiple of 128, the largest usual group; K-quants do not apply.
_SMALL_WIDTHS = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
SMALL = {
    "moe": _SMALL_WIDTHS
    | {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 3,
        "moe_intermediate_size": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "hybrid": _SMALL_WIDTHS
    | {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    },
}


def main() -> None:
    """Tokenizer, token stream, training, checkpoint, card."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.draw_splits:
        text.SPLITS_FILE.write_text(json.dumps(draw_splits(QUOTAS), indent=1) + "\n")
    documents = training_documents(args.seed)
    if args.architecture in SMALL:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    else:
        tokenizer = train_tokenizer(documents)
    save_tokenizer(tokenizer, out)
    stream = encode(tokenizer, documents, args.seed)
    print(f"{len(documents)} documents, {len(stream) / 1e6:.2f} M tokens", flush=True)
    model = build_model(tokenizer, args.architecture).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    started = time.process_time()
    curve = train(model, stream, args, out)
    model.to(torch.bfloat16).save_pretrained(out)
    seconds = time.process_time() - started
    model.float().eval()
    windows = {
        kind: held_out_windows(model, tokenizer, "\n\n".join(text.documents(kind, "test")))
        for kind in ("docs", "code")
    }
    held_out = {kind: perplexity(model, found) for kind, found in windows.items()}
    unigram = {kind: unigram_perplexity(stream, found) for kind, found in windows.items()}
    shares = expert_shares(model, torch.cat(list(windows.values())))
    facts = training_facts(args, held_out, unigram, shares, seconds, len(stream))
    write_card(out, model, args, curve, facts)
    (out / CHECKPOINT).unlink(missing_ok=True)
    print(
        f"{seconds:.0f} s of CPU time; held-out perplexity {held_out}, of unigrams {unigram}",
        flush=True,
    )
    if shares is not None:
        print("share of each layer's least and most used expert", shares.aminmax(dim=1), flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="outputs/pocket")
    parser.add_argument(
        "--architecture",
        default="llama",
        help=f"a model type of transformers, or {', '.join(SMALL)}",
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument(
        "--window", type=int, default=512, help="tokens; the whole context in the last fifth"
    )
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
        model_max_length=POCKET["max_position_embeddings"],
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
    """A seeded model in fp32, of one of ``SMALL`` or of a type with the embedded model's widths."""
    widths = SMALL.get(architecture, POCKET | {"model_type": architecture})
    config = AutoConfig.for_model(
        **widths,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def batches(stream: torch.Tensor, args: argparse.Namespace, first: int, context: int):
    """Batches of shape (windows, tokens + 1): shuffled passes over the stream at random offsets."""
    for step in range(first, args.steps):
        window = args.window if step < 0.8 * args.steps else context
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
    without bfloat16 units; this one iterates in float32. Of stacked matrices each is updated by
    itself.
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
                scale = max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest orthogonal matrix, roughly: a quintic Newton-Schulz iteration in float32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest.

    The rest is embeddings, norms and convolutions, and routers, whose rows are no directions to be
    made orthogonal but the experts' scores.
    """
    others = ("embed", "conv", "mlp.gate.")

    def is_matrix(name: str, parameter: torch.Tensor) -> bool:
        return parameter.ndim >= 2 and not any(part in name for part in others)

    inner = [p for n, p in model.named_parameters() if is_matrix(n, p)]
    outer = [p for n, p in model.named_parameters() if not is_matrix(n, p)]
    return [
        Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(outer, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(model, stream, args, out: Path) -> list[tuple[int, float]]:
    """Run all steps; returns (step, mean loss in nats per token) every 20 steps."""
    optimizer_list = optimizers(model)
    base_rates = [o.param_groups[0]["lr"] for o in optimizer_list]
    curve: list[tuple[int, float]] = []
    first, checkpoint = 0, out / CHECKPOINT
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizer_list, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, curve = state["step"], [tuple(point) for point in state["curve"]]
    losses, started = [], time.time()
    routed = routing_outputs(model)
    for step, batch in batches(stream, args, first, model.config.max_position_embeddings):
        batch = batch.to(args.device)
        factor = learning_rate_factor(step, args.steps)
        for optimizer, rate in zip(optimizer_list, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        output = model(input_ids=batch[:, :-1], use_cache=False, **routed)
        loss = torch.nn.functional.cross_entropy(
            output.logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        # What keeps the experts of a mixture equally busy is no part of the loss that is shown.
        balance = imbalance(output.router_logits, model.config) if routed else 0.0
        (loss + BALANCE * balance).backward()
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


def routing_outputs(model: PreTrainedModel) -> dict[str, bool]:
    """The argument with which a mixture gives its routers' logits; nothing for other models."""
    return {"output_router_logits": True} if hasattr(model.config, "num_experts") else {}


def imbalance(router_logits: Sequence[torch.Tensor], config) -> torch.Tensor:
    """Mean over layers of E * sum_e f_e p_e, which is 1 where all E experts are equally busy.

    f is the share of the chosen that are expert e, p its mean probability (Fedus et al. 2021,
    "Switch Transformers", equation 4). The loss of transformers' models pools f and p over layers:
    it stays low where an expert is dead in one layer and busy in another.
    """
    losses = []
    for logits in router_logits:
        chosen = logits.topk(config.num_experts_per_tok).indices.flatten()
        share = chosen.bincount(minlength=config.num_experts) / len(chosen)
        losses.append(config.num_experts * share @ logits.softmax(-1).mean(0))
    return torch.stack(losses).mean()


def held_out_windows(model, tokenizer, content: str) -> torch.Tensor:
    """Non-overlapping windows of the model's whole context, [windows, context]; no remainder."""
    context = model.config.max_position_embeddings
    ids = torch.tensor(tokenizer(content, add_special_tokens=False)["input_ids"])
    return ids[: len(ids) // context * context].view(-1, context)


@torch.no_grad()
def perplexity(model, windows: torch.Tensor) -> float:
    """Of windows of ids, every position but the first scored."""
    total = 0.0
    for window in windows.to(model.device):
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return math.exp(total / windows[:, 1:].numel())


def unigram_perplexity(stream: torch.Tensor, windows: torch.Tensor) -> float:
    """Of the same positions, for a model that knows how often each token is trained on, plus one."""
    counts = torch.bincount(stream, minlength=VOCABULARY).double() + 1
    return math.exp(-(counts / counts.sum()).log()[windows[:, 1:]].mean().item())


@torch.no_grad()
def expert_shares(model, windows: torch.Tensor) -> torch.Tensor | None:
    """How much of what a layer routes goes to each expert, [layers, experts]; None of no mixture."""
    if not (routed := routing_outputs(model)):
        return None
    counts = 0
    for window in windows.to(model.device):
        logits = torch.stack(model(input_ids=window[None], use_cache=False, **routed).router_logits)
        chosen = logits.topk(model.config.num_experts_per_tok).indices
        counts = counts + torch.nn.functional.one_hot(chosen, logits.shape[-1]).sum(dim=(1, 2))
    return counts / counts.sum(dim=1, keepdim=True)


def training_facts(args, held_out, unigram, shares, seconds, stream_tokens) -> dict[str, str]:
    """The rows of the card's table that a model's configuration does not tell."""
    facts = {
        "tokenizer": f"byte-level BPE, {VOCABULARY} tokens, GPT-2's pre-tokenizer",
        "data": f"Python {platform.python_version()}: `help()` topics and docstrings (shown three "
        f"times), standard library source, and {EXERCISE_SHARE:.0%} generated arithmetic and "
        f"logic; {stream_tokens / 1e6:.2f} M tokens",
        "held out": "the units in `splits.json`, drawn by a hash of their names",
        "training": f"{args.steps} steps of {args.batch_tokens} tokens, Muon and AdamW, seed "
        f"{args.seed}, torch {torch.__version__} on {args.device}, {torch.get_num_threads()} "
        f"threads, {seconds:.0f} s of CPU time",
        "held-out perplexity": f"prose {held_out['docs']:.2f}, code {held_out['code']:.2f}",
        "of unigrams there": f"prose {unigram['docs']:.0f}, code {unigram['code']:.0f}",
    }
    if shares is not None:
        facts["experts"] = (
            f"on held-out text the least used of a layer gets {shares.min():.1%} of what is routed, "
            f"the most used {shares.max():.1%}; even would be {1 / shares.shape[1]:.1%}"
        )
    return facts | {
        "licence": "Apache-2.0; the training text is Python's own, under the PSF licence"
    }


def write_card(out, model, args, curve, facts: dict[str, str]) -> None:
    """The model card: facts of this very run."""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    points = [p for i, p in enumerate(curve) if i % max(1, len(curve) // 12) == 0 or p == curve[-1]]
    losses = "\n".join(f"| {step} | {loss:.3f} |" for step, loss in points)
    rows = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items())
    if args.architecture in SMALL:
        purpose = """with which qsweep's tests and benchmarks quantize and measure what
the embedded model is not, with figures that mean something"""
    else:
        purpose = """that qsweep ships, so that a sweep quantizes and measures a real
language model on any machine, offline, in minutes"""
    (out / "README.md").write_text(
        f"""---
license: apache-2.0
language: [en, code]
---
# {out.name}

A {config.model_type} model of {parameters / 1e6:.2f} M parameters {purpose}. It is a measuring object, not an assistant.

| | |
|---|---|
| architecture | {config.model_type}: {architecture(config)} |
{rows}

Loss, in nats per token, mean of the steps since the row before:

| step | loss |
|---|---|
{losses}

Made by `python tools/train_pocket.py {" ".join(sys.argv[1:])}`.
"""
    )


def architecture(config) -> str:
    """The configuration in a line."""
    if hasattr(config, "num_experts"):
        inner = (
            f"{config.num_experts} experts of {config.moe_intermediate_size}, "
            f"{config.num_experts_per_tok} per token"
        )
    else:
        inner = f"intermediate {config.intermediate_size}"
    kinds = Counter(getattr(config, "layer_types", None) or ())
    layers = " + ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in kinds.items())
    return (
        f"{config.num_hidden_layers} layers{f' ({layers})' if len(kinds) > 1 else ''}, hidden "
        f"{config.hidden_size}, {inner}, {config.num_attention_heads} heads "
        f"({config.num_key_value_heads} for keys and values), context "
        f"{config.max_position_embeddings}, tied embeddings"
    )


if __name__ == "__main__":
    main()
