"""An importance matrix: how strongly each input channel of each linear layer is driven by a text.

llama.cpp weighs the rounding error of a weight by the mean squared activation that it is multiplied
with; its own tool collects the same (https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix).
A pass of the native backend sees the same inputs, and leaves the matrix in the store.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.errors import IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.native.names import by_checkpoint_name, by_tail, tail
from qsweep.quantizers.protocol import PassResult
from qsweep.text.calibration import CalibrationTokens

if TYPE_CHECKING:
    import torch

# Raised whenever the same model and text give another matrix; of mixtures, which had no experts in it.
_VERSION, _VERSION_OF_MIXTURES = 1, 2
FILE = "importance.safetensors"
# Tokens in one forward pass.
_BATCH_TOKENS = 4096


def version(model: ModelFacts) -> int:
    """The version of a model's matrix: raised whenever the same model and text give another one."""
    return _VERSION_OF_MIXTURES if model.experts else _VERSION


def measure_importance(
    model: SourceModel, calibration: CalibrationTokens, progress: Progress = silent
) -> PassResult:
    """Run the calibration text through a model, to see what goes into its linear layers.

    It is a pass of the native backend without a configuration, so that a pass with some finds the
    same, bit by bit. A model that the backend cannot walk through runs as a whole.

    Raises:
        CannotStream: It would have to be in memory as a whole, and ``model.stream`` insists on layers.
    """
    from qsweep.models.layer_list import CannotStream
    from qsweep.quantizers.native.grid import run

    started = time.perf_counter()
    # Experts are shown all tokens in such a pass alone.
    refusal = () if calibration.all_experts else (IncompatibleTrial,)
    try:
        return run(model, calibration, [], progress, importance=True)
    except CannotStream:
        raise
    except refusal as error:
        if model.stream is True:
            raise CannotStream(f"model.stream=true: {error}; leave model.stream out") from error
    # Not while the error is handled, which holds the model that was loaded.
    matrix = _run_whole(model, calibration, progress)
    return PassResult([], matrix, time.perf_counter() - started)


def save(matrix: "Mapping[str, torch.Tensor]", folder: Path) -> None:
    """Write the matrix, float32 [in_features] of each linear layer, into a folder."""
    from safetensors.torch import save_file

    # Layers that share an input share its values, and a file holds no tensor twice.
    save_file({name: values.clone() for name, values in matrix.items()}, folder / FILE)


def load(folder: Path) -> "dict[str, torch.Tensor]":
    """What :func:`save` wrote: float32 [in_features] of each linear layer, by name."""
    from safetensors.torch import load_file

    return load_file(folder / FILE)


def _run_whole(
    model: SourceModel, calibration: CalibrationTokens, progress: Progress
) -> "dict[str, torch.Tensor]":
    import torch

    from qsweep.quantizers.native.network import load_network
    from qsweep.quantizers.native.stats import InputStats

    network = load_network(model, model.device)
    stats: dict[str, InputStats] = {}
    wanted = by_tail(model.facts.all_linears)
    for name, module in network.named_modules():
        if getattr(module, "weight", None) is not None and tail(name) in wanted:
            one = stats[name] = InputStats(name, products=False)
            module.register_forward_pre_hook(lambda _, inputs, one=one: one.add(inputs[0]))
    batches = _batches(calibration.samples)
    for done, batch in enumerate(batches):
        progress("importance matrix", done / len(batches))
        with torch.no_grad():
            network.base_model(torch.tensor(batch, device=model.device), use_cache=False)
    # Experts that no token was sent to have none.
    found = {name: one.finish().importance.cpu() for name, one in stats.items() if one.tokens}
    return by_checkpoint_name(found, model.facts.all_linears)


def _batches(samples: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Samples of equal length together, so that none is padded."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for sample in samples:
        by_length.setdefault(len(sample), []).append(sample)
    batches = []
    for length, alike in by_length.items():
        size = max(1, _BATCH_TOKENS // max(length, 1))
        batches += [alike[i : i + size] for i in range(0, len(alike), size)]
    return batches
