"""Records of trials, made by hand, with the arrays of their windows."""

import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from helpers.records import trial

WINDOWS, TOKENS = 24, 100


def measured_trial(place: Path, name, method, loss, size_gb, *, noise=0.0, seed=0, **more):
    """A trial whose windows are ``loss`` nats a token worse than the reference, give or take noise."""
    dice = np.random.default_rng(seed)
    text = np.random.default_rng(99).uniform(2.0, 4.0, WINDOWS)  # how hard each window is
    nll = (text + loss + dice.normal(0, noise, WINDOWS)) * TOKENS
    folder = place / name.replace(" ", "-")
    folder.mkdir()
    arrays = {
        "window_nll": nll,
        "window_tokens": np.full(WINDOWS, TOKENS),
        "token_kld": np.repeat(nll / TOKENS - text, TOKENS).astype(np.float32),
    }
    save_file(arrays, folder / "arrays.safetensors")
    record = trial(name, method, math.exp(loss), 0.05, bits=4, size_gb=size_gb, **more)
    record["measurements"][0] |= {"file": str(folder)}
    record["measurements"][0]["metrics"] |= {"kld": max(loss, 1e-6)}
    record["key"] = f"key-{name}"
    return record
