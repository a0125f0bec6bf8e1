"""How much a quantized KV cache adds: llama.cpp's own run of a GGUF file beside the simulated one.

Both by KL divergence, each from itself with an unquantized cache (float16 there, float32 here), on the
same windows of the same weights in float32: what their kernels differ in otherwise is in neither.

    python bench/kv_cache.py --quick
    python tools/smollm2.py DIR
    python bench/kv_cache.py --model DIR --json bench/results/kv-cache-smollm2.json
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

CACHES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0/q4_0", "q4_0/q8_0")


def main() -> None:
    """Compare and print the table."""
    options = parse()
    with file_of(options) as (model, gguf):
        rows = list(compare(model, gguf, options))
    if options.json:
        from origin import write

        write(options.json, "KLD of a quantized KV cache", rows, ("llama_cpp_python", "gguf"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two windows, two caches")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--model", type=Path, help="a checkpoint; the embedded model by default")
    parser.add_argument("--gguf", type=Path, help="the same model's file, converted by default")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    return parser.parse_args()


@contextmanager
def file_of(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The checkpoint and the GGUF file to compare."""
    from qsweep.formats.gguf.converter import convert
    from qsweep.models.tiny import MODEL_DIR

    model = options.model or MODEL_DIR
    if options.gguf:
        yield model, options.gguf
        return
    with tempfile.TemporaryDirectory() as folder:
        # With weights in 16 bits or fewer llama.cpp rounds activations, too, which no longer round
        # alike once the cache is quantized: two runs then differ by more than their caches.
        convert(model, gguf := Path(folder) / "model.gguf", "f32")
        yield model, gguf


def compare(model: Path, gguf: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each cache, printed as it comes."""
    import torch
    from transformers import AutoModelForCausalLM

    from qsweep.evaluate.kv_cache import served_cache
    from qsweep.formats.kv_cache.spec import kv_cache

    windows = windows_of(model, 2 if options.quick else options.windows, options.context)
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def ours() -> list[Any]:
        with torch.inference_mode():
            return [dense(torch.tensor([ids]), use_cache=False).logits[0] for ids in windows]

    plain, native = ours(), logits_of(gguf, windows, "none")
    print(f"{'cache':10} {'llama.cpp':>18} {'simulated':>18} {'ratio':>6} {'correlation':>11}")
    for name in CACHES[::4] if options.quick else CACHES:
        own = divergences(native, logits_of(gguf, windows, name))
        with served_cache(dense, kv_cache(name)):
            simulated = divergences(plain, ours())
        pair = torch.stack([own.flatten(), simulated.flatten()])
        row = {
            "cache": name,
            **summary("native", own),
            **summary("simulated", simulated),
            "ratio": float(simulated.mean() / own.mean()),
            "correlation_of_tokens": float(torch.corrcoef(pair)[0, 1]),
        }
        figures = [f"{row[who]:.6f} ±{row[f'{who}_stderr']:.6f}" for who in ("native", "simulated")]
        print(
            f"{name:10} {figures[0]:>18} {figures[1]:>18} {row['ratio']:6.3f} "
            f"{row['correlation_of_tokens']:11.3f}",
            flush=True,
        )
        yield row


def windows_of(model: Path, count: int, context: int) -> list[list[int]]:
    """Windows of the embedded corpus ``python_docs``, cut by the model's own tokenizer."""
    from transformers import AutoTokenizer

    from qsweep.text.corpora import load_documents
    from qsweep.text.corpus import CorpusConfig

    config = CorpusConfig("python_docs", source="python", kind="docs", split="test")
    text = "\n\n".join(load_documents(config))
    ids = AutoTokenizer.from_pretrained(model)(text, verbose=False)["input_ids"]
    return [ids[at * context : (at + 1) * context] for at in range(count)]


def logits_of(gguf: Path, windows: list[list[int]], cache: str) -> list[Any]:
    """llama.cpp's logits of each window, float32 [tokens, vocabulary]."""
    import torch

    from qsweep.formats.gguf.native import NativeModel
    from qsweep.formats.kv_cache.spec import kv_cache

    with NativeModel(
        gguf,
        context=len(windows[0]),
        batch=256,
        gpu=None,
        threads=torch.get_num_threads(),
        kv_cache=kv_cache(cache).default,
    ) as native:
        return [
            torch.cat([torch.from_numpy(part.copy()) for _, part in native.logits(ids)])
            for ids in windows
        ]


def divergences(plain: list[Any], cached: list[Any]) -> Any:
    """KL of each token, [windows, tokens]."""
    import torch

    from qsweep.evaluate.metrics import kl_divergence

    return torch.stack([kl_divergence(*both) for both in zip(plain, cached, strict=True)])


def summary(name: str, values: Any) -> dict[str, float]:
    """Mean and its error over windows."""
    means = values.double().mean(1)
    return {
        name: float(means.mean()),
        f"{name}_stderr": float(means.std() / len(means) ** 0.5),
    }


if __name__ == "__main__":
    main()
