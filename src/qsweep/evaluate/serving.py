"""Divergence of llama.cpp's own run of a GGUF artifact, on a sample of windows.

Its kernels also round activations to 8 bits, which the dense engine leaves out on purpose; this
says how much that adds.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.kv_cache.spec import LayerCache

if TYPE_CHECKING:
    import torch

    from qsweep.text.windows import Windows

SAMPLE_TOKENS = 4096
_BATCH = 256


def kld_native(
    artifact: Artifact,
    source: Path,
    windows: "Windows",
    progress: Progress = silent,
    *,
    device: str = "cpu",
    max_tokens: int = SAMPLE_TOKENS,
    kv_cache: LayerCache | None = None,
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Compare llama.cpp's logits with the unquantized model's, token by token.

    Args:
        artifact: a GGUF artifact.
        source: directory of the unquantized model.
        windows: the token windows of a corpus; as many as fit in ``max_tokens`` are taken, evenly
            spread, two at least where there are two.
        progress: told of each window.
        device: where the unquantized model runs, in float32 on the CPU, else in its own dtype;
            llama.cpp takes the GPU too where it can.
        max_tokens: the sample's size.
        kv_cache: what llama.cpp stores keys and values as; None: float16.
        trust_remote_code: whether the checkpoint's own code may run.

    Returns:
        Over the scored tokens: ``kld_native``, mean KL(reference || native) in nats, and its error
        over windows, ``kld_native_stderr`` (absent for one window); ``ear_native``,
        ``top1_agreement_native``, ``ppl_ratio_native``; and ``native_tokens``, how many they are.
    """
    import torch

    from qsweep.formats.gguf.dense import model_file
    from qsweep.formats.gguf.native import NativeModel, can_use_gpu

    reference = load_on(device, source, trust_remote_code)
    gpu = torch.device(device).index or 0 if device != "cpu" and can_use_gpu() else None
    chosen = _spread(len(windows.ids), max(2, max_tokens // windows.ids.shape[1]))
    found = []
    with NativeModel(
        model_file(artifact),
        context=windows.ids.shape[1],
        batch=_BATCH,
        gpu=gpu,
        threads=torch.get_num_threads(),
        kv_cache=kv_cache,
    ) as native:
        for done, index in enumerate(chosen):
            progress("kld native", done / len(chosen))
            found.append(_compare_window(reference, native, windows, index, device))
    return _summary(torch.stack(found))


def load_on(device: str, source: Path, trust_remote_code: bool) -> Any:
    """A checkpoint of transformers', in float32 on the CPU, else in its own dtype."""
    import torch
    from transformers import AutoConfig

    from qsweep.models.architecture import load_model

    return load_model(
        source,
        AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code),
        dtype=torch.float32 if device == "cpu" else "auto",
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    ).eval()


def _compare_window(
    reference: Any, native: Any, windows: "Windows", index: int, device: str
) -> "torch.Tensor":
    """Sums over a window's scored tokens, float64 [6].

    KL, acceptance, agreements, both NLLs, tokens.
    """
    import torch

    from qsweep.evaluate.metrics import expected_acceptance, kl_divergence, nll, top1_agrees

    length = int(windows.lengths[index])
    ids, scored = windows.ids[index, :length], windows.scored[index, :length]
    sums = torch.zeros(6, dtype=torch.float64)
    with torch.inference_mode():
        ours = reference(ids[None].to(device), use_cache=False).logits[0]
        for at, logits in native.logits(ids.tolist()):
            # Position p is predicted by the logits of p - 1.
            rows = scored[at + 1 : at + 1 + len(logits)].nonzero()[:, 0]
            if not len(rows):
                continue
            targets = ids[rows + at + 1].to(device)
            p = ours[(rows + at).to(device)]
            q = torch.from_numpy(logits)[rows].to(device)
            values = (
                kl_divergence(p, q),
                expected_acceptance(p, q),
                top1_agrees(p, q),
                nll(p, targets),
                nll(q, targets),
            )
            sums[:5] += torch.stack([v.double().sum() for v in values]).cpu()
            sums[5] += len(rows)
    return sums


def _summary(sums: "torch.Tensor") -> dict[str, float]:
    from qsweep.evaluate.metrics import clustered_mean, ppl_ratio

    divergence, accepted, agreed, ours, theirs, counts = sums.T
    kld = clustered_mean(divergence, counts)
    summary = {
        "kld_native": kld.value,
        "ear_native": clustered_mean(accepted, counts).value,
        "top1_agreement_native": clustered_mean(agreed, counts).value,
        "ppl_ratio_native": ppl_ratio(theirs, ours, counts).value,
        "native_tokens": float(counts.sum()),
    }
    return summary | ({} if kld.stderr is None else {"kld_native_stderr": kld.stderr})


def _spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` indices, evenly spread."""
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
