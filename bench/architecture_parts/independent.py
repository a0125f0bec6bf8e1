"""What a method has to quantize, and what lies in its files, without a line of qsweep.

How codes lie in GPTQ's and AWQ's words, and which tensors of a checkpoint 4 bits mean, is written here
a second time on purpose.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# --- what has to be quantized ----------------------------------------------------------------------

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|layer_groups)\.\d+\.|\.\d+\.")
_TEXT = re.compile(r"(^|\.)(language_model|text_model)\.")
_NO_TEXT = re.compile(r"(^|[._])(vision|visual|audio|image|vit|vq|vqmodel|projector|mtp)([._]|$)")
# By agreement of the field these stay: they are small, and what they decide is not smooth.
_STAYS = re.compile(
    r"norm|embed|wte|wpe|conv|router|rotary|relative|bias$|shared_expert_gate"
    r"|(^|\.)gate(\.weight|\.wg\.weight)?$|(mlp|moe|ffn)\.gate\.|_lora|A_log|indexer|altup|laurel_scale"
)
# Stacks of matrices that are experts; of others, a state space keeps one per head.
_EXPERTS = re.compile(r"experts?\b|moe|mlp|ffn|feed_forward")
_FEWEST = 32
# Embeddings and heads of miniatures have so many rows.
_VOCABULARY = 4096


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
        matrix = len(shape) == 2 or (len(shape) == 3 and _EXPERTS.search(name))
        if matrix and min(shape[-2:]) >= _FEWEST and not _STAYS.search(name):
            found[name] = int(np.prod(shape))
    # An expert without a last layer hands tokens on, and has no use for its first ones.
    idle = re.compile(r"(.*\.experts\.\d+\.)(?:gate|up)_proj\.weight$")
    return {
        name: weights
        for name, weights in found.items()
        if not (match := idle.match(name)) or f"{match[1]}down_proj.weight" in tensors
    }


def tensors_left(
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
        if values.ndim == 2 and len(values) < _VOCABULARY:
            yield name, values
        elif values.ndim == 3:
            yield from ((f"{name}[{index}]", matrix) for index, matrix in enumerate(values))


def not_loaded(path: Path, model: Any) -> list[str]:
    """Stored layers of which a row is no row, and no column, of any matrix of the model.

    Whether it is the right one, :func:`misplaced` tells.
    """
    lines = {
        # Negative zeros are zeros.
        (line + 0.0).tobytes()
        for _, matrix in _matrices(model)
        for line in (*matrix, *matrix.T)
    }
    return [
        layer
        for layer, dense in unpacked(path)
        if any((line + 0.0).tobytes() not in lines for line in dense)
    ]


def misplaced(source: Any, model: Any) -> list[str]:
    """Matrices of which a row is no longer like the one that it was made from."""
    before, found = dict(_matrices(source)), []
    for name, matrix in _matrices(model):
        old = before[name]
        norms = np.linalg.norm(old, axis=1) * np.linalg.norm(matrix, axis=1)
        like = (old * matrix).sum(1) >= 0.5 * norms
        if not like.all():
            found.append(name)
    return found
