"""From hidden states to logits, by a model's own forward with its body replaced.

A causal language model is a *body* (embeddings, layers, last norm) and what its forward does with the
body's output: the linear output head, and around it whatever the architecture wants: soft-caps
(Gemma 2), multipliers (Cohere), divisors (Granite), scaled inputs (MiniCPM). Here that forward is run
as it is, on given hidden states instead of a body's, and perhaps with the head cut to a part of the
vocabulary. Whoever uses this checks it once against the model's own logits with :func:`logits_agree`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import QsweepError
from qsweep.evaluate.together import together
from qsweep.models.architecture import empty_model, load_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from qsweep.models.safetensors_header import TensorHeader


# What comes of calling what is no body, or of a head that is not apart from it.
_NO_BODY = (QsweepError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


class CannotSplit(QsweepError):
    """The model's forward cannot be split into a body and a head."""


class OutputHead:
    """All of a model's forward that comes after its body.

    Attributes:
        vocab: Number of logits.
        device: Where the head computes.
        sliceable: Whether :meth:`logits` can compute a part of the vocabulary by itself.
    """

    def __init__(self, model: "PreTrainedModel", body: str):
        """Wrap a model, which stays as it is and is shared, not copied.

        Args:
            model: A causal language model.
            body: The dotted name of its body, one of :func:`possible_bodies`.

        Raises:
            CannotSplit: It has no output head beside its body.
        """
        import torch

        linear = model.get_output_embeddings()
        name = next((n for n, m in model.named_children() if m is linear), None)
        if linear is None or name is None or name == body.partition(".")[0]:
            raise CannotSplit(f"{type(model).__name__}: its output head is not told apart")
        self.vocab = int(linear.weight.shape[0])
        self.device = linear.weight.device
        self.sliceable = type(linear) is torch.nn.Linear and self.device.type != "meta"
        self._given = _body_stub(model.get_submodule(body))
        self._slice = _sliceable_linear(linear) if self.sliceable else None
        self._shell = _with_submodule(model, body, self._given)
        if self._slice is not None:
            self._shell._modules[name] = self._slice

    def logits(self, hidden: "Tensor", start: int = 0, stop: int | None = None) -> "Tensor":
        """Logits of the tokens from ``start`` to ``stop`` as float32: [n, hidden] -> [n, stop-start].

        The forward runs in the dtype of ``hidden``, into which the head's weights are cast.
        """
        import torch

        stop = self.vocab if stop is None else stop
        if self._slice is not None:
            # A head whose weights are fetched when they are used brings the states there itself.
            hidden = hidden.to(self.device)
            self._slice.span = None if (start, stop) == (0, self.vocab) else (start, stop)
        self._given.hidden = hidden[None]
        try:
            ids = hidden.new_zeros((1, len(hidden)), dtype=torch.int64)
            # The class's forward: an instance's may have been bound to the model by accelerate.
            out = type(self._shell).forward(self._shell, input_ids=ids, use_cache=False)
        finally:
            self._given.hidden = None
        logits = out.logits[0]
        return (logits if self._slice is not None else logits[:, start:stop]).float()


class KeptLogits:
    """The stand-in for a model whose forward cannot be split: its features are its logits."""

    sliceable = True

    def __init__(self, vocab: int, device: "torch.device"):
        self.vocab, self.device = vocab, device

    def logits(self, features: "Tensor", start: int = 0, stop: int | None = None) -> "Tensor":
        """A part of the vocabulary as float32: [n, vocab] -> [n, stop-start], always a copy."""
        import torch

        return features[:, start:stop].to(self.device, torch.float32, copy=True)


def split_model(model: "PreTrainedModel", ids: "Tensor") -> tuple[str, OutputHead] | None:
    """Tell a model's body from its head, and check that the two together are the model.

    Args:
        model: A causal language model.
        ids: A few tokens to check on, [1, n].

    Returns:
        The body's name and the head; None where no split gives the model's own logits, as a whole
        and part by part.
    """
    import torch

    bodies = possible_bodies(model)
    # Together, so that a model whose weights are read layer by layer is read once.
    forwards: list[Callable[[], Any]] = [
        partial(_own_logits, model, ids),
        *(partial(_hidden, model, b, ids) for b in bodies),
    ]
    own, *states = together(model, forwards)
    for body, hidden in zip(bodies, states, strict=True):
        if hidden is None:
            continue
        try:
            head = OutputHead(model, body)
            half = head.vocab // 2
            parts = [head.logits(hidden, 0, half), head.logits(hidden, half, head.vocab)]
        except torch.OutOfMemoryError:
            raise  # says nothing of the model, though it is a RuntimeError
        except _NO_BODY:
            continue
        if logits_agree(torch.cat(parts, dim=1), own, hidden.dtype):
            return body, head
    return None


def _own_logits(model: "PreTrainedModel", ids: "Tensor") -> "Tensor":
    return model(input_ids=ids, use_cache=False).logits[0]


def _hidden(model: "PreTrainedModel", body: str, ids: "Tensor") -> "Tensor | None":
    """What a body makes of the ids [1, n], [n, hidden]; None where it is none."""
    import torch

    try:
        return run_body(model, body, ids)[0]
    except torch.OutOfMemoryError:
        raise
    except _NO_BODY:
        return None


def possible_bodies(model: "PreTrainedModel") -> list[str]:
    """Names that the model's body may have; OPT's forward calls a part of what is named its body."""
    prefix = model.base_model_prefix
    if not prefix or model._modules.get(prefix) is None:
        return []
    base = model._modules[prefix]
    assert base is not None
    return [prefix] + ([f"{prefix}.decoder"] if base._modules.get("decoder") is not None else [])


def run_body(model: "PreTrainedModel", body: str, ids: "Tensor") -> "Tensor":
    """The body's output: ids [b, n] -> hidden states [b, n, hidden]."""
    return model.get_submodule(body)(input_ids=ids, use_cache=False)[0]


def logits_agree(logits: "Tensor", own: "Tensor", dtype: "torch.dtype") -> bool:
    """Whether rebuilt logits [n, vocab] are the model's own, up to rounding in its dtype."""
    import torch

    if logits.shape != own.shape or not torch.isfinite(own).all():
        return False
    scale = own.float().abs().max()
    # Products that are summed in another order differ by a few roundings of the largest logit.
    return bool((logits - own.float()).abs().max() <= 8 * torch.finfo(dtype).eps * scale)


def load_output_head(
    source: Path, body: str, dtype: "torch.dtype", device: str, trust_remote_code: bool = False
) -> OutputHead:
    """The output head of a checkpoint, without its body: only the head's weights are read.

    Where their names cannot be matched, the whole model is loaded on the CPU and its body dropped.

    Args:
        source: The checkpoint's directory.
        body: The dotted name of its body.
        dtype: The head's.
        device: Where the head computes.
        trust_remote_code: Whether Python code in ``source`` may run.

    Raises:
        CannotSplit: The model's forward cannot be split.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    model = empty_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
    if not _load_all_but_body(model, source, body, dtype, device):
        model = load_model(source, config, dtype=dtype, trust_remote_code=trust_remote_code)
        model.set_submodule(body, torch.nn.Identity())
        model = model.to(device)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    return OutputHead(model, body)


def head_parameters(model: "PreTrainedModel", body: str) -> list[str] | None:
    """Names of the parameters outside of a body; None where buffers lie there, which no file holds."""

    def outside(names: Iterable[str]) -> list[str]:
        return [name for name in names if not name.startswith(f"{body}.")]

    if outside(name for name, _ in model.named_buffers()):
        return None
    return outside(name for name, _ in model.named_parameters(remove_duplicate=False))


def stored_parameter(
    model: "PreTrainedModel", name: str, tensors: "Mapping[str, TensorHeader]"
) -> tuple[Path, str] | None:
    """Where a parameter lies among a checkpoint's tensors: a file, and a tensor's name in it.

    By its own name, else by that of the one that it is tied to. None where nothing has such a name,
    or what has it is of another shape.
    """
    stored = next(_stored_names(model, name, list(tensors)), None)
    if stored is None or tensors[stored].shape != tuple(model.get_parameter(name).shape):
        return None
    return tensors[stored].file, stored


def _load_all_but_body(
    model: "PreTrainedModel", source: Path, body: str, dtype: "torch.dtype", device: str
) -> bool:
    # Give a model on the meta device the weights of all that is not its body.
    import torch
    from safetensors import safe_open

    from qsweep.models.facts import read_tensors

    if (names := head_parameters(model, body)) is None:
        return False
    tensors = read_tensors(source)
    places = {name: stored_parameter(model, name, tensors) for name in names}
    if None in places.values():
        return False
    for name, place in places.items():
        assert place is not None
        with safe_open(place[0], framework="pt", device="cpu") as file:
            tensor = file.get_tensor(place[1])
        parent, _, leaf = name.rpartition(".")
        value = torch.nn.Parameter(tensor.to(device, dtype), requires_grad=False)
        model.get_submodule(parent)._parameters[leaf] = value
    return True


def _stored_names(model: "PreTrainedModel", name: str, stored: list[str]) -> Iterator[str]:
    tied = (getattr(model, "all_tied_weights_keys", None) or {}).get(name)
    for candidate in (name, name.replace("lm_head", "embed_out"), tied):
        if candidate is None:
            continue
        if candidate in stored:
            yield candidate
        # Older checkpoints of the same model name its parts in another order, or leave "model."
        # out: language_model.model.embed_tokens for model.language_model.embed_tokens.
        ending = "." + ".".join(candidate.split(".")[-2:])
        similar = [s for s in stored if f".{s}".endswith(ending)]
        if len(similar) == 1:
            yield similar[0]


def _with_submodule(model: Any, path: str, replacement: Any) -> Any:
    # A shallow copy of a module in which one descendant is another; the original stays as it is.
    name, _, rest = path.partition(".")
    shell = copy.copy(model)
    child = _with_submodule(model._modules[name], rest, replacement) if rest else replacement
    shell.__dict__["_modules"] = {**model._modules, name: child}
    return shell


def _body_stub(body: Any) -> Any:
    from torch import nn

    class BodyStub(nn.Module):
        """A body whose output is given. Its settings are the real one's, its parts are gone."""

        hidden = None

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return _BodyOutput(self.hidden)

        def __getattr__(self, name: str) -> Any:
            value = getattr(body, name)
            if isinstance(value, nn.Module):
                raise AttributeError(f"{name} is not there: the body is replaced")
            return value

    return BodyStub()


def _sliceable_linear(linear: Any) -> Any:
    from torch import nn
    from torch.nn.functional import linear as apply

    class SliceableLinear(nn.Module):
        """A linear layer of which only the outputs in ``span`` are computed."""

        span: tuple[int, int] | None = None

        def forward(self, hidden: Any) -> Any:
            weight, bias = linear.weight, linear.bias
            if self.span is not None:
                weight = weight[slice(*self.span)]
                bias = None if bias is None else bias[slice(*self.span)]
            bias = None if bias is None else bias.to(hidden.dtype)
            return apply(hidden, weight.to(hidden.dtype), bias)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(linear, name)

    return SliceableLinear()


class _BodyOutput:
    """What a body returns: hidden states first, and None for whatever else is asked."""

    def __init__(self, hidden: Any):
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]
