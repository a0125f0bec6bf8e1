"""Whether llama.cpp computes the model's function from the file that it was converted to.

Tensors are proven (:mod:`qsweep.formats.gguf.layout`); metadata is not: the base of a rotary embedding that
the converter forgets, or an option that llama.cpp does not know, makes another model of the same
numbers. So the unquantized file is run on one window beside the model itself.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, QsweepError, TrialFailed
from qsweep.formats.gguf.reader import read_gguf
from qsweep.formats.gguf.types import FILE_TYPES
from qsweep.models.devices import resolve_dtype
from qsweep.models.source import SourceModel
from qsweep.quantizers.reference import reference_logits

if TYPE_CHECKING:
    import torch

# Raised when what is compared changes.
VERSION = 1
_TOKENS = 256
# A file below this many bytes is run in float32 for the comparison, a larger one as it is.
_WIDENED_BYTES = 4e9
# Mean KL divergence in nats per token that kernels alone stay below, by what the file holds. Over
# architectures that llama.cpp computes rightly, float32 gave 1e-12 to 6e-5 (gpt-oss; the next are
# factors rounded into bfloat16, 1e-5, and a tabulated GELU, 2e-7), float16 6e-6 and bfloat16 5e-4.
LIMITS = {"F32": 3e-4, "F16": 2e-3, "BF16": 1e-2}


@dataclass(frozen=True)
class Agreement:
    """How far llama.cpp's run of the unquantized file is from the model's own.

    ``kld`` is the mean KL(model || llama.cpp) in nats over ``tokens`` positions, and ``limit`` what
    its kernels stay below; None with a ``reason`` where it cannot run the file at all.
    """

    kld: float | None
    limit: float
    tokens: int = 0
    top1_agreement: float | None = None
    reason: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether it is the same function."""
        return self.kld is not None and self.kld <= self.limit

    def content(self) -> dict[str, Any]:
        """As plain values, with the answer; without what is not known."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {"agrees": self.agrees, **known}


def measure_agreement(file: Path, type_: str, model: SourceModel, work: Path) -> Agreement:
    """Run the unquantized file ``file`` and the model on one window, and compare their logits.

    Args:
        file: what the converter wrote.
        type_: the type of its matrices: F32, F16 or BF16.
        model: the model that it was made from.
        work: a directory for temporary files, which may become twice the file's size.
    """
    import torch

    ids = _window(file, model)
    wide = type_ == "F32" or file.stat().st_size < _WIDENED_BYTES
    limit = LIMITS["F32" if wide else type_]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        if wide and type_ != "F32":
            from qsweep.formats.gguf.native import quantize_file

            try:
                quantize_file(file, Path(folder) / "wide.gguf", FILE_TYPES["F32"], None)
            except TrialFailed as error:
                return Agreement(None, limit, reason=str(error))
            file = Path(folder) / "wide.gguf"
        found = _run(file, ids, Path(folder))
        if isinstance(found, str):
            return Agreement(None, limit, reason=found)
    dtype = "float32" if wide else resolve_dtype("auto", model.device, model.path)
    expected = reference_logits(model, ids, dtype)
    shared = min(expected.shape[1], found.shape[1])
    p, q = (x[:, :shared].double().log_softmax(-1) for x in (expected, found))
    kld = float((p.exp() * (p - q)).sum(-1).mean())
    same = float((expected.argmax(-1) == found.argmax(-1)).double().mean())
    if not torch.isfinite(torch.tensor(kld)):
        return Agreement(None, limit, len(ids), reason="the logits are not finite")
    return Agreement(kld, limit, len(ids), same)


def _window(file: Path, model: SourceModel) -> list[int]:
    """Token ids that cover the vocabulary evenly: what they say does not matter."""
    size = model.facts.vocab_size
    with contextlib.suppress(ArtifactCorrupt):
        # Rows of the embedding that no token has may be left out.
        size = min(size, len(read_gguf(file).metadata.get("tokenizer.ggml.tokens") or range(size)))
    count = max(2, min(_TOKENS, model.facts.max_length))
    return [(11 + 7919 * i) % size for i in range(count)]


def _run(file: Path, ids: list[int], folder: Path) -> "torch.Tensor | str":
    """llama.cpp's logits [tokens, vocabulary], or why there are none.

    In a process of its own, since it ends the process where a file contradicts its expectations.
    """
    import torch
    from safetensors.torch import load_file

    order, answer = folder / "order.json", folder / "logits.safetensors"
    threads = torch.get_num_threads()
    content = {"file": str(file), "ids": ids, "out": str(answer), "threads": threads}
    order.write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run(  # noqa: S603 - this module
        [sys.executable, "-P", "-m", "qsweep.quantizers.conversion.agreement", str(order)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode == 0 and answer.exists():
        return load_file(answer)["logits"].clone()
    print(done.stdout, file=sys.stderr)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(_REASON)] or [
        line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()
    ]
    line = reasons[-1].removeprefix(_REASON) if reasons else f"ended with code {done.returncode}"
    # Neither this temporary file's place nor that of the source it was compiled from.
    return _PLACE.sub("", line.replace(f"{file}: ", ""))


# The folder of a file of C++, where a line of it is named.
_PLACE = re.compile(r"\S*/(?=[^/\s]+\.\w+:\d+:)")
_REASON = "qsweep: "


def main(path: str) -> int:
    """The other process: run a file and write its logits."""
    import torch
    from safetensors.torch import save_file

    from qsweep.formats.gguf.native import NativeModel

    order = json.loads(Path(path).read_text(encoding="utf-8"))
    ids = order["ids"]
    try:
        with NativeModel(
            Path(order["file"]),
            context=len(ids),
            batch=len(ids),
            gpu=None,
            threads=order["threads"],
            exact=True,
        ) as native:
            parts = [torch.tensor(part) for _, part in native.logits(ids)]
    except QsweepError as error:
        print(f"{_REASON}{error}", flush=True)
        return 1
    save_file({"logits": torch.cat(parts)}, order["out"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
