"""llama.cpp's own run of a file, and how far two models' logits are apart."""

import torch

from qsweep.formats.gguf.native import NativeModel


def native_logits(path, ids):
    """Logits [rows, tokens, vocabulary] of token ids [rows, tokens]."""
    with NativeModel(path, context=ids.shape[1], batch=40, gpu=None, threads=1) as model:
        rows = [
            torch.cat([torch.tensor(part) for _, part in model.logits(row.tolist())]) for row in ids
        ]
    return torch.stack(rows)


def divergence(first, second):
    """The mean KL divergence of logits [..., vocabulary]."""
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())
