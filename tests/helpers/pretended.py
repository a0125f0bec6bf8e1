"""A device that is none: tensors of the host that say they are on ``cuda:0``, and behave like it.

What holds on a CUDA device is checked at every call from Python: operands of one operation are on one
device, what the host wants to know of a tensor makes it wait, NumPy cannot look into one. All is
computed on the host, so that figures can be compared, and gradients work. What it cannot see: kernels
that lack a dtype, rounding, memory, streams, and what C++ or Triton code does by itself.
"""

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda:0")
_TENSOR = torch.Tensor
# What makes the host wait for the device, or for which sizes must be known.
_WAITS = {
    _TENSOR.item,
    _TENSOR.tolist,
    _TENSOR.__bool__,
    _TENSOR.__int__,
    _TENSOR.__float__,
    _TENSOR.__index__,
    _TENSOR.__contains__,
    _TENSOR.nonzero,
    torch.nonzero,
    _TENSOR.masked_select,
    torch.masked_select,
    _TENSOR.unique,
    torch.unique,
    torch.equal,
    _TENSOR.equal,
    torch.allclose,
    _TENSOR.allclose,
    torch.bincount,
    _TENSOR.bincount,
    torch.argwhere,
    _TENSOR.argwhere,
    torch.is_nonzero,
    _TENSOR.is_nonzero,
    torch.unique_consecutive,
    _TENSOR.unique_consecutive,
    _TENSOR.__complex__,
}
_INDEXING = {_TENSOR.__getitem__, _TENSOR.__setitem__}
_CROSSING = {_TENSOR.copy_, _TENSOR.to, _TENSOR.cpu, _TENSOR.cuda, _TENSOR.type_as}
_NO_CUDA = {_TENSOR.numpy, _TENSOR.__array__}
# What a tensor says of its place.
_WHERE = {
    _TENSOR.device.__get__: CUDA,
    _TENSOR.is_cuda.__get__: True,
    _TENSOR.is_cpu.__get__: False,
}


class OnDevice(torch.Tensor):
    """A tensor of the host's that says it is on the device."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """As on the device."""
        return _call(func, args, kwargs or {})


class TwoDevices(RuntimeError):
    """Operands of one operation are on two devices."""


class Waited(RuntimeError):
    """The host waits for the device where it must not."""


class _Everywhere(TorchFunctionMode):
    """Sees calls that no tensor on the device takes part in, such as those that make one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


_state = SimpleNamespace(waits=Counter(), forbidden=False)


@contextlib.contextmanager
def pretended(monkeypatch) -> Iterator[str]:
    """A device for as long as the block lasts; gives its name."""
    for name, value in {
        "empty_cache": lambda: None,
        "init": lambda: None,
        "synchronize": lambda *_: None,
        "mem_get_info": lambda *_: (8 << 30, 16 << 30),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "get_device_properties": lambda *_: SimpleNamespace(
            total_memory=16 << 30, major=9, minor=0
        ),
        "current_stream": lambda *_: SimpleNamespace(record_event=lambda: _EVENT),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # Modules whose parameters change their class get new ones.
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with _Everywhere():  # which a thread does not inherit
            run(thread)

    monkeypatch.setattr(threading.Thread, "run", run_there)
    _state.waits.clear()
    with _Everywhere():
        yield str(CUDA)


_EVENT = SimpleNamespace(synchronize=lambda: None, query=lambda: True)


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Nothing in the block may make the host wait for the device. Raises Waited."""
    before, _state.forbidden = _state.forbidden, True
    try:
        yield
    finally:
        _state.forbidden = before


def forbid_waiting(forbidden: bool) -> None:
    """From here on the host may not wait for the device, or may."""
    _state.forbidden = forbidden


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    own = any(isinstance(tensor, OnDevice) for tensor in tensors)
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return _property(func, args, own)
    if func is _TENSOR.pin_memory:
        return args[0]  # nothing here to pin memory with
    if func is torch._has_compatible_shallow_copy_type and len({type(t) for t in tensors}) > 1:
        return False
    if func is _TENSOR.__deepcopy__ and own:
        return _copied(*args)
    if func is _TENSOR.register_hook and own:
        args = (args[0], _told_there(args[1]))
    target, args, kwargs = _target(func, args, kwargs, own)
    if own:
        _check(func, name, args, kwargs, tensors, target)
    with torch._C.DisableTorchFunctionSubclass():
        found = _as_cuda_has_it(func)(*args, **kwargs)
    if target is None:
        there = own and not (func in _CROSSING and not isinstance(args[0], OnDevice))
    else:
        there = target.type == "cuda"
    return tree_map(lambda one: _placed(one, there, tensors), found)


def _told_there(hook: Any) -> Any:
    """A hook of autograd's, which calls it with tensors of its own, and with all this switched off."""

    def told(gradient: torch.Tensor) -> Any:
        with torch._C._EnableTorchFunction(), _Everywhere():
            return hook(gradient.as_subclass(OnDevice))

    return told


def _copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    if id(tensor) not in memo:
        copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = copied
    found: torch.Tensor = memo[id(tensor)]
    return found


def _as_cuda_has_it(func: Any) -> Any:
    """An operation with what the host lacks of it."""
    return _HERE.get(func, func)


def _mm(one: torch.Tensor, other: torch.Tensor, *, out_dtype: Any = None) -> torch.Tensor:
    if out_dtype not in (None, one.dtype):
        assert out_dtype == torch.float32 and one.dtype in (torch.bfloat16, torch.float16)
        one, other = one.float(), other.float()
    return torch.mm(one, other)


def _histc(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.histc(values.float(), *args, **kwargs)


_HERE = {torch.mm: _mm, torch.histc: _histc}


def _placed(one: Any, there: bool, given: list[torch.Tensor]) -> Any:
    if not isinstance(one, torch.Tensor):
        return one
    for tensor in given:
        if one is tensor and isinstance(one, OnDevice) == there:
            return one
    if there:
        return one if isinstance(one, OnDevice) else one.as_subclass(OnDevice)
    with torch._C.DisableTorchFunctionSubclass():
        return one.as_subclass(torch.Tensor) if isinstance(one, OnDevice) else one


def _property(func: Any, args: Any, own: bool) -> Any:
    if own and func in _WHERE:
        return _WHERE[func]
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*args)
    return tree_map(lambda one: _placed(one, own, []), found)


def _target(func: Any, args: Any, kwargs: dict[str, Any], own: bool) -> Any:
    """The device that a call names, and the call with the host in its place."""
    target = None

    def here(value: Any) -> Any:
        nonlocal target
        target = torch.device(value)
        return torch.device("cpu") if target.type == "cuda" else target

    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": here(kwargs["device"])}
    elif func is _TENSOR.to and len(args) > 1:
        other = args[1]
        if isinstance(other, torch.Tensor):
            target = CUDA if isinstance(other, OnDevice) else torch.device("cpu")
        elif isinstance(other, (str, torch.device)):
            args = (args[0], here(other), *args[2:])
    elif func is _TENSOR.cpu:
        target = torch.device("cpu")
    return target, args, kwargs


def _check(
    func: Any, name: str, args: Any, kwargs: Any, tensors: list[torch.Tensor], target: Any
) -> None:
    if func in _NO_CUDA:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if func is _TENSOR.copy_:
        to_host = not isinstance(args[0], OnDevice)
    else:
        to_host = func in _CROSSING and target is not None and target.type == "cpu"
    if func in _WAITS or (to_host and not kwargs.get("non_blocking")):
        _wait(name)
    if func in _INDEXING:
        index = [i for i in tree_flatten(args[1])[0] if isinstance(i, torch.Tensor)]
        if any(isinstance(i, OnDevice) and i.dtype in (torch.bool, torch.uint8) for i in index):
            _wait(f"{name} by a mask")
        # Places may be the host's. What is put there by them may not, but by slices it is a copy.
        value = args[2] if index and len(args) > 2 else None
        apart = (
            isinstance(value, torch.Tensor) and value.dim() > 0 and not isinstance(value, OnDevice)
        )
        if not isinstance(args[0], OnDevice) or apart:
            raise TwoDevices(
                f"{name}: indices and values are on the tensor's device, or places on cpu"
            )
        return
    if func is torch.where and len(args) + len(kwargs) == 1:
        _wait(name)
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        _wait(name)
    if func in _CROSSING:
        return
    if any(not isinstance(t, OnDevice) and t.dim() > 0 for t in tensors):
        raise TwoDevices(f"{name}: expected all tensors to be on the same device, cuda:0 and cpu")


def _wait(name: str) -> None:
    _state.waits[f"{_caller()}: {name}"] += 1
    if _state.forbidden:
        raise Waited(f"{name}: the host waits for the device")


def _caller() -> str:
    """The innermost line of qsweep's that is under way, as ``file:line``."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if f"{os.sep}qsweep{os.sep}" in path and "pretended" not in path:
            return f"{path.rpartition(f'{os.sep}qsweep{os.sep}')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
