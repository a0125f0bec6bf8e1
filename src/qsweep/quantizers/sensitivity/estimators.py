"""From a layer's weight error to the divergence that it causes: pure functions of matrices.

Each takes ``error`` [out, in], what a candidate's weight is more than the model's; ``inputs``
[positions, in]; ``gradients`` [positions, out] of drawn tokens' summed log-probabilities to the layer's
outputs; and ``tokens``, how many tokens of a text these positions are of. KL divergence between a
model and one close to it is half the squared distance in Fisher's metric (Martens, JMLR 21, 2020,
section 5); what differs is how much of that metric is kept.
"""

from collections.abc import Callable, Mapping

import torch

Estimator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], float]


def fisher(
    error: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor, tokens: int
) -> float:
    """Nats per token: ½ mean (g · ΔW x)², position by position.

    It keeps all of the metric but what errors at different positions have to do with each other.
    """
    # The product is the same from either side: the cheaper one is that with fewer columns.
    if error.shape[0] <= error.shape[1]:
        felt = ((inputs @ error.T) * gradients).sum(1)
    else:
        felt = ((gradients @ error) * inputs).sum(1)
    return half_mean_square(felt, tokens)


def half_mean_square(felt: torch.Tensor, tokens: int) -> float:
    """½ Σ felt² / tokens, of directional derivatives [positions]."""
    return float(felt.double().square().sum()) / 2 / tokens


def gram(error: torch.Tensor, inputs: torch.Tensor, _: torch.Tensor, tokens: int) -> float:
    """Mean squared error of the outputs, |ΔW x|²: what GPTQ minimizes. It knows nothing of gradients."""
    return float((inputs @ error.T).double().square().sum()) / tokens


def diagonal(
    error: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor, tokens: int
) -> float:
    """Nats per token: ½ Σ_i mean(g_i²) mean((ΔW x)_i²), each output by itself."""
    outputs = (inputs @ error.T).double().square().sum(0)
    felt = gradients.double().square().sum(0)
    return float((outputs * felt).sum()) / 2 / tokens / max(len(inputs), 1)


def kronecker(
    error: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor, tokens: int
) -> float:
    """Nats per token: ½ tr(B ΔW A ΔWᵀ), A and B the mean products of inputs and of gradients.

    Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature",
    ICML 2015: inputs and gradients count as independent.
    """
    outputs = inputs @ error.T
    product = (outputs.T @ outputs) * (gradients.T @ gradients)
    return float(product.double().sum()) / 2 / tokens / max(len(inputs), 1)


ESTIMATORS: Mapping[str, Estimator] = {
    "fisher": fisher,
    "diagonal": diagonal,
    "kronecker": kronecker,
    "gram": gram,
}
