"""One architecture by one method: made, loaded, and held against what did not go through qsweep."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from architecture_parts.independent import (
    blocks_left,
    headers,
    misplaced,
    not_loaded,
    tensors_left,
)
from qsweep.base.errors import IncompatibleTrial, UnknownLayout, in_one_line

if TYPE_CHECKING:
    import torch

METHODS = ("none", "rtn", "gptq", "awq", "gguf")
GROUP_SIZE, BITS = 32, 4
_SAMPLES, _LENGTH = 4, 64
# The engine against transformers' own loop, in float32.
_LOGITS = 1e-4
# What 4 bits in groups of 32 cost a miniature at most, as a share of the KLD between the model's own
# distributions at two places of a text: some models are flat, some are sharp.
_BELIEVABLE = 0.5
# The same of llama.cpp's kernels, which round activations to 8 bits where the dense engine does not.
_KERNELS = 0.02


@dataclass
class Cell:
    """``state``: right, wrong, skipped or failed; ``reason`` is one line unless it is right."""

    architecture: str
    method: str
    state: str
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Wrong(Exception):
    """What was made is not what it says it is."""


def check(architecture: str, method: str, path: Path, auto: str) -> Cell:
    """Try a method on the miniature in ``path``, whose class of transformers is ``auto``."""
    figures: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{method}-") as folder:
            _CHECKS.get(method, _packed)(method, path, auto, Path(folder) / method, figures)
    except Wrong as error:
        return Cell(architecture, method, "wrong", in_one_line(error), figures)
    except (IncompatibleTrial, UnknownLayout) as error:
        return Cell(architecture, method, "skipped", _anonymous(error, path), figures)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is this cell's result
        line = f"{type(error).__name__}: {_anonymous(error, path)}"
        return Cell(architecture, method, "failed", line[:300], figures)
    return Cell(architecture, method, "right", "", figures)


def _anonymous(error: BaseException, path: Path) -> str:
    return in_one_line(error).replace(str(path), "MODEL").replace(str(path.parent), "FOLDER")


# --- what is run -----------------------------------------------------------------------------------


def _ids(rows: int = 2) -> "torch.Tensor":
    """Token ids [rows, 64]."""
    import torch

    return torch.randint(5, 4000, (rows, _LENGTH), generator=torch.Generator().manual_seed(1))


def _logits(model: Any) -> "torch.Tensor":
    """float32 [2, 64, vocabulary] of a model of transformers."""
    import torch

    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=_ids(), use_cache=False).logits.float()
    return found


def _dense(artifact: Any, path: Path) -> Any:
    import torch

    from qsweep.formats.dense import load_dense

    return load_dense(artifact, path, dtype=torch.float32, device="cpu")


def _plain(path: Path, auto: str) -> Any:
    """The model as transformers alone loads it."""
    import torch
    import transformers

    kind = getattr(transformers, auto)
    return kind.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)


def _kld(reference: "torch.Tensor", other: "torch.Tensor") -> float:
    """Mean KL(reference || other) in nats of logits [..., vocabulary]."""
    shared = min(reference.shape[-1], other.shape[-1])
    p, q = (x[..., :shared].double().log_softmax(-1) for x in (reference, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def _require_near(figures: dict[str, Any], expected: "torch.Tensor", found: "torch.Tensor") -> None:
    figures["kld"] = _kld(expected, found)
    figures["kld_elsewhere"] = _kld(expected, expected.roll(1, dims=1))
    if not figures["kld"] < _BELIEVABLE * figures["kld_elsewhere"]:
        raise Wrong(
            f"a KLD of {figures['kld']:.2g} at {BITS} bits, where another place in the text is "
            f"{figures['kld_elsewhere']:.2g} away"
        )


def _quantizer(method: str) -> Any:
    from qsweep.quantizers.gguf import GGUF
    from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
    from qsweep.quantizers.rtn import RTN

    made: dict[str, Callable[[], Any]] = {
        "rtn": lambda: RTN(BITS, GROUP_SIZE),
        "gptq": lambda: NativeGPTQ(BITS, GROUP_SIZE),
        "awq": lambda: NativeAWQ(BITS, GROUP_SIZE),
        "gguf": lambda: GGUF(type="Q4_0"),
    }
    return made[method]()


def _quantize(method: str, path: Path, out: Path) -> Any:
    import torch

    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.text.calibration import CalibrationTokens

    facts, quantizer = read_facts(path, path.name), _quantizer(method)
    quantizer.check(facts)
    out.mkdir()
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(5, 4000, (_SAMPLES, _LENGTH), generator=generator).tolist()
    return quantizer.quantize(SourceModel(facts, "cpu"), CalibrationTokens(samples), out)


# --- checks ----------------------------------------------------------------------------------------


def _none(_: str, path: Path, auto: str, __: Path, figures: dict[str, Any]) -> None:
    """The engine's logits, through its split into body and head, are transformers' own."""
    import torch

    from qsweep.evaluate.engine import open_engine
    from qsweep.formats.hf import reference_artifact
    from qsweep.models.facts import read_facts

    try:
        expected = _logits(_plain(path, auto))
    except Exception as error:
        line = f"transformers itself does not run it on text: {_anonymous(error, path)}"
        raise IncompatibleTrial(line[:240]) from error
    figures["logits_std"] = round(float(expected.std()), 4)
    if not torch.isfinite(expected).all():
        raise IncompatibleTrial("transformers' own logits are not finite")
    model = _dense(reference_artifact(read_facts(path, path.name)), path)
    with torch.inference_mode():
        engine = open_engine(model, _ids())
        found = engine.head.logits(engine.features(_ids())).view(expected.shape)
    figures["body"] = engine.body
    figures["difference"] = difference = float((found - expected).abs().max())
    if not difference <= _LOGITS:
        raise Wrong(f"logits differ by {difference:.2g} from those of transformers' own loop")


def _packed(method: str, path: Path, _: str, out: Path, figures: dict[str, Any]) -> None:
    """All that the format claims is quantized, and loaded as it is stored."""
    import torch

    from qsweep.formats.hf import reference_artifact
    from qsweep.models.facts import read_facts

    artifact = _quantize(method, path, out)
    figures["bpw"] = round(artifact.size.bpw or 0.0, 3)
    figures |= tensors_left(
        headers(path), headers(out), set(artifact.details.get("kept_layers", ()))
    )
    model, source = _dense(artifact, path), _dense(reference_artifact(read_facts(path, "m")), path)
    expected, found = _logits(source), _logits(model)
    if not torch.isfinite(found).all():
        raise Wrong("logits are not finite")
    if figures["experts_left"]:
        raise Wrong(f"experts stayed in 16 bits: {figures['experts_left'][0]}")
    if figures["left"]:
        raise Wrong(f"left in 16 bits and not said to be: {figures['left'][0]}")
    if lost := not_loaded(out, model):
        raise Wrong(f"{len(lost)} layers are not loaded as they are stored: {lost[0]}")
    if turned := misplaced(source, model):
        raise Wrong(f"weights are not where they were: {turned[0]}")
    _require_near(figures, expected, found)


def _gguf(method: str, path: Path, _: str, out: Path, figures: dict[str, Any]) -> None:
    """llama.cpp's own run of the file is what the dense engine reads in it."""
    import torch

    from qsweep.formats.gguf.native import NativeModel
    from qsweep.formats.hf import reference_artifact
    from qsweep.models.facts import read_facts

    artifact = _quantize(method, path, out)
    figures["bpw"] = round(artifact.size.bpw or 0.0, 3)
    file = out / "model.gguf"
    figures |= blocks_left(file)
    agreement = artifact.details["llama_cpp"]
    figures["kld_unquantized"] = agreement.get("kld")
    figures["served"] = bool(artifact.runtimes)
    expected = _logits(_dense(reference_artifact(read_facts(path, "m")), path))
    found = _logits(_dense(artifact, path))
    _require_near(figures, expected, found)
    if not agreement["agrees"]:
        why = agreement.get("reason") or f"a KLD of {agreement['kld']:.2g} before quantizing"
        raise IncompatibleTrial(f"llama.cpp computes something else ({why}), as the record says")
    with NativeModel(file, context=_LENGTH, batch=_LENGTH, gpu=None, threads=1) as model:
        rows = [
            torch.cat([torch.tensor(part) for _, part in model.logits(row.tolist())])
            for row in _ids()
        ]
    figures["kld_native"] = _kld(found, torch.stack(rows))
    if figures["experts_left"]:
        raise Wrong(f"experts stayed in 16 bits: {figures['experts_left'][0]}")
    if not figures["kld_native"] < _KERNELS * figures["kld_elsewhere"]:
        raise Wrong(
            f"llama.cpp's run is a KLD of {figures['kld_native']:.2g} from the dense engine's, whose "
            f"own is {figures['kld']:.2g}"
        )


_CHECKS: dict[str, Callable[..., None]] = {"none": _none, "gguf": _gguf}
