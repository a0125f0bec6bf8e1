"""Whether the checkpoint of another maker is one of a model, from configuration and headers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.formats.belonging.configs import compare_configs
from qsweep.formats.belonging.difference import Difference, as_notes
from qsweep.formats.belonging.tensors import (
    compare_content,
    compare_heads,
    compare_shapes,
    content_notes,
)
from qsweep.formats.belonging.tokenizers import compare_tokenizers
from qsweep.formats.stored import StoredTensor
from qsweep.formats.weights import find_settings, stored_headers
from qsweep.models.facts import TensorHeader, is_partial, read_config, read_outline, read_tensors

# Of a fine-tune every tensor differs, and a record need not name them all.
_LISTED = 50


def checkpoint_differences(
    path: Path, base: Path, stored: Sequence[StoredTensor], *, quantized: bool
) -> list[Difference]:
    """In what a checkpoint is not one of the model's, first things first.

    A fine-tune or a merge that is not quantized has a tokenizer and a chat template of its own by
    right, so they are only noted. Its sizes and its function must be the model's, which it is
    loaded as.

    Args:
        path: The checkpoint's directory.
        base: The unquantized model's.
        stored: How it stores each tensor.
        quantized: Whether its weights are codes.

    Raises:
        ArtifactCorrupt: Its files cannot be read.
        ConfigError: Its configuration cannot be read.
    """
    config = read_config(path)
    found = compare_configs(config, read_config(base))
    tokenizers = compare_tokenizers(path, base)
    headers, own = model_headers(base), stored_headers(path)
    found += compare_shapes(stored, own, _outline(base)) + compare_heads(stored, own, headers)
    return found + (tokenizers if quantized else as_notes(tokenizers))


def checkpoint_belonging(
    path: Path, base: Path, stored: Sequence[StoredTensor], container: str
) -> dict[str, Any]:
    """What a checkpoint has of the model's, for a record: see :func:`compare_content`.

    Also ``notes``, and which of them are ``of_tensors``.
    """
    method = (find_settings(path) or {}).get("quant_method")
    compared = compare_content(stored, stored_headers(path), model_headers(base))
    differing = compared["differing"]
    # Of the few tensors that a reference pack holds nothing follows for the others.
    lines = [] if is_partial(base) else content_notes(compared, container, method)
    # Said apart as well: of codes, a table of tensors tells it with numbers.
    own = {"notes": lines, "of_tensors": [] if container == "hf" else list(lines)}
    return {**compared, "differing": differing[:_LISTED], **own}


def _outline(base: Path) -> Mapping[str, TensorHeader]:
    try:
        return read_outline(base)
    except ConfigError:
        return {}


def model_headers(base: Path) -> Mapping[str, TensorHeader]:
    """The tensors of the unquantized model; none where only a part of it is here."""
    try:
        return read_tensors(base)
    except ConfigError:
        return {}
