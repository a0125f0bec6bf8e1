"""What is left of a model once its quantized layers are written."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch

from qsweep.models.experts import ExpertLinear, Part, attached, expert_count, parts_of
from qsweep.models.room import stream_of
from qsweep.quantizers.native.graph import linears_of, tensors_of


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a model: its name, the parameter or buffer that it is a part of, and itself."""

    name: str
    parameter: str
    get: Callable[[], torch.Tensor]


def left_of(
    model: Any, written: Collection[str], merged: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's tensors by name without those that are ``written``, tied weights once.

    Those of a streamed model's layers are read for it, one layer's after the other.

    Args:
        model: The model, with experts attached.
        written: Names of tensors, and parts of stacks by their layers.
        merged: Stacks that the checkpoint does not have as such: they are given one by one, as are
            those of which some experts are written already.
    """
    stream = stream_of(model)
    seen: set[int] = set()

    def layer_of(tensor: _Tensor) -> int | None:
        return None if stream is None else stream.index_of(tensor.parameter)

    for index, group in groupby(_tensors(model, written, merged), key=layer_of):
        if stream is None or index is None:
            for one in group:
                tensor = one.get()
                # A head that shares the embedding's memory comes after it.
                if tensor.data_ptr() not in seen and one.name not in written:
                    yield one.name, tensor
                seen.add(tensor.data_ptr())
        elif left := [one for one in group if one.name not in written]:
            with stream.read(index, {one.parameter for one in left}):
                for one in left:
                    yield one.name, one.get()


def _tensors(
    model: torch.nn.Module, written: Collection[str], merged: Collection[str]
) -> list[_Tensor]:
    """All tensors, of stacks of experts one by one where they are to be given so."""
    found = {
        name: _Tensor(name, name, partial(_tensor_at, model, name)) for name in model.state_dict()
    }
    for name, module in attached(model):
        linears = {f"{name}.{own}": linear for own, linear in linears_of(module).items()}
        tensors = {
            f"{own}.{part}" for own, linear in linears.items() for part in tensors_of(linear)
        }
        stacks = {f"{name}.{part.parameter}" for part in parts_of(module)}
        if tensors.isdisjoint(written) and stacks.isdisjoint(merged):
            continue
        for part in parts_of(module):
            stack = f"{name}.{part.parameter}"
            found.pop(stack, None)
            found.pop(f"{stack}_bias", None)
            count = len(module.get_parameter(part.parameter))
            # LongCat-Flash has first layers of experts that pass a token on, and never uses them.
            for expert in range(expert_count(module), count):
                own = f"{name}.{expert}.{part.name}.weight"
                found[own] = _Tensor(own, stack, partial(_weight_of, module, part, expert))
        for own, linear in linears.items():
            assert isinstance(linear, ExpertLinear)
            for kind in tensors_of(linear):
                stack = f"{name}.{linear.part.parameter}"
                parameter = stack if kind == "weight" else f"{stack}_bias"
                name_of = f"{own}.{kind}"
                found[name_of] = _Tensor(name_of, parameter, partial(_part_of, linear, kind))
    return list(found.values())


def _weight_of(module: torch.nn.Module, part: Part, expert: int) -> torch.Tensor:
    return part.of(module.get_parameter(part.parameter), expert)


def _part_of(linear: torch.nn.Module, kind: str) -> torch.Tensor:
    return tensors_of(linear)[kind]


def _tensor_at(model: torch.nn.Module, name: str) -> torch.Tensor:
    parent, _, own = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(parent), own)
    return found.detach()
