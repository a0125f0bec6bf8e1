"""llama.cpp itself, through llama-cpp-python's C interface: quantizing a file, and running one."""

import contextlib
import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.disk import has_no_room
from qsweep.base.errors import ArtifactCorrupt, TrialFailed
from qsweep.formats.gguf.types import FileType, TensorType, tensor_type
from qsweep.formats.kv_cache.spec import LayerCache
from qsweep.formats.kv_cache.types import NONE

if TYPE_CHECKING:
    import numpy
    import torch

_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_CONTINUED = 5  # GGML_LOG_LEVEL_CONT


def quantize_file(
    source: Path,
    target: Path,
    type_: FileType,
    imatrix: "Mapping[str, torch.Tensor] | None",
    overrides: Mapping[str, TensorType] | None = None,
) -> None:
    """Quantize an unquantized file.

    Args:
        source: the file to read.
        target: the file to write.
        type_: which mixture of types.
        imatrix: mean squared activation per input channel, float32, by tensor name in the file.
        overrides: types of single tensors, by regular expressions (C++) of names in the file. The first
            that matches counts; they reach the embedding and the output head, too, and nothing where
            the mixture does not quantize.

    Raises:
        OSError: the disk is full.
        TrialFailed: llama.cpp refuses; the text is its own.
    """
    failed, lines = _quantize(source, target, type_, imatrix, overrides)
    if failed:
        if has_no_room(target.parent):  # of which it only says "basic_ios::clear"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        raise _refused(type_, lines)


def planned_types(
    source: Path,
    type_: FileType,
    imatrix: "Mapping[str, torch.Tensor] | None",
    overrides: Mapping[str, TensorType] | None = None,
) -> dict[str, TensorType]:
    """What :func:`quantize_file` would store each tensor as, by name. No weight is read.

    Raises:
        TrialFailed: llama.cpp refuses; the text is its own.
    """
    text: list[str] = []
    nowhere = Path(os.devnull)
    failed, lines = _quantize(source, nowhere, type_, imatrix, overrides, text)
    if failed:
        raise _refused(type_, lines)
    found = _PLANNED.findall("".join(text))
    if not found or len(found) != int(found[0][0]):
        raise TrialFailed("llama.cpp's dry run says nothing of some tensors; update qsweep")
    return {name: tensor_type((after or before).upper()) for _, name, before, after in found}


# A line of a dry run: the number of tensors, a tensor, its type before, and in brackets the type after, where that is another.
_PLANNED = re.compile(
    r"^\[ *\d+/ *(\d+)\] +(\S+) +- \[[^\]\n]*\], type = +(\w+), [^\n(]*(?:\((\w+)\))?", re.MULTILINE
)


def _refused(type_: FileType, errors: list[str]) -> TrialFailed:
    return TrialFailed(f"llama.cpp cannot write {type_.name}: {_one(errors[-1:])}")


def _quantize(
    source: Path,
    target: Path,
    type_: FileType,
    imatrix: "Mapping[str, torch.Tensor] | None",
    overrides: Mapping[str, TensorType] | None,
    dry: list[str] | None = None,
) -> tuple[int, list[str]]:
    """Its exit code and its errors. With ``dry`` nothing is written, and its log goes there."""
    from llama_cpp import llama_cpp as api

    params = api.llama_model_quantize_default_params()
    params.ftype = type_.number if type_.mixture is None else type_.mixture
    params.dry_run = dry is not None
    held = []
    if imatrix is not None:
        # An array that ends with an empty entry, pointing into arrays that must stay alive.
        entries = (api.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            array = values.contiguous().numpy()
            held.append(array)
            entry.name = name.encode()
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = array.size
        params.imatrix = entries
    if overrides:
        types = (api.llama_model_tensor_override * (len(overrides) + 1))()
        for override, (pattern, wanted) in zip(types, overrides.items(), strict=False):
            override.pattern, override.type = pattern.encode(), wanted.number
        params.tt_overrides = types
    # The file says what it is rather than which mixture it was made from.
    stated = (api.llama_model_kv_override * 2)()
    if params.ftype != type_.number:
        entry_of_type: Any = stated[0]
        entry_of_type.tag, entry_of_type.key = api.LLAMA_KV_OVERRIDE_TYPE_INT, b"general.file_type"
        entry_of_type.value.val_i64 = type_.number
        params.kv_overrides = stated
    with logged(dry) as errors:
        failed = api.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
    return failed, errors


@contextlib.contextmanager
def logged(into: list[str] | None = None) -> Iterator[list[str]]:
    """llama.cpp's log goes to standard error, or ``into``; the lines of errors are collected as well."""
    from llama_cpp import _logger
    from llama_cpp import llama_cpp as api

    errors: list[str] = []
    last = 0

    @api.llama_log_callback
    def write(level: int, text: bytes, _: Any) -> None:
        nonlocal last
        last = last if level == _CONTINUED else level
        line = text.decode(errors="replace")
        if into is None:
            sys.stderr.write(line)
        else:
            into.append(line)
        if last == _ERROR and line.strip(" =\n"):
            errors.append(line.strip())

    api.llama_log_set(write, ctypes.c_void_p(0))
    try:
        yield errors
    finally:
        # Never leave a callback behind that Python may free.
        api.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))


def tokenize(path: Path, text: str) -> list[int] | None:
    """A text's token ids by a file's own tokenizer, none put before or behind; None: it has none."""
    from llama_cpp import llama_cpp as api

    content = text.encode()
    with logged():
        params = api.llama_model_default_params()
        params.vocab_only = True
        model = api.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            return None
        try:
            room = (api.llama_token * (len(content) + 16))()
            vocab = api.llama_model_get_vocab(model)
            count = api.llama_tokenize(vocab, content, len(content), room, len(room), False, False)
        finally:
            api.llama_model_free(model)
    return list(room[:count]) if count >= 0 else None


def can_use_gpu() -> bool:
    """Whether the installed llama.cpp is built for a GPU that is there."""
    from llama_cpp import llama_cpp as api

    return bool(api.llama_supports_gpu_offload())


class NativeModel:
    """A file as llama.cpp serves it. Close it, or use it in a ``with`` statement.

    Args:
        path: the GGUF file.
        context: tokens that fit in its key-value cache.
        batch: tokens decoded at once.
        gpu: number of the GPU that all layers go to, where this build of llama.cpp can; None: none.
        threads: on the CPU.
        exact: keys and values stay in float32, and attention is computed step by step.
        kv_cache: what keys and values are stored as, its own types ``type_k`` and ``type_v``; None:
            float16, as it does by itself. Attention is then its flash attention, which alone reads
            quantized values.

    Raises:
        ArtifactCorrupt: llama.cpp cannot load it; the text is its own.
        TrialFailed: llama.cpp cannot run it so.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        batch: int,
        gpu: int | None,
        threads: int,
        exact: bool = False,
        kv_cache: LayerCache | None = None,
    ):
        from llama_cpp import llama_cpp as api

        self._api = api
        with contextlib.ExitStack() as stack:
            errors = stack.enter_context(logged())
            api.llama_backend_init()
            model_params = api.llama_model_default_params()
            model_params.n_gpu_layers = 0
            if gpu is not None:
                model_params.n_gpu_layers, model_params.main_gpu = 999, gpu
                model_params.split_mode = api.LLAMA_SPLIT_MODE_NONE
            model = api.llama_model_load_from_file(str(path).encode(), model_params)
            if not model:
                raise ArtifactCorrupt(f"{path}: llama.cpp cannot load it ({_one(errors)})")
            stack.callback(api.llama_model_free, model)
            params = api.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = context, batch, batch
            params.n_threads = params.n_threads_batch = threads
            if exact:
                params.type_k = params.type_v = api.GGML_TYPE_F32
                params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            elif kv_cache is not None:
                params.type_k = _cache_type(api, kv_cache.keys)
                params.type_v = _cache_type(api, kv_cache.values)
                params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
            self._context = api.llama_init_from_model(model, params)
            if not self._context:
                raise TrialFailed(f"llama.cpp cannot run {path.name}: {_one(errors)}")
            stack.callback(api.llama_free, self._context)
            self.vocab_size = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)))
            self.batch_size = batch
            self._batch = api.llama_batch_init(batch, 0, 1)
            stack.callback(api.llama_batch_free, self._batch)
            self._held = stack.pop_all()

    def reset(self) -> None:
        """Empty the key-value cache."""
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_clear(memory, True)

    def decode(self, tokens: Sequence[int], position: int, *, all_logits: bool = False) -> None:
        """Run at most ``batch`` tokens that stand from ``position`` on, and wait for the result."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i == len(tokens) - 1
        if code := self._api.llama_decode(self._context, batch):
            raise TrialFailed(f"llama.cpp cannot decode (code {code})")
        self._api.llama_synchronize(self._context)

    def likeliest(self) -> int:
        """The token that the last one decoded makes likeliest."""
        import numpy

        last = self._api.llama_get_logits_ith(self._context, -1)
        return int(numpy.ctypeslib.as_array(last, (self.vocab_size,)).argmax())

    def logits(self, tokens: Sequence[int]) -> "Iterator[tuple[int, numpy.ndarray]]":
        """Logits at every position, batch by batch: the first position, float32 [tokens, vocab].

        The array is llama.cpp's own memory, valid until the next batch.
        """
        import numpy

        self.reset()
        for at in range(0, len(tokens), self.batch_size):
            part = tokens[at : at + self.batch_size]
            self.decode(part, at, all_logits=True)
            pointer = self._api.llama_get_logits(self._context)
            yield at, numpy.ctypeslib.as_array(pointer, (len(part), self.vocab_size))

    def close(self) -> None:
        """Free everything; a second time does nothing."""
        self._held.close()

    def __enter__(self) -> "NativeModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cache_type(api: Any, name: str) -> int:
    return int(getattr(api, f"GGML_TYPE_{'F16' if name == NONE else name.upper()}"))


def _one(errors: list[str]) -> str:
    return errors[0] if errors else "no reason given"
