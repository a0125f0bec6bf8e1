"""From an artifact of any format to a dense transformers model: the one engine that measures all.

Packed layers are unpacked while transformers loads them, one by one and on the device where they
will live, so an 8B model never exists twice.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import (
    ArtifactCorrupt,
    IncompatibleTrial,
    QsweepError,
    in_one_line,
)
from qsweep.base.numbers import one_line
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container
from qsweep.formats.restacked import restacked
from qsweep.formats.weights import slices_of
from qsweep.models.architecture import auto_class, empty_model, load_model
from qsweep.models.facts import read_config, read_outline, read_tensors, text_config
from qsweep.models.load_report import report, unmerged

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


# What transformers comes up with over a configuration that makes no sense.
_OF_A_CONFIG = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError),
    *(LookupError, TypeError, ValueError),
)


def load_dense(
    artifact: Artifact,
    source: Path,
    *,
    dtype: "torch.dtype",
    device: str,
    trust_remote_code: bool = False,
    device_map: Any = None,
    stream: bool = False,
) -> "PreTrainedModel":
    """Load an artifact as a dense model: evaluation mode, no gradients, no key-value cache.

    The model's attribute ``left_out`` tells which stored tensors it has no use for; see
    :class:`~qsweep.models.load_report.LoadReport`.

    Args:
        artifact: What a quantizer wrote, or the unquantized model itself.
        source: The directory of the unquantized model, for its configuration.
        dtype: What the weights are held and computed in.
        device: ``cpu`` or ``cuda:N``.
        trust_remote_code: Whether Python code in ``source`` may run.
        device_map: As in transformers, to spread a model over several GPUs; overrides ``device``.
        stream: Read the weights of a decoder layer only while it runs; see
            :mod:`qsweep.models.streaming`. Results are the same, bit by bit.

    Raises:
        CannotStream: Its layers cannot be held one at a time.
        ArtifactCorrupt: Files of a quantized artifact are unreadable, or its weights are not those
            that the architecture has.
        QsweepError: The same of the unquantized model, or transformers does not know it.
    """
    state = container(artifact.format).dense_weights(artifact, source, device)
    places = device_map or {"": device}
    model, info = _load(state, artifact, source, dtype, places, trust_remote_code, stream)
    left_out: Any = _require_fit(artifact, source, model, state, info)
    model.left_out = left_out
    model.eval().requires_grad_(False)
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = False
    if auto_class(model.config.to_dict()) != "AutoModelForCausalLM":
        _require_text_alone(model, source)
    return model


def _load(
    state: Mapping[str, Any] | None,
    artifact: Artifact,
    source: Path,
    dtype: "torch.dtype",
    device_map: Any,
    trust_remote_code: bool,
    stream: bool,
) -> tuple["PreTrainedModel", Mapping[str, Any]]:
    from transformers import AutoConfig

    common: dict[str, Any] = {
        "dtype": dtype,
        "output_loading_info": True,
        # What has another shape is named by us; transformers only says that there is something.
        "ignore_mismatched_sizes": True,
    }
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever validation a configuration has of its own
        raise _not_built(source, error) from error
    _forget_quantization(config)
    try:
        if state is None and not stream:
            loaded: Any = load_model(
                artifact.path,
                config,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                device_map=device_map,
                **common,
            )
            return loaded
        # The automatic class takes no state dict, so ask it which class it would have taken, and
        # with which part of the configuration.
        shell = empty_model(config, trust_remote_code=trust_remote_code)
        if state is None:
            stacked = slices_of(artifact.path)
        else:
            stacked = restacked(state, shell, source, artifact.files)
        if stream:
            from qsweep.models.experts import detach_experts
            from qsweep.models.streaming import load_streamed

            detach_experts(shell)
            shapes = {name: info.shape for name, info in read_outline(source).items()}
            return load_streamed(shell, stacked, shapes, device_map[""], **common)
        loaded = type(shell).from_pretrained(
            None, config=shell.config, state_dict=stacked, device_map=device_map, **common
        )
        return loaded
    except _OF_A_CONFIG as error:
        raise _not_built(source, error) from error
    except RuntimeError as error:
        plain = read_tensors(artifact.path) if state is None else {}
        stored = {name: info.shape for name, info in plain.items()}
        if (problem := unmerged(error, stored)) is None:
            raise
        raise _unfit(artifact, problem) from error


def _forget_quantization(config: Any) -> None:
    # Whose directory describes the model may itself be quantized: here its weights are dense.
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config


def _unfit(artifact: Artifact, problem: str) -> QsweepError:
    kind = ArtifactCorrupt if container(artifact.format).quantized else QsweepError
    return kind(f"{artifact.files}: weights do not fit the model ({problem})")


def _not_built(source: Path, error: Exception) -> QsweepError:
    return QsweepError(f"{source}: transformers cannot build this model ({in_one_line(error)})")


def _require_text_alone(model: "PreTrainedModel", source: Path) -> None:
    import torch

    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # says nothing of the model, though it is a RuntimeError
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise IncompatibleTrial(
            f"{source}: {type(model).__name__} cannot be run on text alone ({one_line(error)})"
        ) from error


def _require_fit(
    artifact: Artifact,
    source: Path,
    model: "PreTrainedModel",
    state: Mapping[str, Any] | None,
    info: Mapping[str, Any],
) -> dict[str, int]:
    # transformers fills up what is missing with random numbers and a warning.
    stored = read_tensors(artifact.path) if state is None else state
    layers = text_config(read_config(source)).get("num_hidden_layers")
    found = report(model, info, stored, layers)
    if found.problem is not None:
        raise _unfit(artifact, found.problem)
    return found.left_out
