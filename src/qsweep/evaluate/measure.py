"""One pass over the windows gives perplexity and, with a reference, divergence."""

from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, TrialFailed
from qsweep.base.nonfinite import origin
from qsweep.evaluate.engine import Engine, open_engine, quick_memory, run_windows
from qsweep.evaluate.measurement import PROTOCOL_VERSION, Measurement
from qsweep.evaluate.metrics import Mean, clustered_mean, perplexity, quantiles, rms, window_sums
from qsweep.evaluate.scoring import Tile, choose_tile, score, score_against, token_parts
from qsweep.quantizers import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from qsweep.evaluate.reference import Reference
    from qsweep.text.windows import Windows


def measure(
    model: "PreTrainedModel",
    windows: "Windows",
    reference: "Reference | None" = None,
    progress: Progress = silent,
    *,
    batch: int | None = None,
    tile: Tile | None = None,
    engine: Engine | None = None,
) -> Measurement:
    """Measure a dense model on token windows.

    Args:
        model: In evaluation mode, on its device.
        windows: What is scored.
        reference: The cached reference on the same windows; without one there is no divergence.
        progress: Told how far the pass is.
        batch: Windows at once; by default what suits model and device.
        tile: Logits at once; by default what suits the device.
        engine: The model split already.

    Raises:
        TrialFailed: A logit is not finite (the line names the window), or memory does not suffice
            for a single window.
        ArtifactCorrupt: The reference was cached on other windows.
    """
    import torch

    if reference is not None and reference.fingerprint != windows.fingerprint:
        raise ArtifactCorrupt("the cached reference was measured on other windows")
    with torch.inference_mode(), quick_memory(model.device):
        engine = engine or open_engine(model, windows)
        tokens, batch = _score(engine, windows, reference, progress, batch, tile)
    for name, values in tokens.items():
        require_finite(values, windows, name, model)
    facts = {**windows.facts(), **run_facts(engine, batch)}
    result = nll_measurement(windows, tokens["nll"], facts)
    if reference is not None:
        result.metrics |= _divergence(tokens, reference, windows.counts)
        result.arrays["token_kld"] = tokens["kld"]
        result.arrays["token_top1"] = tokens["top1"].to(torch.uint8)
        result.arrays["reference_confidence"] = reference.confidence
    return result


def nll_measurement(windows: "Windows", nll: "Tensor", facts: dict[str, Any]) -> Measurement:
    """What follows from the NLL of each scored token, float32 [tokens], alone."""
    sums, counts = window_sums(nll, windows.counts), windows.counts
    arrays = {"window_nll": sums, "window_tokens": counts, "token_nll": nll}
    return Measurement(_with_error("ppl", perplexity(sums, counts)), arrays, facts)


def run_facts(engine: Engine, batch: int) -> dict[str, Any]:
    """What a measurement or a reference records of how its model was run."""
    return {
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device_type": engine.device.type,
        "protocol": PROTOCOL_VERSION,
        "batch": batch,
        "head": "whole model" if engine.body is None else "split",
    }


def require_finite(
    values: "Tensor",
    windows: "Windows",
    name: str = "nll",
    model: "PreTrainedModel | None" = None,
) -> None:
    """Raise TrialFailed for a value [tokens] that is not finite.

    The line names the first window with one and, given the model, the layer where they begin.
    """
    import torch

    bad = (~torch.isfinite(values)).nonzero()[:, 0]
    if len(bad):
        window = int(torch.searchsorted(windows.counts.cumsum(0), bad[0], right=True))
        raise TrialFailed(
            f"the model's logits are not finite: {name} of {len(bad)} of {len(values)} tokens, "
            f"first in window {window} of {len(windows.ids)} (counted from 0)"
            + (f"; {origin(model, windows.ids[window])}" if model is not None else "")
        )


def _score(
    engine: Engine,
    windows: "Windows",
    reference: "Reference | None",
    progress: Progress,
    batch: int | None,
    tile: Tile | None,
) -> "tuple[dict[str, Tensor], int]":
    # Results stay on the device until the end, so that nothing in the loop waits for it.
    import torch

    head = engine.head
    # A copy from memory that is not pinned may wait for the device: once, not in the loop.
    first = None if reference is None else reference.first.to(head.device)
    if tile is None:
        tile = choose_tile([head] if reference is None else [head, reference.head])
    names = ("nll",) if reference is None else ("nll", "kld", "top1")
    results = {
        name: torch.empty(windows.tokens_scored, dtype=torch.float32, device=head.device)
        for name in names
    }

    def consume(features: "Tensor", targets: "Tensor", before: int) -> None:
        targets = targets.to(head.device)
        for part in token_parts(len(targets), tile.tokens):
            at = slice(before + part.start, before + part.stop)
            if reference is None or first is None:
                scores = score(head, features[part], targets[part], tile)
            else:
                cached = reference.features(at).to(head.device, non_blocking=True)
                scores = score_against(
                    head, features[part], targets[part], reference.head, cached, first[at], tile
                )
            for name in names:
                results[name][at] = getattr(scores, name)

    batch = run_windows(engine, windows, consume, lambda done: progress("measure", done), batch)
    return {name: values.cpu() for name, values in results.items()}, batch


def _divergence(
    tokens: "dict[str, Tensor]", reference: "Reference", counts: "Tensor"
) -> dict[str, float]:
    kld = clustered_mean(window_sums(tokens["kld"], counts), counts)
    agreement = clustered_mean(window_sums(tokens["top1"], counts), counts)
    change = (-tokens["nll"].double()).exp() - (-reference.nll.double()).exp()
    return {
        **_with_error("kld", kld),
        **{f"kld_{name}": value for name, value in quantiles(tokens["kld"])},
        **_with_error("top1_agreement", agreement),
        "true_prob_rms": rms(change),
    }


def _with_error(name: str, mean: Mean) -> dict[str, float]:
    # Over a single window there is no error to tell, and then there is no such entry.
    return {name: mean.value} | ({} if mean.stderr is None else {f"{name}_stderr": mean.stderr})
