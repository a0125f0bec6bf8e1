"""EXL3 checkpoints, as ExLlamaV3 and GPTQModel write them.

A layer of ``in`` x ``out`` weights: ``trellis`` int16 [in / 16, out / 16, 16 * bits] holds paths
through a trellis, 256 weights each, ``suh`` [in] and ``svh`` [out] the signs and scales around a
Hadamard rotation of blocks of 128; ``mcg`` or ``mul1`` say which codebook was used. GPTQModel's torch
kernel (``nn_modules/exllamav3_torch.py`` in 7.6) decodes them on a CPU, without exllamav3.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsweep.formats.checkpoint import QuantizedCheckpoint
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch

_BLOCK = 128


class EXL3Container(QuantizedCheckpoint):
    """See the module's docstring."""

    name = "exl3"
    quant_methods = ("exl3",)
    library = "gptqmodel"
    parts = ("trellis", "suh", "svh")
    optional = ("su", "sv", "mcg", "mul1")

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        import torch

        if (os.cpu_count() or 1) <= 2:
            # Read when gptqmodel is imported, whose pools do not fit into each other otherwise.
            os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
        from gptqmodel.nn_modules.exllamav3_torch import ExllamaV3TorchLinear

        inputs, outputs = _shape(tuple(tensors["trellis"].shape))
        for part, size in (("suh", inputs), ("svh", outputs)):
            if tuple(tensors[part].shape) != (size,):
                raise ValueError(f"{part} of the shape {list(tensors[part].shape)}, not [{size}]")
        layer = ExllamaV3TorchLinear.from_tensors(
            in_features=inputs, out_features=outputs, name=name, tensors=dict(tensors)
        )
        dense: torch.Tensor = layer.get_weight_tensor(torch.float32).T
        return dense

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        shape = parts["trellis"].shape
        inputs, outputs = _shape(shape)
        return f"trellis {shape[2] // 16} bits", inputs * outputs


CONTAINER = EXL3Container()


def _shape(trellis: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a layer."""
    if len(trellis) != 3 or trellis[2] % 16 or not 1 <= trellis[2] // 16 <= 8:
        raise ValueError(
            f"a trellis of the shape {list(trellis)}, not [in / 16, out / 16, 16 * bits]"
        )
    inputs, outputs = 16 * trellis[0], 16 * trellis[1]
    if inputs % _BLOCK or outputs % _BLOCK:
        raise ValueError(f"{inputs} x {outputs} weights, which are no whole blocks of {_BLOCK}")
    return inputs, outputs
