"""What the ``quantization_config`` of a compressed-tensors checkpoint says of each layer.

Read with the library's own classes (compressed-tensors 0.20, ``quantization/quant_config.py``):
``config_groups`` hold layers by ``targets``, which are names, regular expressions ("re:…") or classes
of modules ("Linear"), with what their weights and activations are; ``format`` says how they are
stored, of all groups or, where it is "mixed-precision", of each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, in_one_line

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

# Formats with fewer weights than the model has; the library no longer reads them itself.
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
# Of all groups together, or of none: each group has its own, or what its numbers imply.
_EACH_ITS_OWN = ("mixed-precision", None)
_REGEX = "re:"
_SAFETENSORS = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32",
}  # fmt: skip
# What a validator of the library raises.
_OF_A_CONFIG = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
Found = tuple["QuantizationScheme", str]


@dataclass(frozen=True)
class Schemes:
    """What a checkpoint's layers are.

    Attributes:
        groups: Each group that quantizes weights, and how they are stored.
        targets: The same by target.
        every: All groups, also those of activations alone.
        kv_cache: What keys and values are stored as; None if as they are.
    """

    groups: tuple[Found, ...]
    targets: Mapping[str, Found]
    every: tuple["QuantizationScheme", ...]
    kv_cache: "QuantizationArgs | None"

    def of(self, layer: str) -> Found:
        """What a quantized layer is: a name counts more than an expression, and that than a class.

        Raises:
            ArtifactCorrupt: No group has it.
        """
        from compressed_tensors.utils.match import match_name

        if layer in self.targets:
            return self.targets[layer]
        for target, found in self.targets.items():
            if target.startswith(_REGEX) and match_name(layer, target):
                return found
        kind = "Embedding" if layer.rpartition(".")[2].startswith("embed") else "Linear"
        if kind in self.targets:
            return self.targets[kind]
        if len(self.groups) == 1:
            return self.groups[0]
        raise ArtifactCorrupt(f"{layer} is quantized, and no target of config_groups names it")


def read_schemes(settings: Mapping[str, Any]) -> Schemes:
    """Parse a ``quantization_config``.

    Raises:
        ArtifactCorrupt: It is not understood, or says what cannot be read; without the path.
    """
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig
    from pydantic import ValidationError
    from torch.nn import Linear

    _refuse(settings)
    try:
        parsed = QuantizationConfig.model_validate(_without_order(settings))
        every = tuple(group for group in parsed.config_groups.values())
        groups = []
        for group in every:
            if group.weights is None:
                continue
            whole = settings.get("format")
            own = group.format or (None if whole in _EACH_ITS_OWN else whole)
            own = own or infer_module_format(Linear, group).value
            groups.append((group, str(getattr(own, "value", own))))
    except ValidationError as error:
        raise ArtifactCorrupt(f"quantization_config is not understood ({_first(error)})") from error
    except _OF_A_CONFIG as error:
        raise ArtifactCorrupt(
            f"quantization_config is not understood ({in_one_line(error)})"
        ) from error
    for _, format_ in groups:
        _refuse_format(format_)
    targets = {target: found for found in groups for target in found[0].targets}
    return Schemes(tuple(groups), targets, every, parsed.kv_cache_scheme)


def described(args: "QuantizationArgs", format_: str | None = None) -> str:
    """Numbers in few words: ``int4 g128 asym``, ``fp8 per channel``, ``nvfp4``."""
    if (name := _microscaled(args, format_)) is not None:
        return name
    number = f"{'fp' if args.type == 'float' else 'int'}{args.num_bits}"
    grain = {
        "tensor": "per tensor",
        "channel": "per channel",
        "token": "per token",
        "attn_head": "per head",
        "group": f"g{args.group_size}",
        "tensor_group": f"g{args.group_size}",
        "block": f"block {'x'.join(map(str, args.block_structure or ()))}",
    }[args.strategy]
    stored = "" if args.num_bits == 8 or format_ in (None, "pack-quantized") else " in int8"
    return f"{number} {grain}{'' if args.symmetric else ' asym'}{stored}"


def served(schemes: Schemes) -> dict[str, Any]:
    """What serving does beside the weights: ``activations`` and ``kv_cache``, each if it is so.

    Such as ``int8 per token, dynamic``: scales are found while it runs; ``static``: they are stored.
    """
    inputs = [group.input_activations for group in schemes.every]
    outputs = [group.output_activations for group in schemes.every]
    found = {
        "activations": served_as(inputs),
        "outputs": served_as(outputs),
        "kv_cache": served_as([schemes.kv_cache]),
    }
    return {name: text for name, text in found.items() if text}


def dtype_name(dtype: Any) -> str | None:
    """A torch dtype as safetensors spells it; None if there is none."""
    return _SAFETENSORS.get(str(dtype).removeprefix("torch."))


def served_as(stated: Iterable["QuantizationArgs | None"]) -> str:
    """What activations of several layers are served as, each kind once; nothing where none are."""
    texts = [
        f"{described(args)}, {'dynamic' if args.dynamic else 'static'}"
        for args in stated
        if args is not None
    ]
    return "; ".join(dict.fromkeys(texts))


def _microscaled(args: "QuantizationArgs", format_: str | None) -> str | None:
    # Formats of small groups are known by their names.
    if format_ is not None and format_.startswith(("nvfp", "mxfp")):
        return format_.partition("-")[0]
    if args.type != "float" or args.strategy not in ("group", "tensor_group"):
        return None
    if args.num_bits == 4 and args.group_size == 16:
        return "nvfp4"
    if args.group_size == 32 and (args.num_bits < 8 or dtype_name(args.scale_dtype) == "U8"):
        return f"mxfp{args.num_bits}"
    return None


def _refuse(settings: Mapping[str, Any]) -> None:
    sparse = settings.get("sparsity_config") or {}
    if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
        _refuse_format(sparse["format"])
    transforms = settings.get("transform_config") or {}
    if transforms and (not isinstance(transforms, Mapping) or transforms.get("config_groups")):
        raise ArtifactCorrupt("its inputs are rotated while it runs (transform_config)")
    if settings.get("format") not in _EACH_ITS_OWN:
        _refuse_format(settings["format"])
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping) and group.get("format") is not None:
            _refuse_format(group["format"])


def _refuse_format(format_: Any) -> None:
    from compressed_tensors.compressors import BaseCompressor

    known = [name for name in BaseCompressor.registered_names() if name != "dense"]
    if format_ in known:
        return
    if format_ in _SPARSE:
        raise ArtifactCorrupt(f"{format_}: sparse weights are not read")
    if format_ in ("dense", "fakequant"):
        raise ArtifactCorrupt(
            f"{format_}: its weights are rounded only while it runs; save it compressed"
        )
    raise ArtifactCorrupt(f"format {str(format_)[:40]!r}; read are {', '.join(sorted(known))}")


def _without_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    # The order of activations in calibration; weight_g_idx tells what became of it, and 0.20
    # refuses to parse what earlier versions wrote.
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping):
        return dict(settings)
    kept = {}
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and "actorder" in weights:
            group = {**group, "weights": {k: v for k, v in weights.items() if k != "actorder"}}
        kept[name] = group
    return {**settings, "config_groups": kept}


def _first(error: Any) -> str:
    # Of a group that could be a scheme or a preset's name, what is wrong with the scheme.
    errors = [([str(part) for part in found["loc"]], found["msg"]) for found in error.errors()]
    scheme = "QuantizationScheme"
    place, what = next((e for e in errors if any(scheme in part for part in e[0])), errors[0])
    return in_one_line(f"{'.'.join(part for part in place if scheme not in part)}: {what}", 200)
