"""One architecture by one method: made, loaded, and held against what did not go through qsweep.

Each check returns a :class:`Cell`. What it is held against is written here a second time on purpose:
how codes lie in GPTQ's and AWQ's words, and which tensors of a checkpoint a method has to quantize.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsweep.base.errors import IncompatibleTrial, QsweepError, UnknownLayout, in_one_line

if TYPE_CHECKING:
    import torch

METHODS = ("none", "rtn", "gptq", "awq", "gguf")
GROUP_SIZE, BITS = 32, 4
_SAMPLES, _LENGTH = 4, 64
# The engine against transformers' own loop, in float32.
_LOGITS = 1e-4
# What 4 bits in groups of 32 cost a miniature at most, as mean KLD in nats.
_BELIEVABLE = 0.5
# llama.cpp's kernels round activations to 8 bits, the dense engine does not.
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
    figures |= _left(headers(path), headers(out), set(artifact.details.get("kept_layers", ())))
    model, source = _dense(artifact, path), _dense(reference_artifact(read_facts(path, "m")), path)
    expected, found = _logits(source), _logits(model)
    if not torch.isfinite(found).all():
        raise Wrong("logits are not finite")
    figures["kld"] = _kld(expected, found)
    if figures["experts_left"]:
        raise Wrong(f"experts stayed in 16 bits: {figures['experts_left'][0]}")
    if figures["left"]:
        raise Wrong(f"left in 16 bits and not said to be: {figures['left'][0]}")
    if lost := _not_loaded(out, model):
        raise Wrong(f"{len(lost)} layers are not loaded as they are stored: {lost[0]}")
    if turned := _misplaced(source, model):
        raise Wrong(f"weights are not where they were: {turned[0]}")
    if not figures["kld"] < _BELIEVABLE:
        raise Wrong(f"a KLD of {figures['kld']:.2g} at {BITS} bits")


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
    figures["kld"] = _kld(expected, found)
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
    if not figures["kld_native"] < _KERNELS:
        raise Wrong(
            f"llama.cpp's run is a KLD of {figures['kld_native']:.2g} from the dense engine's, whose "
            f"own is {figures['kld']:.2g}"
        )
    if not figures["kld"] < _BELIEVABLE:
        raise Wrong(f"a KLD of {figures['kld']:.2g} at {BITS} bits")


_CHECKS: dict[str, Callable[..., None]] = {"none": _none, "gguf": _gguf}


# --- what has to be quantized ----------------------------------------------------------------------

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|layer_groups)\.\d+\.|\.\d+\.")
_TEXT = re.compile(r"(^|\.)(language_model|text_model)\.")
_NO_TEXT = re.compile(r"(^|[._])(vision|visual|audio|image|vit|vq|vqmodel|projector|mtp)([._]|$)")
# By agreement of the field these stay: they are small, and what they decide is not smooth.
_STAYS = re.compile(
    r"norm|embed|wte|wpe|conv|router|rotary|relative|bias$|shared_expert_gate"
    r"|(^|\.)gate(\.weight|\.wg\.weight)?$|(mlp|moe|ffn)\.gate\.|_lora|A_log|altup|laurel_scale"
)
_FEWEST = 32


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor in a directory of safetensors files."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            content = json.loads(handle.read(size))
        for name, info in content.items():
            if name != "__metadata__":
                found[name] = tuple(info["shape"]), info["dtype"]
    return found


def to_quantize(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, int]:
    """The matrices and stacks of matrices of the decoder that 4 bits mean, and their weights."""
    layers = [name for name in tensors if _LAYER.search(name) and not _NO_TEXT.search(name)]
    layers = [name for name in layers if _TEXT.search(name)] or layers
    found = {}
    for name in layers:
        shape = tensors[name][0]
        matrix = len(shape) == 2 or (len(shape) == 3 and "conv" not in name)
        if matrix and min(shape[-2:]) >= _FEWEST and not _STAYS.search(name):
            found[name] = int(np.prod(shape))
    return found


def _left(
    source: Mapping[str, tuple[tuple[int, ...], str]],
    made: Mapping[str, tuple[tuple[int, ...], str]],
    kept: set[str],
) -> dict[str, Any]:
    """What of it lies in the artifact as it did before; ``left`` is not named among ``kept``."""
    wanted = to_quantize(source)
    left = [name for name in wanted if made.get(name, (0, ""))[1] in ("F32", "F16", "BF16")]
    weights = sum(wanted.values())
    return {
        "share_left": round(sum(wanted[n] for n in left) / weights, 4) if weights else 0.0,
        "left": [n for n in left if n.removesuffix(".weight") not in kept],
        "experts_left": [n for n in left if ".experts." in n or len(source[n][0]) == 3],
    }


def blocks_left(file: Path) -> dict[str, Any]:
    """The same of a GGUF file, by what gguf itself reads of it."""
    from gguf import GGUFReader

    wide = {"F32", "F16", "BF16"}
    matrices = [
        t
        for t in GGUFReader(file).tensors
        if t.name.startswith("blk.") and len(t.shape) > 1 and min(t.shape[:2]) >= _FEWEST
        if not re.search(r"norm|conv|gate_inp|ssm_(a|dt|x)\b", t.name)
    ]
    left = [t for t in matrices if t.tensor_type.name in wide]
    weights = sum(int(t.n_elements) for t in matrices)
    return {
        "share_left": round(sum(int(t.n_elements) for t in left) / max(weights, 1), 4),
        "left": [t.name for t in left],
        "experts_left": [t.name for t in left if "exps" in t.name],
    }


# --- an independent reading ------------------------------------------------------------------------


def unpacked(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Layers of 4 bits in a GPTQ or AWQ checkpoint, by name: float32 [out, in].

    GPTQ: eight codes of a column follow each other in a word, zero points less one in version 1.
    AWQ: eight codes of a row, in the order 0 2 4 6 1 3 5 7.
    """
    from safetensors import safe_open

    settings = json.loads((path / "config.json").read_text())["quantization_config"]
    awq = settings["quant_method"] == "awq"
    less = 1 if settings.get("checkpoint_format", "gptq") == "gptq" and not awq else 0
    shifts = np.arange(8, dtype=np.uint32) * 4
    places = np.array([0, 4, 1, 5, 2, 6, 3, 7]) if awq else np.arange(8)

    def along_rows(words: np.ndarray) -> np.ndarray:
        codes = (words.view(np.uint32)[..., None] >> shifts) & 15
        return codes[..., places].reshape(len(words), -1).astype(np.int64)

    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="np") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no mapping
                layer, _, part = name.rpartition(".")
                if part != "qweight":
                    continue
                words = handle.get_tensor(name)
                codes = along_rows(words) if awq else along_rows(words.T.copy()).T
                zeros = (along_rows(handle.get_tensor(f"{layer}.qzeros")) + less) & 15
                scales = handle.get_tensor(f"{layer}.scales").astype(np.float32)
                if awq:
                    group = np.arange(len(codes)) // (len(codes) // len(scales))
                else:
                    group = handle.get_tensor(f"{layer}.g_idx")
                dense = (codes - zeros[group]).astype(np.float32) * scales[group]
                yield layer, np.ascontiguousarray(dense.T)


def _matrices(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """All matrices in a model, and those of its stacks, by name: float32 [a, b]."""
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if values.ndim == 2 and "embed" not in name:
            yield name, values
        elif values.ndim == 3:
            yield from ((f"{name}[{index}]", matrix) for index, matrix in enumerate(values))


def _not_loaded(path: Path, model: Any) -> list[str]:
    """Stored layers whose rows are not all rows, or columns, of one matrix of the model."""
    rows: dict[bytes, set[int]] = {}
    for number, (_, matrix) in enumerate(_matrices(model)):
        for line in (*matrix, *matrix.T):
            rows.setdefault(np.ascontiguousarray(line).tobytes(), set()).add(number)
    lost = []
    for layer, dense in unpacked(path):
        # Negative zeros are zeros.
        places = [rows.get((line + 0.0).tobytes(), set()) for line in dense]
        if not set.intersection(*places):
            lost.append(layer)
    return lost


def _misplaced(source: Any, model: Any) -> list[str]:
    """Matrices of which a row is no longer like the one that it was made from."""
    before, found = dict(_matrices(source)), []
    for name, matrix in _matrices(model):
        old = before[name]
        norms = np.linalg.norm(old, axis=1) * np.linalg.norm(matrix, axis=1)
        like = (old * matrix).sum(1) >= 0.5 * norms
        if not like.all():
            found.append(name)
    return found


__all__ = ["METHODS", "Cell", "QsweepError", "check"]
