"""What the model's output feels of every linear layer: one walk backwards through the model.

For each position of a text one next token is drawn from the unquantized model's own distribution, and
the sum of their log-probabilities is differentiated. The mean of (gradient)(gradient)^T over such
draws is the Fisher information, which is the Hessian of the KL divergence from the unquantized model
(Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020, section 5).

Autograd's graph of one decoder layer at a time is held: the text goes forward through all of them
first, of which the hidden states between them are kept on the host; then each layer, the last one first,
runs once more with gradients on. Where layers one by one are not the model, it runs as a whole.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from qsweep.base.progress import Progress, silent
from qsweep.models.experts import experts_in_turn
from qsweep.quantizers.native.capture import by_length, capture, captured, modules_outside
from qsweep.quantizers.native.drawing import Draws, backward_from, head_gradients, own_logits
from qsweep.quantizers.native.graph import Decoder, linears_of, whole_model
from qsweep.quantizers.native.layers import Chunk, call_layer, run_layer
from qsweep.quantizers.native.memory import budget
from qsweep.quantizers.native.seen import (
    Kind,
    Parts,
    Seen,
    bytes_of,
    seen_in,
    watching,
    with_gradients,
)

# How many times the memory of a forward autograd's graph of it takes.
_GRAPH = 4


def gradients(
    network: nn.Module,
    samples: Sequence[Sequence[int]],
    device: str,
    linears: Collection[str] = (),
    *,
    seed: int = 0,
    ends: Collection[Kind] = (),
    progress: Progress = silent,
) -> Iterator[list[Seen]]:
    """Walk backwards through a model over a text.

    Args:
        network: A causal language model on the CPU, with experts attached, without gradients.
        samples: Token ids.
        device: Where layers run.
        linears: Names of linear layers that should be met.
        seed: Of the drawn tokens. The same seed gives the same tokens, whatever runs together.
        ends: Whether the output head and the input embeddings are wanted, too.
        progress: Is told how far it is.

    Yields:
        Layers that are at hand together, the output's first; each layer once. They are let go of
        when the next ones are asked for.

    Raises:
        IncompatibleTrial: see :func:`~qsweep.quantizers.native.capture.capture`.
    """
    progress("embed", None)
    decoder, chunks, probe = capture(network, samples, device, linears, _GRAPH)
    ids = list(_ids_of(samples, chunks))
    if not decoder.is_whole and not _ends_fit(network, decoder, probe.hidden.shape[1], samples):
        decoder = whole_model(network)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {"use_cache": False})]
        chunks = [Chunk(part, calls) for part in ids]
    walk = _Walk(network, decoder, chunks, ids, Draws(ids, seed), device, frozenset(ends), progress)
    yield from walk.whole() if decoder.is_whole else walk.layers()


def _ids_of(samples: Sequence[Sequence[int]], chunks: Sequence[Chunk]) -> Iterator[torch.Tensor]:
    rows = iter([row for ids in by_length(samples) for row in ids])
    for chunk in chunks:
        yield torch.stack([next(rows) for _ in range(len(chunk.hidden))])


def _ends_fit(
    network: nn.Module, decoder: Decoder, tokens: int, samples: Sequence[Sequence[int]]
) -> bool:
    """Whether the model makes of its last layer's hidden states what it makes of them in a run."""
    ids = torch.tensor([list(samples[0])[:tokens]])
    given: Any = network
    # On the CPU, where all of the model is.
    chunk = captured(getattr(network, "base_model", network), decoder, ids)
    if chunk is None:
        return False
    with torch.no_grad():
        expected = given(input_ids=ids, use_cache=False).logits
        for index, layer in enumerate(decoder.layers):
            chunk = replace(chunk, hidden=run_layer(layer, chunk, index).to("cpu"))
        found = own_logits(network, decoder, ids, chunk.hidden)
    if found is None or found.shape != expected.shape:
        return False
    close = 1e-3 if expected.dtype == torch.float32 else 5e-2
    first, second = (value.float().nan_to_num(0.0, 0.0, 0.0) for value in (found, expected))
    return bool((first - second).norm() <= close * second.norm())


@dataclass
class _Walk:
    network: Any
    decoder: Decoder
    chunks: list[Chunk]
    ids: list[torch.Tensor]
    draws: Draws
    device: str
    ends: frozenset[Kind]
    progress: Progress
    # Of the hidden states at hand, by chunk, on the host.
    felt: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of the text."""
        return sum(part.numel() for part in self.ids)

    def layers(self) -> Iterator[list[Seen]]:
        """Forward through all decoder layers, then backwards through one after another."""
        count = len(self.decoder.layers)
        states = self._forward()
        with self._outside_on_device():
            yield from self._head(states[count])
        for index in reversed(range(count)):
            self.progress("sensitivities", 1 - (index + 1) / count)
            del states[index + 1]
            module = self.decoder.layers[index].to(self.device)
            yield from self._layer(index, module, states[index])
            module.to("cpu")
        if "embedding" in self.ends:
            with self._outside_on_device():
                yield from self._embeddings()

    def whole(self) -> Iterator[list[Seen]]:
        """All of the model at once, chunk after chunk."""
        self.network.to(self.device)
        head, embedding = self._end_modules()
        watched = {
            name: module
            for name, module in linears_of(self.network).items()
            if module is not head and module is not embedding
        }
        kinds: dict[str, Kind] = dict.fromkeys(watched, "linear")
        for kind, module in (("head", head), ("embedding", embedding)):
            if kind in self.ends and module is not None:
                name = self._name_of(module)
                watched[name], kinds[name] = module, kind  # type: ignore[assignment]
        runs = [lambda n=n: self._run_whole(n) for n in range(len(self.chunks))]
        yield from self._gathered(self.network, watched, kinds, runs, "")
        self.network.to("cpu")

    def _run_whole(self, number: int) -> None:
        # Embeddings are no leaf that anything is asked of, unless somebody looks at them.
        embedding = self.network.get_input_embeddings()
        handle = embedding.register_forward_hook(with_gradients)
        try:
            with torch.enable_grad():
                ids = self.ids[number].to(self.device)
                logits = self.network(input_ids=ids, use_cache=False).logits
                self.draws.score(number, slice(None), logits).backward()
        finally:
            handle.remove()

    def _forward(self) -> dict[int, list[torch.Tensor]]:
        """By layer the hidden states [samples, tokens, width] that enter it, of each chunk."""
        chunks, count = self.chunks, len(self.decoder.layers)
        states = {0: [chunk.hidden for chunk in chunks]}
        for index, layer in enumerate(self.decoder.layers):
            self.progress("forward", index / count)
            layer.to(self.device)
            chunks = [
                replace(chunk, hidden=run_layer(layer, chunk, index).to("cpu")) for chunk in chunks
            ]
            layer.to("cpu")
            states[index + 1] = [chunk.hidden for chunk in chunks]
        return states

    def _head(self, states: Sequence[torch.Tensor]) -> Iterator[list[Seen]]:
        head, _ = self._end_modules()
        wanted = "head" in self.ends and head is not None
        parts: Parts = []
        seen = 0
        # Gradients have as many columns as the vocabulary: as many as there is room for.
        room = budget(torch.device(self.device))
        vocabulary = self.network.config.get_text_config().vocab_size
        for number, ids in enumerate(self.ids):
            found = []
            for rows in self.draws.pieces(ids, room, vocabulary):
                look = wanted and sum(g.nbytes for _, g in parts) < room
                with watching({"": head} if look else {}, {"": parts}):
                    hidden = states[number][rows].to(self.device)
                    found.append(
                        head_gradients(
                            self.network, self.decoder, self.draws, number, rows, ids, hidden
                        )
                    )
                seen += ids[rows].numel() if look else 0
            self.felt[number] = torch.cat(found)
        if parts:
            name = self._name_of(head)
            yield [seen_in(name, head, "head", parts, seen)]

    def _layer(
        self, index: int, module: nn.Module, states: Sequence[torch.Tensor]
    ) -> Iterator[list[Seen]]:
        watched = linears_of(module)
        after = dict(self.felt)

        def run(number: int) -> None:
            leaf = states[number].to(self.device).detach().requires_grad_()
            with torch.enable_grad():
                # A copy, since some layers add to what they are given.
                output = call_layer(module, leaf.clone(), self.chunks[number], index)
                output.backward(after[number].to(output))
            assert leaf.grad is not None
            self.felt[number] = leaf.grad.to("cpu")

        runs = [lambda n=n: run(n) for n in range(len(self.chunks))]
        if not watched:
            for one in runs:
                one()
            return
        prefix = self.decoder.full_name(index, "")
        kinds: dict[str, Kind] = dict.fromkeys(watched, "linear")
        yield from self._gathered(module, watched, kinds, runs, prefix)

    def _embeddings(self) -> Iterator[list[Seen]]:
        _, embedding = self._end_modules()
        if embedding is None:
            return
        parts: Parts = []
        with watching({"": embedding}, {"": parts}):
            for number, ids in enumerate(self.ids):
                with torch.enable_grad():
                    backward_from(
                        self.network, self.decoder, ids.to(self.device), self.felt[number]
                    )
        if parts:
            name = self._name_of(embedding)
            yield [seen_in(name, embedding, "embedding", parts, self.tokens)]

    def _gathered(
        self,
        module: nn.Module,
        watched: dict[str, nn.Module],
        kinds: dict[str, Kind],
        runs: Sequence[Callable[[], None]],
        prefix: str,
    ) -> Iterator[list[Seen]]:
        """Layers below ``module``, as many at a time as there is room for what they see."""
        parts: dict[str, Parts] = {name: [] for name in watched}
        room = budget(torch.device(self.device))
        fits = True
        with experts_in_turn(module), watching(watched, parts, module):
            for run in runs:
                run()
                fits = len(watched) == 1 or bytes_of(parts) <= room
                if not fits:
                    break
        if fits:
            yield [
                seen_in(prefix + name, watched[name], kinds[name], found, self.tokens)
                for name, found in parts.items()
                if found
            ]
            return
        del parts
        names = list(watched)
        for some in (names[: len(names) // 2], names[len(names) // 2 :]):
            yield from self._gathered(
                module, {name: watched[name] for name in some}, kinds, runs, prefix
            )

    def _end_modules(self) -> tuple[Any, Any]:
        return self.network.get_output_embeddings(), self.network.get_input_embeddings()

    def _name_of(self, module: nn.Module) -> str:
        return next(name for name, other in self.network.named_modules() if other is module)

    @contextmanager
    def _outside_on_device(self) -> Iterator[None]:
        outside = list(modules_outside(self.network, self.decoder.layers))
        for module in outside:
            module.to(self.device)
        try:
            yield
        finally:
            for module in outside:
                module.to("cpu")
