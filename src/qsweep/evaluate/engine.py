"""Runs a model over windows: hidden states batch by batch, and what makes logits of them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from qsweep.base.errors import TrialFailed
from qsweep.base.memory import set_malloc, trim_malloc
from qsweep.evaluate.head import KeptLogits, OutputHead, run_body, split_model
from qsweep.evaluate.together import together
from qsweep.models.room import stream_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from qsweep.text.windows import Windows

# The split into body and head is checked on so many tokens of the first window.
_CHECKED_TOKENS = 64
# What a CPU runs at once: more only leaves its caches.
_CPU_BATCH_TOKENS = 2048
# A GPU takes what its activations fit in this many bytes with, at most so many tokens.
_GPU_BATCH_BYTES = 400_000_000
_GPU_BATCH_TOKENS = 65536


@dataclass(frozen=True)
class Engine:
    """A model as two steps: windows to *features*, features to logits.

    Attributes:
        model: As loaded.
        body: Name of the part that makes the features; None: the whole model, whose logits are the
            features, because its forward could not be split.
        head: Makes logits of features.
    """

    model: "PreTrainedModel"
    body: str | None
    head: OutputHead | KeptLogits

    @property
    def device(self) -> "torch.device":
        """Where ids go and results are kept."""
        return self.model.device

    def features(self, ids: "Tensor") -> "Tensor":
        """Ids [b, n] -> features of all positions, [b * n, width]."""
        if self.body is None:
            return self.model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        return run_body(self.model, self.body, ids).flatten(0, 1)


def open_engine(model: "PreTrainedModel", ids: "Tensor") -> Engine:
    """Split a model into body and head if that gives its own logits on some tokens.

    Args:
        model: In evaluation mode, on its device.
        ids: Any tokens, int64 [b, n]; the first of the first row are taken.
    """
    ids = ids[:1, :_CHECKED_TOKENS].to(model.device)
    if found := split_model(model, ids):
        return Engine(model, *found)
    logits = model(input_ids=ids[:, :1], use_cache=False).logits
    return Engine(model, None, KeptLogits(logits.shape[-1], logits.device))


def batch_size(engine: Engine, context: int) -> int:
    """Windows to run at once, from the model and the kind of device alone.

    Not from free memory: equal runs shall compute in equal shapes, or else their last digits differ.
    """
    if engine.body is None:
        return 1
    if engine.device.type == "cpu":
        return max(1, _CPU_BATCH_TOKENS // context)
    config = engine.model.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", 0) or 4096)
    inner = getattr(config, "intermediate_size", None)
    inner = int(inner) if isinstance(inner, int) else 4 * hidden
    per_token = engine.model.dtype.itemsize * (3 * inner + 8 * hidden)
    return max(1, min(_GPU_BATCH_BYTES // per_token, _GPU_BATCH_TOKENS) // context)


def run_windows(
    engine: Engine,
    windows: "Windows",
    consume: "Callable[[Tensor, Tensor, int], None]",
    advance: Callable[[float], None],
    batch: int | None = None,
) -> int:
    """Run all windows in order and hand on what is scored. Nothing here waits for the device.

    A batch that does not fit into GPU memory is halved, and so are those after it.

    Args:
        engine: The model.
        windows: What is run.
        consume: Called with the features of a batch's scored predictions [n, width], their targets
            [n], and the number of scored tokens before them; called again if it ran out of memory.
        advance: Told the share that is done.
        batch: Windows at once; by default :func:`batch_size`.

    Returns:
        The batch size at the end.

    Raises:
        TrialFailed: Not even a single window fits.
    """
    import torch

    count, context = windows.ids.shape
    batch = batch or batch_size(engine, context)
    ids = windows.ids.to(engine.device)
    rows, offsets = _scored_rows(windows, engine.device)
    begin = 0
    while begin < count:
        starts = range(begin, count, batch)
        forwards = [partial(engine.features, ids[start : start + batch]) for start in starts]
        share = partial(_share_done, advance, begin / count)
        try:
            with without_packing_check():
                for features in together(engine.model, forwards, share):
                    end = min(begin + batch, count)
                    first, last = offsets[begin], offsets[end]
                    chosen = rows[first:last]
                    local = (chosen - begin * context).to(features.device)
                    consume(features.index_select(0, local), ids.view(-1)[chosen + 1], first)
                    begin = end
        except torch.OutOfMemoryError as error:
            if batch == 1:
                raise TrialFailed(
                    f"out of memory on {engine.device} with a single window of {context} tokens; "
                    "lower eval.context, or free the device"
                ) from error
            features = None
            torch.cuda.empty_cache()
            batch = max(1, batch // 2)
    return batch


def _share_done(advance: Callable[[float], None], before: float, done: float) -> None:
    """Tell the share of all that is done, given that of what was left."""
    advance(before + (1 - before) * done)


def _scored_rows(windows: "Windows", device: "torch.device") -> "tuple[Tensor, list[int]]":
    """Where the predictions of scored tokens lie, and how many precede each window's.

    Places are counted over all positions of all windows, int64 [tokens].
    """
    offsets = [0, *windows.counts.cumsum(0).tolist()]
    return (windows.scored.view(-1).nonzero().view(-1) - 1).to(device), offsets


@contextlib.contextmanager
def without_packing_check() -> Iterator[None]:
    """Spare transformers the question whether a window holds several sequences: none does.

    It looks for them in the position ids before every forward that has neither mask nor cache, and
    so waits for the device each time.
    """
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    original = getattr(masking_utils, name, None)
    if original is None:
        yield
        return
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, original)


@contextlib.contextmanager
def keep_freed_memory(model: "PreTrainedModel") -> Iterator[None]:
    """Let the C library keep what is freed, while a CPU computes with a model that is in memory.

    By default glibc returns buffers of some megabytes to the system, and gets them back page by
    page: 5 to 15 % of a small model's time. Does nothing elsewhere.
    """
    on_host = model.device.type == "cpu" and stream_of(model) is None
    # Afterwards as high as glibc's own adjustment lets them grow, which they cannot be given back to.
    if not on_host or not set_malloc(mapped_from=(1 << 31) - 1, kept=(1 << 31) - 1):
        yield
        return
    try:
        yield
    finally:
        set_malloc(mapped_from=32 << 20, kept=64 << 20)
        trim_malloc()
