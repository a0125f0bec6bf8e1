"""One pass over the windows gives perplexity and, with a reference, divergence."""

from typing import TYPE_CHECKING

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.progress import Progress, silent
from qsweep.evaluate.engine import Engine, keep_freed_memory, open_engine, run_windows
from qsweep.evaluate.measurement import WindowScores
from qsweep.evaluate.metrics import (
    by_entropy,
    by_quarter,
    clustered_mean,
    quantiles,
    rms,
    window_sums,
)
from qsweep.evaluate.nll import nll_measurement, require_finite, run_facts, with_error
from qsweep.evaluate.scoring import Tile, choose_tile, score, score_against, token_parts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from qsweep.evaluate.reference import Reference
    from qsweep.text.windows import Windows

# What a pass gives of each token, in float32; all but the first with a reference.
_OF_TOKENS = ("nll", "kld", "top1", "acceptance", "entropy")


def measure(
    model: "PreTrainedModel",
    windows: "Windows",
    reference: "Reference | None" = None,
    progress: Progress = silent,
    *,
    batch: int | None = None,
    tile: Tile | None = None,
    engine: Engine | None = None,
) -> WindowScores:
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
    with torch.inference_mode(), keep_freed_memory(model):
        engine = engine or open_engine(model, windows.ids)
        tokens, batch = score_tokens(engine, windows, reference, progress, batch, tile)
    return window_scores(tokens, windows, reference, engine, batch)


def window_scores(
    tokens: "dict[str, Tensor]",
    windows: "Windows",
    reference: "Reference | None",
    engine: Engine,
    batch: int,
) -> WindowScores:
    """What follows from the scores of all tokens of the windows, as :func:`score_tokens` gives them.

    Raises:
        TrialFailed: One is not finite; the line names the window.
    """
    import torch

    for name, values in tokens.items():
        require_finite(values, windows, name, engine.model)
    facts = {**windows.facts(), **run_facts(engine, batch)}
    result = nll_measurement(windows, tokens["nll"], facts)
    if windows.mask is not None or windows.preset.stride is not None:
        result.arrays["token_position"] = windows.positions.int()
    if reference is not None:
        result.metrics |= _divergence(tokens, reference, windows)
        result.arrays["token_kld"] = tokens["kld"]
        result.arrays["reference_entropy"] = tokens["entropy"]
        result.arrays["token_top1"] = tokens["top1"].to(torch.uint8)
        result.arrays["reference_confidence"] = reference.confidence
    return result


def score_tokens(
    engine: Engine,
    windows: "Windows",
    reference: "Reference | None" = None,
    progress: Progress = silent,
    batch: int | None = None,
    tile: Tile | None = None,
) -> "tuple[dict[str, Tensor], int]":
    """Score every token of the windows: ``nll``, with a reference ``kld`` and ``top1`` [tokens].

    Returns:
        These, on the CPU, and the batch size at the end. Called without gradients.
    """
    import torch

    # Results stay on the device until the end, so that nothing in the loop waits for it.

    head = engine.head
    # A copy from memory that is not pinned may wait for the device: once, not in the loop.
    first = None if reference is None else reference.first.to(head.device)
    if tile is None:
        tile = choose_tile([head] if reference is None else [head, reference.head])
    names = _OF_TOKENS[:1] if reference is None else _OF_TOKENS
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
    tokens: "dict[str, Tensor]", reference: "Reference", windows: "Windows"
) -> dict[str, float]:
    counts, context = windows.counts, int(windows.ids.shape[1])
    # Conversations are as long as they are: there are no quarters of their windows.
    quarters = by_quarter(tokens["kld"], windows.positions, context) if windows.mask is None else ()
    kld, acceptance, agreement = (
        clustered_mean(window_sums(tokens[name], counts), counts)
        for name in ("kld", "acceptance", "top1")
    )
    change = (-tokens["nll"].double()).exp() - (-reference.nll.double()).exp()
    parts = (
        quantiles(tokens["kld"]),
        quarters,
        by_entropy(tokens["kld"], tokens["entropy"]),
    )
    return {
        **with_error("kld", kld),
        **{f"kld_{name}": value for part in parts for name, value in part},
        **with_error("ear", acceptance),
        **with_error("top1_agreement", agreement),
        "true_prob_rms": rms(change),
    }
