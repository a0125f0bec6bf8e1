"""Predict what each layer of each candidate costs: one walk backwards reads the weights of all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import ConfigError, TrialFailed
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.facts import read_tensors
from qsweep.models.source import SourceModel
from qsweep.models.spelling import Spelling, spelling_of
from qsweep.quantizers.native.gradients import Kind, Seen, gradients
from qsweep.quantizers.native.graph import linears_of
from qsweep.quantizers.native.network import load_network, require_finite_layer
from qsweep.quantizers.sensitivity.candidates import Candidate
from qsweep.quantizers.sensitivity.estimators import ESTIMATORS, half_mean_square
from qsweep.text.calibration import CalibrationTokens

Sensitivities = dict[str, float]


def sensitivities(
    model: SourceModel,
    calibration: CalibrationTokens,
    candidates: Mapping[str, Artifact],
    progress: Progress = silent,
    *,
    estimator: str = "fisher",
    seed: int = 0,
    look: Callable[[Seen], None] | None = None,
) -> dict[str, Sensitivities]:
    """The KL divergence that each layer of each candidate would cause by itself, predicted.

    Args:
        model: The unquantized model.
        calibration: The text that it reads.
        candidates: Artifacts of it, by any name.
        progress: Is told how far it is.
        estimator: A name of :data:`~qsweep.quantizers.sensitivity.estimators.ESTIMATORS`, for linear
            layers; head and embeddings always take ``fisher``.
        seed: Of the tokens that are drawn from the model's predictions.
        look: Is shown each layer that is met, before its candidates are: with it somebody else may
            gather what the output feels of the layer, such as Σ g gᵀ.

    Returns:
        By candidate, and by layer as the checkpoint calls it: nats per token. All of
        ``model.facts.linears`` that run as linear layers are there, and of other layers (routers,
        the output head, input embeddings) those that the candidate changes. Embeddings that are the
        head, too, count as both. An expert's layer counts for those tokens alone that are sent to it.

    Raises:
        ConfigError: There is no text.
        IncompatibleTrial: transformers cannot run the model, or a candidate's layers cannot be
            swapped one by one (:class:`~qsweep.quantizers.sensitivity.candidates.Candidate`).
        ArtifactCorrupt: A candidate is damaged.
        TrialFailed: Some weight of the model is not finite, or what comes of it.
    """
    if not calibration.samples:
        raise ConfigError("sensitivities need calibration text; choose one with calibration=NAME")
    progress("load", None)
    network = load_network(model)
    spelling = spelling_of(network, read_tensors(model.path))
    require_finite_layer(network, str, spelling)
    read = {key: Candidate(one, model, spelling) for key, one in candidates.items()}
    wanted = [
        name for name in linears_of(network) if spelling.stored_in(name) in model.facts.linears
    ]
    prediction = _Prediction(model, network, spelling, estimator)
    walk = gradients(
        network,
        calibration.samples,
        model.device,
        wanted,
        seed=seed,
        ends=prediction.ends(read.values()),
        progress=progress,
    )
    found: dict[str, Sensitivities] = {key: {} for key in candidates}
    for together in walk:
        if look is not None:
            for seen in together:
                look(seen)
        for key, candidate in read.items():
            for seen in together:
                prediction.add(found[key], candidate, seen)
    return found


class _Prediction:
    def __init__(self, model: SourceModel, network: Any, spelling: Spelling, estimator: str):
        self._model, self._spelling = model, spelling
        self._estimator = ESTIMATORS[estimator]
        self._embedding = network.get_input_embeddings()
        self._head = network.get_output_embeddings()
        self._names = {module: name for name, module in network.named_modules()}

    @property
    def _tied(self) -> bool:
        head, embedding = self._head, self._embedding
        return None not in (head, embedding) and head.weight is embedding.weight

    def ends(self, candidates: Sequence[Candidate] | Any) -> set[Kind]:
        """Which of head and embeddings some candidate has other weights of."""
        modules: dict[Kind, Any] = {"head": self._head, "embedding": self._embedding}
        return {
            kind
            for kind, module in modules.items()
            if module is not None
            and any(_changes(one.error(self._stored(module), module)) for one in candidates)
        }

    def add(self, found: Sensitivities, candidate: Candidate, seen: Seen) -> None:
        """Add what one layer of a candidate costs."""
        ends = seen.kind != "linear"
        in_memory = self._stored(seen.module) if ends else seen.name
        name = self._spelling.stored_in(in_memory)
        error = candidate.error(in_memory, seen.module)
        usual = not ends and name in self._model.facts.linears
        if error is None:
            if usual:
                found.setdefault(name, 0.0)
            return
        if not usual and not _changes(error):
            return
        inputs, felt = seen.inputs, seen.gradients.float()
        if seen.kind == "embedding":
            # Some scale what they look up.
            rows = torch.func.functional_call(seen.module, {"weight": error}, (inputs,))
            value = half_mean_square((rows.float() * felt).sum(1), seen.tokens)
        else:
            estimate = ESTIMATORS["fisher"] if ends else self._estimator
            value = estimate(error, inputs.float(), felt, seen.tokens)
        if not value < float("inf"):
            raise TrialFailed(
                f"{name}: what the model's output feels of it is beyond float32; fetch the model again"
            )
        found[name] = found.get(name, 0.0) + value

    def _stored(self, module: nn.Module) -> str:
        """The name of the head or the embeddings; of both where they are one."""
        return self._names[self._embedding if self._tied else module]


def _changes(error: torch.Tensor | None) -> bool:
    return error is not None and bool(error.any())
