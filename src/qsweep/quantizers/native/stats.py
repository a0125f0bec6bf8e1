"""Statistics of what goes into linear layers: all that GPTQ, AWQ and importance matrices need."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from qsweep.base.errors import TrialFailed
from qsweep.quantizers.native.precision import multiplies_bfloat16

# Tokens per matrix product, on a GPU and on a CPU, where what is made of them stays in the cache:
# bounds the float32 copy, and fixes the order of summation.
_CHUNK, _CPU_CHUNK = 16384, 2048
# A symmetric matrix is worked on in as many strips, each from its diagonal on, which is 9/16 of the
# arithmetic, unless they would be too narrow for a fast matrix product.
_STRIPS = 8
_NARROWEST = 192


@dataclass
class InputStats:
    """Sums over the tokens that went into a linear layer of ``channels`` inputs.

    Attributes:
        name: The layer, for messages.
        products: Whether the Gram matrix is gathered.
        channels: Whether each channel's magnitude and importance are.
        ranges: Whether each channel's largest magnitude is.
        gram: X^T X / tokens once :meth:`finish` ran, float32 [channels, channels].
        magnitude: Mean absolute value of each channel, float32 [channels].
        importance: Mean square of each channel, the Gram matrix's diagonal, float32 [channels]. It
            is summed by itself, to be the same bits where no Gram matrix is gathered.
        cross: P^T X / tokens, where P is what the same tokens are in the unquantized model,
            float32 [channels, channels]; None if that was not told.
        largest: Largest magnitude of each channel, float32 [channels].
        tokens: How many tokens were seen.
        routed: Of an expert, how many tokens are sent to it; None of other layers.
        narrow: Whether inputs came in float16, which ends at 65504.
    """

    name: str
    products: bool = True
    channels: bool = True
    ranges: bool = False
    gram: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    magnitude: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    importance: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    cross: torch.Tensor | None = None
    largest: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: int = 0
    routed: int | None = None
    narrow: bool = False

    @property
    def extreme(self) -> torch.Tensor | None:
        """The largest magnitude of all, float32 []; None where it was not looked for."""
        return self.largest.amax() if self.ranges else None

    def scaled_extreme(self, scales: torch.Tensor) -> torch.Tensor | None:
        """The same of inputs that are divided by ``scales`` [channels]."""
        return (self.largest / scales).amax() if self.ranges else None

    @property
    def doubt(self) -> float:
        """How much of the mean diagonal an expert's Gram matrix is to be damped by, for few tokens.

        It is channels / tokens, by which the eigenvalues of n tokens' Gram matrix are off; 0 of layers
        that see all of the text. What that is worth is in docs/parity.md.
        """
        return 0.0 if self.routed is None else len(self.gram) / max(self.tokens, 1)

    @property
    def damped(self) -> torch.Tensor:
        """The Gram matrix with that share of its mean diagonal added: a copy, where it is not 0."""
        if not self.doubt:
            return self.gram
        share = self.doubt * self.gram.diagonal().mean()
        return self.gram + share * torch.eye(len(self.gram), device=self.gram.device)

    def add(
        self,
        inputs: torch.Tensor,
        plain: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        routed: int | None = None,
    ) -> None:
        """Take in activations [..., channels] of any floating dtype.

        Low-precision inputs on CUDA are multiplied as they are, with float32 sums.

        Args:
            inputs: What goes into the layer.
            plain: What would go into it if nothing was quantized, of the same shape and dtype.
            weights: What the layer's outputs are multiplied by for each token, as are errors of
                theirs [tokens]: products are of inputs that are multiplied by them.
            routed: How many of the tokens are sent to the expert; None where it is none.
        """
        inputs = inputs.detach().reshape(-1, inputs.shape[-1])
        if not self.tokens:
            self._start(inputs.shape[1], inputs.device)
            self.narrow = inputs.dtype == torch.float16
        if plain is not None:
            beside = plain.reshape(inputs.shape).to(inputs.device)
            self._add_cross(_weighted(beside, weights), _weighted(inputs, weights))
        half = _multiplied_as_it_is(inputs)
        at_once = _at_once(inputs)
        for start in range(0, len(inputs), at_once):
            chunk = inputs[start : start + at_once]
            if not half:
                chunk = chunk.to(torch.float32)
            if self.products:
                own = None if weights is None else weights[start : start + at_once]
                self._add_products(_weighted(chunk, own), half)
            if self.channels:
                self._add_channels(chunk, half)
            if self.ranges:
                torch.maximum(self.largest, chunk.abs().amax(0).float(), out=self.largest)
        self.tokens += inputs.shape[0]
        if routed is not None:
            self.routed = (self.routed or 0) + routed

    def _start(self, channels: int, device: torch.device) -> None:
        if self.products:
            self.gram = torch.zeros(channels, channels, device=device)
        if self.channels:
            self.magnitude = torch.zeros(channels, device=device)
            self.importance = torch.zeros(channels, device=device)
        if self.ranges:
            self.largest = torch.zeros(channels, device=device)

    def _add_products(self, chunk: torch.Tensor, half: bool) -> None:
        for start, end in _strips(chunk.shape[1]):
            strip, rest = chunk[:, start:end].T, chunk[:, start:]
            into = self.gram[start:end, start:]
            if half:
                into += torch.mm(strip, rest, out_dtype=torch.float32)
            else:
                into.addmm_(strip, rest)

    def _add_channels(self, chunk: torch.Tensor, half: bool) -> None:
        self.magnitude += chunk.abs().sum(0, dtype=torch.float32)
        if half:
            # Without a float32 copy.
            norms = torch.linalg.vector_norm(chunk, dim=0, dtype=torch.float32)
            self.importance += norms.square()
        else:
            self.importance += chunk.square().sum(0)

    def _add_cross(self, plain: torch.Tensor, inputs: torch.Tensor) -> None:
        assert self.products
        if self.cross is None:
            self.cross = torch.zeros_like(self.gram)
        tokens = _at_once(inputs)
        for before, after in zip(plain.split(tokens), inputs.split(tokens), strict=True):
            if _multiplied_as_it_is(inputs):
                self.cross += torch.mm(before.T, after, out_dtype=torch.float32)
            else:
                self.cross.addmm_(before.to(torch.float32).T, after.to(torch.float32))

    def finish(self) -> "InputStats":
        """Turn sums into means.

        Raises:
            TrialFailed: an input was not finite; the message names the layer.
        """
        # No token at all is sent to some experts.
        tokens = max(self.tokens, 1)
        if self.products:
            self.gram.triu_().div_(tokens)
            self.gram += self.gram.triu(1).T
        if self.channels:
            self.magnitude /= tokens
            self.importance /= tokens
        if self.cross is not None:
            self.cross /= tokens
        # They are not finite as soon as one activation is not.
        squares = self.gram.diagonal() if self.products else self.importance
        squares = self.largest if not (self.products or self.channels) else squares
        if not bool(squares.isfinite().all()):
            # On a CPU no model computes in float16.
            advice = (
                "device=cpu computes in float32" if self.narrow else "look at the weights before it"
            )
            raise TrialFailed(
                f"{self.name}: its inputs are not finite (NaN or infinite activations) on the "
                f"calibration text; {advice}"
            )
        return self


def lend_ranges(stats: Sequence[InputStats]) -> None:
    """Let experts that saw no token reach as far as those beside them.

    A static scale that is made of nothing would cut off whatever is sent to them after all.

    Args:
        stats: Of layers that are the same in each expert.
    """
    seen = [one for one in stats if one.ranges and one.tokens]
    for one in stats:
        if seen and one.ranges and not one.tokens:
            one.largest = torch.stack([other.largest for other in seen]).amax(0)


def shared_products(stats: Sequence[InputStats]) -> list[InputStats]:
    """The same, of experts that saw no token the mean of what goes into those beside them.

    Args:
        stats: Of layers that run side by side, with products.
    """
    seen = [one for one in stats if one.tokens]
    if not seen or len(seen) == len(stats):
        return list(stats)
    total = sum(one.tokens for one in seen)

    def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
        found = torch.zeros_like(values[0])
        for one, value in zip(seen, values, strict=True):
            found.add_(value, alpha=one.tokens / total)
        return found

    gram = mean([one.gram for one in seen])
    magnitude = mean([one.magnitude for one in seen])
    return [
        one
        if one.tokens
        else replace(one, gram=gram, magnitude=magnitude, cross=None, tokens=total)
        for one in stats
    ]


def output_loss(error: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Mean square error of each output, diag(E H E^T).

    Args:
        error: E, errors of the weights, float32 [rows, channels].
        gram: H, symmetric, [channels, channels]. Products are computed in its dtype.

    Returns:
        float32 [rows].
    """
    total = torch.zeros(len(error), device=error.device)
    multiplied = error.to(gram.dtype)
    for start, end in _strips(error.shape[1]):
        product = multiplied[:, start:end] @ gram[start:end, start:]
        # What lies right of the diagonal block stands for its mirror image, too.
        product[:, end - start :] *= 2
        total += (product * error[:, start:]).sum(1)
    return total


def quick_output_loss(gram: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """:func:`output_loss` for many errors and one Gram matrix, in bfloat16 where that is fast.

    ``gram`` is H [channels, channels]; what is returned takes E [rows, channels] and gives [rows].

    Often one direction outweighs all others, since inputs have a mean or few tokens are huge. Errors
    that avoid it have a small loss, which the rounding of that direction would drown. So it is taken
    out: with h the row of H that belongs to the strongest channel, u = h / |h| and a = u^T H u, the
    loss is a (E u)^2 + diag(E (H - a u u^T) E^T), and only the latter is rounded. On SmolLM2-135M
    sums over rows are then right to 0.2 %, single rows to 2 % (5 % and 60 % if all is rounded).
    """
    if not multiplies_bfloat16(gram.device.type):
        return lambda error: output_loss(error, gram)
    strongest = gram[gram.diagonal().argmax()]
    direction = strongest / strongest.norm().clamp(min=1e-30)
    weight = direction @ (gram @ direction)
    rest = (gram - weight * torch.outer(direction, direction)).bfloat16()
    return lambda error: output_loss(error, rest) + weight * (error @ direction).square()


def _strips(channels: int) -> Iterator[tuple[int, int]]:
    width = max(-(-channels // _STRIPS), _NARROWEST)
    return ((start, min(start + width, channels)) for start in range(0, channels, width))


def _weighted(inputs: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return inputs if weights is None else inputs * weights[:, None].to(inputs)


def _at_once(inputs: torch.Tensor) -> int:
    return _CHUNK if inputs.is_cuda else _CPU_CHUNK


def _multiplied_as_it_is(inputs: torch.Tensor) -> bool:
    return inputs.is_cuda and inputs.dtype in (torch.bfloat16, torch.float16)
