"""What the device can do at most, measured, and what a piece of work needs at least, counted."""

from dataclasses import dataclass
from typing import Any

from gpu_parts.lab import Lab


@dataclass(frozen=True)
class Ceiling:
    """Measured rates: matrix products in the dtype of the run, and copying within its memory."""

    flops: float
    """Operations per second; a multiplication and an addition are two."""
    bytes: float
    """Bytes per second, read and written ones counted."""


@dataclass(frozen=True)
class Work:
    """What something takes at least."""

    flops: float
    bytes: float

    def floor_s(self, ceiling: Ceiling) -> float:
        """Seconds below which it cannot be done at the measured rates."""
        return max(self.flops / ceiling.flops, self.bytes / ceiling.bytes)


def measure_ceiling(lab: Lab) -> Ceiling:
    """Time large matrix products and copies, and add them as figures."""
    import torch

    dtype = torch.bfloat16 if lab.on_gpu else torch.float32
    name = str(dtype).removeprefix("torch.")
    best = 0.0
    for size in (4096, 8192, 16384) if lab.on_gpu else (512,):
        left = torch.randn(size, size, device=lab.device, dtype=dtype)
        right, out = torch.randn_like(left), torch.empty_like(left)
        repeats = max(1, int(4e13 / size**3)) if lab.on_gpu else 4

        def products(left=left, right=right, out=out, repeats=repeats) -> None:
            for _ in range(repeats):
                torch.mm(left, right, out=out)

        rate = 2 * size**3 * repeats / lab.time(products)
        lab.add("ceiling", f"{name} products of {size} x {size}", rate / 1e12, "TFLOP/s")
        best = max(best, rate)
        del left, right, out
        lab.tidy()
    count = 1 << (30 if lab.on_gpu else 24)
    source = torch.ones(count, dtype=torch.uint8, device=lab.device)
    target = torch.empty_like(source)
    bandwidth = 2 * count / lab.time(lambda: target.copy_(source))
    lab.add("ceiling", "copying within the device's memory", bandwidth / 1e9, "GB/s")
    if lab.on_gpu:
        host = torch.ones(count, dtype=torch.uint8, pin_memory=True)
        there = count / lab.time(lambda: target.copy_(host, non_blocking=True))
        back = count / lab.time(lambda: host.copy_(target, non_blocking=True))
        lab.add("ceiling", "pinned host memory to the device", there / 1e9, "GB/s")
        lab.add("ceiling", "device to pinned host memory", back / 1e9, "GB/s")
    return Ceiling(best, bandwidth)


def linear_weights(config: Any) -> int:
    """Weights of the linear layers inside a Llama's decoder."""
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = hidden * (heads + 2 * keys) + heads * hidden
    return config.num_hidden_layers * (attention + 3 * hidden * config.intermediate_size)


def evaluation_work(
    config: Any, windows: int, context: int, batch: int, itemsize: int, heads: int = 1
) -> Work:
    """A pass over windows through a Llama and so many output heads.

    Operations: two per weight and token, and causal attention's 2 x 2 x width x n^2 / 2 per layer
    and window. Bytes: the weights once per batch, and the cached states of each head but the first.
    """
    tokens = windows * context
    head = config.hidden_size * config.vocab_size
    weights = linear_weights(config)
    width = config.num_attention_heads * config.head_dim
    attention = config.num_hidden_layers * windows * 2 * width * context**2
    states = (heads - 1) * tokens * config.hidden_size * itemsize
    return Work(
        flops=2 * tokens * (weights + heads * head) + attention,
        bytes=itemsize * (weights + heads * head) * -(-windows // batch) + states,
    )


def calibration_work(config: Any, tokens: int, itemsize: int) -> Work:
    """One pass of calibration text through the layers, and the Gram matrices of their inputs.

    The text goes through every layer once; inputs of q, k, v (hidden), o, gate and up (hidden) and
    down (intermediate) are multiplied with themselves. Rounding itself is not counted.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    grams = 2 * tokens * (2 * hidden**2 + heads**2 + inner**2) * config.num_hidden_layers
    weights = linear_weights(config)
    states = 2 * tokens * hidden * itemsize * config.num_hidden_layers
    return Work(2 * tokens * weights + grams, itemsize * weights + states)
