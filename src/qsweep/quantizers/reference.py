"""What the unquantized model itself says of a few tokens, for others' runs to be compared with."""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsweep.models.source import SourceModel

if TYPE_CHECKING:
    import torch


def reference_logits(model: SourceModel, ids: Sequence[int], dtype: str) -> "torch.Tensor":
    """Logits of the unquantized model, as the dense engine reads it; its memory is freed again.

    Args:
        model: The model.
        ids: Token ids of one window.
        dtype: What to load and compute in, by torch's name.

    Returns:
        float32 [tokens, vocabulary] on the CPU.
    """
    import torch

    from qsweep.formats.dense import load_dense
    from qsweep.formats.hf import reference_artifact

    engine = load_dense(
        reference_artifact(model.facts),
        model.path,
        dtype=getattr(torch, dtype),
        device=model.device,
        trust_remote_code=model.trust_remote_code,
    )
    window = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        logits = engine(window, use_cache=False).logits[0].float().cpu().contiguous()
    # What is compared with it needs the memory next.
    del engine
    gc.collect()
    if model.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return logits
