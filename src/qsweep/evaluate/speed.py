"""Tokens per second and peak memory, on the kernels that serve an artifact.

GPTQModel's for GPTQ and AWQ, llama.cpp's for GGUF, transformers' own for the unquantized model; one
sequence, no batching. Never in the same pass as quality, and alone on the device.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from qsweep.base.errors import BackendUnavailable
from qsweep.base.progress import Progress, silent
from qsweep.evaluate.footprint import GPUMemory, MemoryMeter, ResidentMemory, TorchMemory
from qsweep.evaluate.serving import kld_native, load_on
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container

__all__ = ["kld_native", "measure_speed"]

PREFILL_TOKENS = 512
DECODE_TOKENS = 32
REPEATS = 3
# A repeat decodes fewer tokens where these would take longer than this.
_DECODE_S = 3.0


class SequenceRunner(Protocol):
    """Something that runs one sequence and has finished when its methods return."""

    def prefill(self, tokens: list[int]) -> None:
        """Read a prompt into an empty cache."""

    def decode(self, count: int) -> None:
        """Generate so many tokens after it, one by one."""


def can_time(artifact: Artifact) -> bool:
    """Whether a kernel that serves the artifact can be run from here.

    vLLM alone serves compressed-tensors as they are; elsewhere they would be unpacked first.
    """
    return container(artifact.format).timed_by is not None


def measure_speed(
    artifact: Artifact,
    source: Path,
    device: str,
    progress: Progress = silent,
    *,
    prefill_tokens: int = PREFILL_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    repeats: int = REPEATS,
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Time one artifact: one warm-up, then the median of several repeats.

    Args:
        artifact: what is served.
        source: directory of the unquantized model.
        device: ``cpu`` or ``cuda:N``.
        progress: told of each repeat.
        prefill_tokens: length of the prompt; less for models whose context is shorter.
        decode_tokens: generated after that prompt, so with its keys and values in the cache; fewer
            where they would take more than three seconds.
        repeats: how many are timed.
        trust_remote_code: whether the checkpoint's own code may run.

    Returns:
        ``prefill_tps`` and ``decode_tps``, tokens per second; ``load_s``; ``peak_memory_gb_speed``,
        weights and cache included (on CUDA of the GPU, else of this process's resident memory);
        ``speed_on_gpu``, 0 where llama.cpp is built without CUDA and so ran on the CPU; and the
        numbers of tokens used.

    Raises:
        BackendUnavailable: the library with the kernels is not installed.
    """
    from qsweep.models.facts import read_facts

    facts = read_facts(source, source.name)
    prompt_length = max(1, min(prefill_tokens, facts.max_length - decode_tokens))
    # Any tokens do: nothing depends on what they say.
    prompt = [(7 + 31 * i) % facts.vocab_size for i in range(prompt_length)]
    _import_libraries(artifact, source, trust_remote_code)
    started = time.perf_counter()
    memory = _memory(artifact, device)
    context = prompt_length + decode_tokens
    # Trust in a model's code is none in that of whoever else made a directory.
    trusted = trust_remote_code and artifact.origin is None
    with _engine(artifact, device, context, trusted) as engine:
        load_s = time.perf_counter() - started
        count = _warm_up(engine, prompt, decode_tokens)
        prefill, decode = [], []
        for repeat in range(repeats):
            progress("speed", repeat / repeats)
            first = time.perf_counter()
            engine.prefill(prompt)
            second = time.perf_counter()
            engine.decode(count)
            third = time.perf_counter()
            prefill.append(second - first)
            decode.append(third - second)
        peak = memory.peak_bytes()
    return {
        "prefill_tps": prompt_length / statistics.median(prefill),
        "decode_tps": count / statistics.median(decode),
        "peak_memory_gb_speed": peak / 1e9,
        "load_s": load_s,
        "prefill_tokens": float(prompt_length),
        "decode_tokens": float(count),
        "speed_on_gpu": float(_on_gpu(artifact, device)),
    }


def _warm_up(engine: SequenceRunner, prompt: list[int], decode_tokens: int) -> int:
    """Let kernels be compiled and caches filled; returns how many tokens to decode in a repeat."""
    engine.prefill(prompt)
    engine.decode(2)
    started = time.perf_counter()
    engine.decode(2)
    per_token = (time.perf_counter() - started) / 2
    return max(4, min(decode_tokens, int(_DECODE_S / per_token)))


@contextlib.contextmanager
def _engine(
    artifact: Artifact, device: str, context: int, trusted: bool
) -> Iterator[SequenceRunner]:
    import torch

    runtime = container(artifact.format).timed_by
    if runtime == "llama.cpp":
        from qsweep.formats.gguf.dense import model_file
        from qsweep.formats.gguf.native import NativeModel

        with NativeModel(
            model_file(artifact),
            context=context,
            batch=min(context, 512),
            gpu=torch.device(device).index or 0 if _on_gpu(artifact, device) else None,
            threads=torch.get_num_threads(),
        ) as model:
            yield _LlamaCpp(model)
        return
    with torch.inference_mode():
        if runtime == "gptqmodel":
            model = _load_gptqmodel(artifact, device, trusted)
        else:
            model = load_on(device, artifact.files, trusted)
        yield _Transformers(model, device)


def _import_libraries(artifact: Artifact, source: Path, trusted: bool) -> None:
    """Import what serves the artifact, so that its memory and time do not count."""
    runtime = container(artifact.format).timed_by
    if runtime == "llama.cpp":
        from qsweep.formats.gguf.native import can_use_gpu

        can_use_gpu()
        return
    if runtime == "gptqmodel":
        _gptqmodel()
    from transformers import AutoConfig

    from qsweep.models.architecture import empty_model

    config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    empty_model(config, trust_remote_code=trusted)


def _gptqmodel() -> Any:
    import importlib.util

    if importlib.util.find_spec("gptqmodel") is None:
        raise BackendUnavailable('timing needs GPTQModel: pip install "qsweep[gptqmodel]"')
    if (os.cpu_count() or 1) <= 2:
        # Its thread pool asks for two workers and dies on machines where it grants itself one.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import gptqmodel

    return gptqmodel


def _load_gptqmodel(artifact: Artifact, device: str, trusted: bool) -> Any:
    library = _gptqmodel()
    backend = library.BACKEND.AUTO
    if device == "cpu":
        backend = library.BACKEND[f"{artifact.format.upper()}_TORCH"]
    model = library.GPTQModel.load(
        str(artifact.files), device=device, backend=backend, trust_remote_code=trusted
    ).model.eval()
    # On a CPU it insists on half precision, for which most CPUs have no units.
    return model.float() if device == "cpu" else model


class _Transformers:
    """A model with transformers' interface, with whatever kernels its layers have."""

    def __init__(self, model: Any, device: str):
        import torch

        self.model, self.device = model, device
        self.cache: Any = None
        self.token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def prefill(self, tokens: list[int]) -> None:
        import torch

        self.cache = None
        ids = torch.tensor([tokens], device=self.device)
        self._forward(ids)
        self._wait()

    def decode(self, count: int) -> None:
        for _ in range(count):
            self._forward(self.token)
        self._wait()

    def _forward(self, ids: Any) -> None:
        # As serving does: only the last position's logits, and the likeliest token next.
        out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        self.token = out.logits[:, -1:].argmax(-1)

    def _wait(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)


class _LlamaCpp:
    """llama.cpp's own run of the file."""

    def __init__(self, model: Any):
        self.model, self.position = model, 0

    def prefill(self, tokens: list[int]) -> None:
        self.model.reset()
        for at in range(0, len(tokens), self.model.batch_size):
            self.model.decode(tokens[at : at + self.model.batch_size], at)
        self.position = len(tokens)

    def decode(self, count: int) -> None:
        for _ in range(count):
            self.model.decode([self.model.likeliest()], self.position)
            self.position += 1


def _on_gpu(artifact: Artifact, device: str) -> bool:
    if not device.startswith("cuda"):
        return False
    if container(artifact.format).timed_by != "llama.cpp":
        return True
    from qsweep.formats.gguf.native import can_use_gpu

    return can_use_gpu()


def _memory(artifact: Artifact, device: str) -> MemoryMeter:
    if not _on_gpu(artifact, device):
        return ResidentMemory()
    outside_torch = container(artifact.format).timed_by == "llama.cpp"
    return GPUMemory(device) if outside_torch else TorchMemory(device)
