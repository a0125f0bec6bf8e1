"""Models that are larger than memory: each decoder layer's weights are there only while it runs.

A streamed model is an ordinary one of transformers, loaded by its own loader, but that the parameters
of its decoder layers lie on the meta device: they have a shape and no content. A layer that is called
reads them first, again by transformers' loader, so that its renaming and stacking of tensors is what it
is for the whole model, and lets go of them afterwards; the layer behind it is read meanwhile. So a
streamed model can be used like any other; who runs many texts holds each layer for all of them
(:meth:`LayerStream.hold`) and reads the model once.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import QsweepError
from qsweep.base.memory import set_malloc, trim_malloc
from qsweep.models.experts import attach_experts, is_experts
from qsweep.models.layer_list import layers_of, require_streamable
from qsweep.models.room import stream_of
from qsweep.models.spelling import targets

# Weights of so many bytes and more are mapped by themselves.
_MAPPED_FROM = 1 << 20
# Told which layer is about to be called, and with what.
Gate = Callable[[int, tuple[Any, ...], Mapping[str, Any]], None]


class LayerStream:
    """The decoder layers of a streamed model, and where their weights come from.

    Attributes:
        paths: The layers' names in the model, in running order.
        layers: Their modules.
        gate: If set, told of every call of a layer before the layer's weights are read; it may switch
            to another greenlet.
    """

    def __init__(self, model: Any, state: Mapping[str, Any], device: str):
        """Take over a model whose layers lie on the meta device.

        Args:
            model: As :func:`load_streamed` makes it.
            state: What gives each tensor of the checkpoint when it is indexed.
            device: Where layers run.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.paths, self.layers = layers_of(model)
        self.gate: Gate | None = None
        self._model, self._state, self._device = model, state, device
        self._mapping: Any = get_model_conversion_mapping(model)
        self._sources: list[dict[str, str]] = [{} for _ in self.layers]
        for source, target in targets(model, state):
            index = self.index_of(target) if target is not None else None
            if index is not None and target is not None:
                self._sources[index][source] = target
        # How many hold each layer, and how many calls of it are under way.
        self._held = [0] * len(self.layers)
        self._called = [0] * len(self.layers)
        self._ahead: dict[int, Future[None]] = {}
        self._pool = ThreadPoolExecutor(1, "layers")
        for index, layer in enumerate(self.layers):
            self._follow(index, layer)

    def index_of(self, name: str) -> int | None:
        """The layer that a parameter or module is part of, by its name in the model; None: none."""
        start = self._prefix
        if not name.startswith(start):
            return None
        return int(name[len(start) :].partition(".")[0])

    @property
    def _prefix(self) -> str:
        return self.paths[0].rpartition(".")[0] + "."

    @contextmanager
    def hold(self, index: int, *, ahead: bool = True) -> Iterator[nn.Module]:
        """Within it a layer's weights are there; ``ahead``: the next one's are read meanwhile.

        Raises:
            QsweepError: Its weights do not fit the model.
        """
        self._take(index, ahead=ahead)
        try:
            yield self.layers[index]
        finally:
            self._give(index)

    @contextmanager
    def read(self, index: int, names: set[str]) -> Iterator[None]:
        """Within it those of a layer's parameters are there that ``names`` says, in the model's words."""
        if self._held[index]:
            yield
            return
        self._forget_others(index)
        self._pool.submit(self._load, index, names).result()
        try:
            yield
        finally:
            _empty(self.layers[index])

    def rest(self) -> None:
        """Let go of what is read ahead."""
        self._forget_others(-1)

    def _take(self, index: int, *, ahead: bool) -> None:
        if self._held[index] == 0:
            self._forget_others(index)
            loading = self._ahead.pop(index, None) or self._pool.submit(self._load, index)
            loading.result()
            following = index + 1
            if ahead and following < len(self.layers) and not self._held[following]:
                self._ahead[following] = self._pool.submit(self._load, following)
        self._held[index] += 1

    def _give(self, index: int) -> None:
        self._held[index] -= 1
        if self._held[index] == 0:
            _empty(self.layers[index])
            # What was computed with it leaves gaps, which from layer to layer become more.
            trim_malloc()

    def _forget_others(self, index: int) -> None:
        for other in [one for one in self._ahead if one != index]:
            # What keeps it from being read is told when it is wanted.
            self._ahead.pop(other).exception()
            _empty(self.layers[other])

    def _load(self, index: int, names: set[str] | None = None) -> None:
        # In a thread of its own also where it is waited for: tensors of inference mode, which belongs
        # to a thread, cannot be used outside of it.
        try:
            self._fill(index, names)
        except BaseException:
            _empty(self.layers[index])
            raise

    def _fill(self, index: int, names: set[str] | None) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        sources = self._sources[index]
        wanted = {
            source: self._state[source]
            for source, target in sources.items()
            if names is None or target in names
        }
        layer = self.layers[index]
        # With a place on disk, though nothing is put there, tensors are read one after another: all
        # at once they would be in memory twice where they are stacked. Stacking takes the
        # stacks' memory three times for a moment: the host has more of it.
        stacks = any(is_experts(module) for module in layer.modules())
        places = {"": "cpu" if stacks else self._device, "nowhere": "disk"}
        config = LoadStateDictConfig(device_map=places, weight_mapping=self._mapping)
        # What it notes on a model concerns the part that it loads: a copy takes that.
        with _quiet(), _mapped_by_themselves():
            info, _ = convert_and_load_state_dict_in_model(copy.copy(self._model), wanted, config)
        layer.requires_grad_(False)
        if names is not None:
            # What becomes of a tensor that is taken apart is found by its first part's name.
            if any(f"{self.paths[index]}.{n}" in names for n in _absent(layer)):
                self._fill(index, None)
            return
        absent = _absent(layer)
        if info.mismatched_keys or info.conversion_errors or absent:
            odd = [str(key[0]) for key in info.mismatched_keys] or [
                *map(str, info.conversion_errors),
                *(f"{self.paths[index]}.{name}" for name in absent),
            ]
            raise QsweepError(f"weights do not fit the model (unreadable: {odd[0]})")
        if stacks:
            layer.to(self._device)

    def _follow(self, index: int, layer: nn.Module) -> None:
        # Plain functions: a copy of the layer, which shares its hooks, shall not copy this.
        def before(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if "forward" in module.__dict__:
                return  # what stands in for a layer needs no weights
            if self.gate is not None:
                self.gate(index, given, named)
            self._take(index, ahead=True)
            self._called[index] += 1

        def after(*_: Any) -> None:
            # Also where the call failed, perhaps before the weights were there.
            if self._called[index]:
                self._called[index] -= 1
                self._give(index)

        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after, always_call=True)


@contextmanager
def holding(model: Any, index: int, *, ahead: bool = True) -> Iterator[None]:
    """Within it the weights of a decoder layer are there, as those of a whole model always are.

    ``ahead``: the next one's are read meanwhile.
    """
    stream = stream_of(model)
    if stream is None:
        yield
        return
    with stream.hold(index, ahead=ahead):
        yield


@contextmanager
def holding_part(model: Any, name: str) -> Iterator[None]:
    """The same of the decoder layer that a module is a part of, if it is, by its name in the model."""
    stream = stream_of(model)
    index = None if stream is None else stream.index_of(name)
    if index is None:
        yield
        return
    with holding(model, index):
        yield


def load_streamed(
    shell: Any,
    state: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    device: str,
    **options: Any,
) -> tuple[Any, Mapping[str, Any]]:
    """Load a model without its decoder layers' weights, and let these be read when they run.

    Args:
        shell: The model on the meta device.
        state: What gives each tensor when it is indexed, by the checkpoint's names.
        shapes: Of the checkpoint's tensors. One that it does not have has its parameter's.
        device: ``cpu`` or ``cuda:N``.
        options: Further ones for ``from_pretrained``, such as ``dtype``.

    Returns:
        The model, whose ``layer_stream`` is a :class:`LayerStream`, and transformers' report on the
        loading, of the names in layers, too.

    Raises:
        CannotStream: Its layers cannot be held one at a time.
    """
    require_streamable(shell)
    paths, _ = layers_of(shell)
    prefix = paths[0].rpartition(".")[0] + "."
    parameters = {name: tuple(p.shape) for name, p in shell.named_parameters()}
    given: dict[str, Any] = dict(state)
    for source, target in targets(shell, state):
        if target is not None and target in parameters and target.startswith(prefix):
            own = getattr(state[source], "get_shape", None)
            shape = own() if own else shapes.get(source, parameters[target])
            given[source] = _Absent(tuple(shape))
    with _quiet():
        loaded, info = type(shell).from_pretrained(
            None, config=shell.config, state_dict=given, device_map={"": device}, **options
        )
    loaded.layer_stream = LayerStream(loaded, state, device)
    return loaded, info


def attach_experts_of(model: Any) -> None:
    """:func:`~qsweep.models.experts.attach_experts`, which looks at weights of a first layer."""
    stream = stream_of(model)
    if stream is not None:
        for index, layer in enumerate(stream.layers):
            if any(is_experts(module) for module in layer.modules()):
                with stream.hold(index, ahead=False):
                    attach_experts(model)
                return
    attach_experts(model)


class _Absent:
    """Stands for a tensor that is not read: transformers moves it to a place, and it has none."""

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape

    def __getitem__(self, index: Any) -> "_Absent":
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(self._shape, dtype=dtype, device="meta")


def _absent(layer: nn.Module) -> list[str]:
    return [name for name, parameter in layer.named_parameters() if parameter.is_meta]


def _empty(layer: nn.Module) -> None:
    """Let go of a layer's weights."""
    for module in layer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                nothing = torch.empty_like(parameter, device="meta")
                module._parameters[name] = nn.Parameter(nothing, requires_grad=False)


@contextmanager
def _mapped_by_themselves() -> Iterator[None]:
    """What is made within goes back to the system when it is freed, and leaves no gaps.

    Only that: for what is computed meanwhile to be got from the system each time would be slow.
    """
    set_malloc(mapped_from=_MAPPED_FROM, kept=64 << 20)
    try:
        yield
    finally:
        set_malloc(mapped_from=32 << 20, kept=64 << 20)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar, which would show a layer's loading each time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
