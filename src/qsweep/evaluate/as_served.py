"""A model measured with more than its weights as it is served; see :mod:`qsweep.evaluate.served`."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import TrialFailed
from qsweep.base.progress import Progress, silent
from qsweep.evaluate.activations import served_activations
from qsweep.evaluate.kv_cache import served_cache
from qsweep.evaluate.measure import measure
from qsweep.evaluate.measurement import WindowScores
from qsweep.evaluate.served import Serving
from qsweep.evaluate.serving_memory import kv_bytes_per_token
from qsweep.formats.activations import NotSimulated
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container
from qsweep.formats.kv_cache.scales import stored_scales
from qsweep.formats.kv_cache.spec import kv_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qsweep.evaluate.reference import Reference
    from qsweep.text.windows import Windows


def measure_as_served(
    model: "PreTrainedModel",
    windows: "Windows",
    serving: Serving,
    artifact: Artifact,
    reference: "Reference | None" = None,
    progress: Progress = silent,
) -> WindowScores:
    """Measure a dense model with what is served beside its weights.

    Args:
        model: The artifact's dense model, which is as it was afterwards.
        windows: What is scored.
        serving: What is served.
        artifact: Says how activations are quantized.
        reference: The cached reference on the same windows.
        progress: Told how far the pass is.

    Returns:
        As of :func:`~qsweep.evaluate.measure`; its ``facts`` tell under the name of each part what
        was seen of it. Of what cannot be simulated there are no figures and arrays, and
        ``facts["refused"]`` says why.

    Raises:
        TrialFailed: A scale is none, or what comes out is not finite; the line names the layer.
        IncompatibleTrial: The model cannot have this cache.
    """
    facts: dict[str, Any] = {}
    types = kv_cache(serving.kv_cache)
    try:
        with ExitStack() as stack:
            batch = None
            if types:
                cache = stack.enter_context(served_cache(model, types, stored_scales(artifact)))
            if serving.activations:
                layers = container(artifact.format).layer_activations(artifact.files)
                activations = stack.enter_context(served_activations(model, layers))
                batch = 1 if activations.whole else None
            try:
                result = measure(model, windows, reference, progress, batch=batch)
            except TrialFailed:
                if serving.activations:
                    activations.require_finite()
                raise
            if serving.activations:
                facts["activations"] = activations.facts()
            if types:
                facts["kv_cache"] = cache.facts()
    except NotSimulated as error:
        return WindowScores({}, {}, {**windows.facts(), "refused": str(error)})
    result.facts |= facts
    if types:
        config, context = model.config.get_text_config().to_dict(), windows.ids.shape[1]
        result.metrics["kv_bytes_per_token"] = kv_bytes_per_token(config, types, context)
    return result
