"""What is served beside the weights, and the runs in which a model is measured with that on. Pure.

A model is measured with its weights alone first; each further run of the same dense model has one
more part as it is served, so that the figures tell which part costs what (docs/protocol.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsweep.evaluate.metrics import QUANTILES, QUARTERS

# Raised whenever a change may move a figure of a run with that part that a release made; they are in
# the runs' keys.
_ACTIVATIONS = 1
_KV_CACHE = 1

# By name among a run's own metrics: what a measurement tells of a served run, each with the run's
# name behind it (``kld_activations``) or, before an end of an interval, in front of that.
TOLD = {
    "kld": "kld_{}",
    "kld_stderr": "kld_{}_stderr",
    "kld_added": "kld_{}_added",
    "kld_added_low": "kld_{}_added_low",
    "kld_added_high": "kld_{}_added_high",
    "ppl_ratio": "ppl_ratio_{}",
    "ppl_ratio_low": "ppl_ratio_{}_low",
    "ppl_ratio_high": "ppl_ratio_{}_high",
    "top1_agreement": "top1_agreement_{}",
    "top1_agreement_stderr": "top1_agreement_{}_stderr",
    "ear": "ear_{}",
    "ear_stderr": "ear_{}_stderr",
    "true_prob_rms": "true_prob_rms_{}",
    **{f"kld_{part}": f"kld_{{}}_{part}" for part in (*QUANTILES, *QUARTERS)},
    "kv_bytes_per_token": "kv_bytes_per_token",
}


@dataclass(frozen=True)
class Serving:
    """What one run of the dense model has as it is served, beside the weights.

    Attributes:
        activations: Whether the inputs of quantized layers are quantized, as the artifact says.
        kv_cache: What keys and values are stored as, in the one spelling of
            :class:`~qsweep.formats.kv_cache.spec.KVCache`; None: as they are.
    """

    activations: bool = False
    kv_cache: str | None = None

    @property
    def name(self) -> str:
        """What its figures are called by: the part that was added last."""
        return "kv" if self.kv_cache is not None else "activations"

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a measurement's key."""
        parts: dict[str, Any] = {"activations": _ACTIVATIONS} if self.activations else {}
        cache = None if self.kv_cache is None else [self.kv_cache, _KV_CACHE]
        return parts if cache is None else {**parts, "kv_cache": cache}

    def figures(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a run's metrics that its measurement tells, by the names of their columns."""
        return {
            told.format(self.name): metrics[name]
            for name, told in TOLD.items()
            if metrics.get(name) is not None
        }


def stages(*, activations: bool, kv_cache: str | None = None) -> tuple[Serving, ...]:
    """The runs beside that of the weights alone, each with all that those before it have.

    >>> [stage.name for stage in stages(activations=True, kv_cache="fp8")]
    ['activations', 'kv']
    >>> stages(activations=False)
    ()
    """
    first = (Serving(activations=True),) if activations else ()
    return first if kv_cache is None else (*first, Serving(activations, kv_cache))
