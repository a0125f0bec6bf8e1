"""Forwards of one model that are taken together, so that weights read layer by layer are read once.

Of a model that is in memory one forward follows the other. Of a streamed one
(:mod:`qsweep.models.streaming`) each runs in a greenlet, which waits whenever it comes to a decoder
layer until the others have come as far; then the layer is read, and all go through it. It is the
model's own code that runs, in the same shapes and the same order of operations: results are those of
one forward after the other, bit by bit, whatever a layer hands on to the next.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from qsweep.base.memory import available_bytes
from qsweep.base.scratch import on_disk
from qsweep.models.room import stream_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from qsweep.models.streaming import LayerStream

Result = TypeVar("Result")

# Share of the free memory that waiting forwards may hold, twice where hidden states are on disk.
_SHARE = 0.25


def together(
    model: "PreTrainedModel",
    forwards: Sequence[Callable[[], Result]],
    advance: Callable[[float], None] = lambda done: None,
    memory: int | None = None,
) -> Iterator[Result]:
    """What each forward returns, in order; of a model in memory each is run when it is asked for.

    What belongs to a thread (gradients on or off, autocast) must be the same inside a forward at
    every decoder layer as it is around the call.

    Args:
        model: The model that is run.
        forwards: Functions that run it.
        advance: Told the share that is done.
        memory: Bytes that waiting forwards of a streamed model may hold; hidden states beyond that
            lie on disk where the model is on the host, and elsewhere their forwards come later, when
            the model is read again. By default a quarter of what is free.
    """
    stream = stream_of(model)
    if stream is None:
        for number, forward in enumerate(forwards):
            yield forward()
            advance((number + 1) / len(forwards))
        return
    stream.gate = _wait
    room = int(_SHARE * _free_bytes(model.device)) if memory is None else memory
    begun = 0
    while begun < len(forwards):
        walkers = _begin(forwards[begun:], room, has_disk=model.device.type == "cpu")
        told = partial(_tell, advance, begun / len(forwards), len(walkers) / len(forwards))
        try:
            yield from _through(stream, walkers, told)
        finally:
            for walker in walkers:
                walker.abandon()
        begun += len(walkers)


class _Walker(greenlet):
    """A forward, which waits before each decoder layer.

    Attributes:
        layer: The one that it waits for; None once it has returned.
        held: Bytes of memory that it holds meanwhile.
    """

    def __init__(self, forward: Callable[[], Any], *, rests_on_disk: bool):
        super().__init__(forward)
        self.gr_context = copy_context()
        self.layer: int | None = None
        self.held = 0
        self._rests_on_disk = rests_on_disk
        self._result: Any = None

    def resume(self) -> None:
        """Until it waits again or returns."""
        self.layer = None
        self._result = self.switch()

    def take(self) -> Any:
        """What it returned, which it forgets."""
        result, self._result = self._result, None
        return result

    def wait(self, index: int, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Let others come as far; called from inside."""
        tensors = list(_tensors([given, named]))
        if self._rests_on_disk and tensors and tensors[0].is_floating_point():
            # In place, whoever else has it: the layer's caller does.
            hidden = tensors.pop(0)
            hidden.set_(on_disk(hidden))  # type: ignore[call-overload]
        self.held = sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values())
        del tensors
        self.layer = index
        self.parent.switch()

    def abandon(self) -> None:
        """Unwind it, where it has not returned."""
        if not self.dead:
            self.throw(GreenletExit)


def _tell(advance: Callable[[float], None], before: float, share: float, done: float) -> None:
    """Tell what is done of all, given that of a share of it."""
    advance(before + share * done)


def _wait(index: int, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    walker = getcurrent()
    if isinstance(walker, _Walker):
        walker.wait(index, given, named)


def _begin(forwards: Sequence[Callable[[], Any]], room: int, *, has_disk: bool) -> list[_Walker]:
    """Take as many forwards to their first layer as there is room for, at least one."""
    walkers: list[_Walker] = []
    held = 0
    for forward in forwards:
        full = held + (walkers[-1].held if walkers else 0) > room
        if walkers and (held > 2 * room or (full and not has_disk)):
            break
        walker = _Walker(forward, rests_on_disk=full)
        walkers.append(walker)
        walker.resume()
        held += walker.held
    return walkers


def _through(
    stream: "LayerStream", walkers: Sequence[_Walker], advance: Callable[[float], None]
) -> Iterator[Any]:
    """Take them through layer after layer; what they return, in order."""
    returned = 0
    while waiting := [walker for walker in walkers if walker.layer is not None]:
        index = min(walker.layer for walker in waiting if walker.layer is not None)
        with stream.hold(index):
            for walker in waiting:
                if walker.layer == index:
                    walker.resume()
                while returned < len(walkers) and walkers[returned].dead:
                    yield walkers[returned].take()
                    returned += 1
        advance((index + 1) / len(stream.layers))
    for walker in walkers[returned:]:
        yield walker.take()


def _tensors(values: Any) -> "Iterator[torch.Tensor]":
    """All tensors in arguments, in order."""
    import torch

    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _free_bytes(device: "torch.device") -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()
