"""The reference, cached as what goes into its output head.

Tokens × hidden size instead of tokens × vocabulary: logits are rebuilt tile by tile through the
reference's own head. Where a model's logits cannot be rebuilt so, they are kept themselves.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qsweep.base.errors import ArtifactCorrupt, QsweepError
from qsweep.base.files import read_json, write_json
from qsweep.base.progress import Progress, silent
from qsweep.evaluate.engine import keep_freed_memory, open_engine, run_windows
from qsweep.evaluate.head import KeptLogits, OutputHead, load_output_head, logits_agree
from qsweep.evaluate.measurement import WindowScores
from qsweep.evaluate.nll import nll_measurement, require_finite, run_facts
from qsweep.evaluate.scoring import choose_tile, score, token_parts

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from qsweep.text.windows import Windows

FACTS, TOKENS, SHARD = "reference.json", "tokens.safetensors", "features-{:05d}.safetensors"
_SHARD_BYTES = 512_000_000
PROBED_TOKENS = 4


@dataclass(frozen=True)
class Reference:
    """A cached reference on certain windows. Tokens are the scored ones, in the windows' order.

    Attributes:
        head: Makes logits of features.
        fingerprint: Of the windows.
        facts: How it was run.
        nll: Negative log-likelihood, float32 [tokens], on the CPU, as are the following.
        first: Most likely token, int64 [tokens].
        confidence: Its probability, float32 [tokens].
    """

    head: OutputHead | KeptLogits
    fingerprint: str
    facts: dict[str, Any]
    nll: "Tensor"
    first: "Tensor"
    confidence: "Tensor"
    _shards: "_Features"

    def features(self, tokens: slice) -> "Tensor":
        """What goes into the head, [n, width], on the CPU, pinned where the head is on a GPU."""
        found = self._shards.read(tokens)
        return found if self.head.device.type == "cpu" else found.pin_memory()

    def select(self, windows: "Windows", chosen: Sequence[int]) -> "Reference":
        """The same reference on only some of its windows, by number, in that order.

        Args:
            windows: All of its windows.
            chosen: Which; as of :meth:`~qsweep.text.windows.Windows.select`.
        """
        import torch

        ends = [0, *windows.counts.cumsum(0).tolist()]
        spans = [slice(ends[number], ends[number + 1]) for number in chosen]
        at = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        return replace(
            self,
            fingerprint=windows.select(chosen).fingerprint,
            nll=self.nll[at],
            first=self.first[at],
            confidence=self.confidence[at],
            _shards=_Spans(self._shards, spans),
        )


class _Features(Protocol):
    def read(self, tokens: slice) -> "Tensor": ...


class Shards:
    """Features [tokens, width] in one or more memory-mapped files."""

    def __init__(self, path: Path, ends: Sequence[int]):
        from safetensors import safe_open

        self._ends = list(ends)
        self._files = [
            safe_open(path / SHARD.format(number), framework="pt", device="cpu").get_slice(
                "features"
            )
            for number in range(len(self._ends))
        ]

    def read(self, tokens: slice) -> "Tensor":
        """Features of a contiguous range of tokens: [n, width]."""
        import torch

        found, start = [], 0
        for file, end in zip(self._files, self._ends, strict=True):
            low, high = max(tokens.start, start), min(tokens.stop, end)
            if low < high:
                found.append(file[low - start : high - start])
            start = end
        return found[0] if len(found) == 1 else torch.cat(found)


class _Spans:
    """Some stretches of features, as if they followed each other."""

    def __init__(self, features: _Features, spans: Sequence[slice]):
        self._features, self._spans = features, _joined(spans)

    def read(self, tokens: slice) -> "Tensor":
        """Features of a contiguous range of their tokens: [n, width]."""
        import torch

        found, begin = [], 0
        for span in self._spans:
            end = begin + span.stop - span.start
            low, high = max(tokens.start, begin), min(tokens.stop, end)
            if low < high:
                shift = span.start - begin
                found.append(self._features.read(slice(low + shift, high + shift)))
            begin = end
        return found[0] if len(found) == 1 else torch.cat(found)


def _joined(spans: Sequence[slice]) -> list[slice]:
    # What follows each other anyway is read at once.
    found: list[slice] = []
    for span in spans:
        if found and found[-1].stop == span.start:
            found[-1] = slice(found[-1].start, span.stop)
        else:
            found.append(span)
    return found


class _Writer:
    """Collects features in order and writes a file whenever enough are together.

    What comes from a GPU goes to pinned memory, so that nobody waits for it, and files are written
    beside the computation. Leaving the context waits for the last one.
    """

    def __init__(self, path: Path, tokens: int, shard_bytes: int):
        self._path, self._left, self._shard_bytes = path, tokens, shard_bytes
        self._buffer: Tensor | None = None
        self._filled = 0
        self._pool = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self.ends: list[int] = []

    def add(self, features: "Tensor") -> None:
        """Take the next features, [n, width]."""
        import torch

        while len(features):
            if self._buffer is None:
                row = features.shape[1] * features.element_size()
                rows = min(self._left, max(1, self._shard_bytes // row))
                self._buffer = torch.empty(
                    (rows, features.shape[1]), dtype=features.dtype, pin_memory=features.is_cuda
                )
            room = len(self._buffer) - self._filled
            now, features = features[:room], features[room:]
            place = self._buffer[self._filled : self._filled + len(now)]
            place.copy_(now, non_blocking=True)
            self._filled += len(now)
            if self._filled == len(self._buffer):
                copied = (
                    torch.cuda.current_stream(now.device).record_event() if now.is_cuda else None
                )
                self._flush(self._buffer, copied)

    def _flush(self, buffer: "Tensor", copied: Any) -> None:
        file = self._path / SHARD.format(len(self.ends))
        self._left -= self._filled
        self.ends.append(self._filled + (self.ends[-1] if self.ends else 0))
        self._buffer, self._filled = None, 0
        # No more than one file waits to be written while the next is filled.
        self._wait()
        self._written = self._pool.submit(_write, file, buffer, copied)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self._wait()


def _write(file: Path, features: "Tensor", copied: Any) -> None:
    from safetensors.torch import save_file

    if copied is not None:
        copied.synchronize()
    save_file({"features": features}, file)


def build_reference(
    model: "PreTrainedModel",
    windows: "Windows",
    out: Path,
    progress: Progress = silent,
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Run the reference over the windows and write its cache into the directory ``out``.

    Body and head are checked on the first window: if together they do not give the model's own
    logits, the logits are kept instead.

    Args:
        model: The unquantized model, in evaluation mode, on its device.
        windows: What is scored.
        out: An existing directory.
        progress: Told how far the pass is.
        shard_bytes: As much goes into one file.

    Raises:
        TrialFailed: A logit is not finite, or memory does not suffice for a single window.
    """
    import torch
    from safetensors.torch import save_file

    count = windows.tokens_scored
    with (
        _Writer(out, count, shard_bytes) as writer,
        torch.inference_mode(),
        keep_freed_memory(model),
    ):
        engine = open_engine(model, windows.ids)
        head, tile = engine.head, choose_tile([engine.head])
        kept = {
            "nll": torch.empty(count, device=head.device),
            "first": torch.empty(count, dtype=torch.int64, device=head.device),
            "confidence": torch.empty(count, device=head.device),
        }
        probe: dict[str, Tensor] = {}

        def consume(features: "Tensor", targets: "Tensor", before: int) -> None:
            targets = targets.to(head.device)
            for part in token_parts(len(targets), tile.tokens):
                scores = score(head, features[part], targets[part], tile, first=True)
                for name, values in kept.items():
                    values[before + part.start : before + part.stop] = getattr(scores, name)
            if before == 0:
                probe["probe"] = head.logits(features[:PROBED_TOKENS])
            # Last, since a batch that runs out of memory comes again.
            writer.add(features)

        batch = run_windows(engine, windows, consume, lambda done: progress("reference", done))
    tokens = {name: values.cpu() for name, values in (kept | probe).items()}
    require_finite(tokens["nll"], windows, model=model)
    save_file(tokens, out / TOKENS)
    facts = {
        **run_facts(engine, batch),
        "fingerprint": windows.fingerprint,
        "body": engine.body,
        "vocab": head.vocab,
        "ends": writer.ends,
    }
    write_json(out / FACTS, facts)


def open_reference(
    path: Path,
    source: Path,
    device: str,
    dtype: "torch.dtype",
    *,
    trust_remote_code: bool = False,
) -> Reference:
    """Open a cache: features memory-mapped on the host, of the model only its head on the device.

    Args:
        path: The cache's directory.
        source: The directory of the unquantized model, for its head's weights.
        device: Where logits are rebuilt.
        dtype: What the reference was run in.
        trust_remote_code: Whether Python code in ``source`` may run.

    Raises:
        ArtifactCorrupt: The cache cannot be read.
        QsweepError: The head in ``source`` does not give the logits that were cached.
    """
    import torch

    facts, tokens, shards = read_cache(path)
    body, probe = facts["body"], tokens["probe"]
    head: OutputHead | KeptLogits
    if body is None:
        head = KeptLogits(int(facts["vocab"]), torch.device(device))
    else:
        head = load_output_head(source, body, dtype, device, trust_remote_code)
    reference = Reference(
        head,
        facts["fingerprint"],
        facts,
        tokens["nll"],
        tokens["first"],
        tokens["confidence"],
        shards,
    )
    with torch.inference_mode():
        rebuilt = head.logits(reference.features(slice(0, len(probe))).to(device)).cpu()
    if not logits_agree(rebuilt, probe, dtype):
        raise QsweepError(
            f"{source}: its output head does not give the logits that were cached for it; "
            f"if the model was changed, delete {path}"
        )
    return reference


def reference_measurement(path: Path, windows: "Windows") -> WindowScores:
    """The measurement of the reference itself, which was made together with its cache.

    Raises:
        ArtifactCorrupt: The cache cannot be read, or is of other windows.
    """
    facts, tokens, _ = read_cache(path)
    if facts["fingerprint"] != windows.fingerprint:
        raise ArtifactCorrupt(f"{path}: the reference was measured on other windows")
    run = {name: facts[name] for name in ("dtype", "device_type", "protocol", "batch", "head")}
    result = nll_measurement(windows, tokens["nll"], {**windows.facts(), **run})
    result.arrays["reference_confidence"] = tokens["confidence"]
    return result


def read_cache(path: Path) -> "tuple[dict[str, Any], dict[str, Tensor], Shards]":
    """Facts of a cache, its tensors of a value per token, and its features. Raises ArtifactCorrupt."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = read_json(path / FACTS)
        tokens = load_file(path / TOKENS)
        if missing := {"fingerprint", "body", "vocab"} - facts.keys():
            raise KeyError(*missing)
        return facts, tokens, Shards(path, facts["ends"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ArtifactCorrupt(f"{path}: no readable reference ({error})") from error
