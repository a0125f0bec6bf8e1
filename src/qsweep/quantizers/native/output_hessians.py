"""What a model's output feels of the outputs of its linear layers, for GPTQ that weighs them by it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qsweep.base.errors import TrialFailed
from qsweep.base.progress import Progress
from qsweep.quantizers.native.gradients import gradients
from qsweep.quantizers.native.limits import COUPLED_OUTPUTS


@dataclass(frozen=True)
class OutputHessian:
    """B = mean g g^T of one layer, g [out] the gradients of log-probabilities of drawn tokens.

    Attributes:
        blocks: Its blocks along the diagonal, float32 [rows, rows] each, on the host: outputs of
            different blocks count as if they had nothing to do with each other.
        positions: How many gradients it is the mean of.
    """

    blocks: list[torch.Tensor]
    positions: int


def output_hessians(
    network: nn.Module,
    samples: Sequence[Sequence[int]],
    device: str,
    linears: Collection[str],
    progress: Progress,
) -> dict[str, OutputHessian]:
    """By linear layer's name in the model what its outputs are felt by, of one walk backwards.

    An expert that no token is sent to has none.

    Args:
        network: The unquantized model, on the host, with experts attached.
        samples: Token ids.
        device: Where layers run.
        linears: Names of the layers that are wanted.
        progress: Is told how far it is.

    Raises:
        TrialFailed: Gradients are not finite; names the layer.
    """
    found: dict[str, OutputHessian] = {}
    wanted = set(linears)
    for together in gradients(network, samples, device, linears, progress=progress):
        for seen in together:
            positions = len(seen.gradients)
            if seen.name not in wanted or not positions:
                continue
            blocks = []
            for felt in seen.gradients.float().split(_sizes(seen.gradients.shape[1]), 1):
                block = (felt.T @ felt) / positions
                if not bool(block.isfinite().all()):
                    raise TrialFailed(
                        f"{seen.name}: what the model's output feels of it is beyond float32; "
                        "quant.gptq_output_hessian=false does without"
                    )
                blocks.append(block.to("cpu"))
            found[seen.name] = OutputHessian(blocks, positions)
    return found


def _sizes(rows: int) -> list[int]:
    count = -(-rows // COUPLED_OUTPUTS)
    return [rows * (n + 1) // count - rows * n // count for n in range(count)]
