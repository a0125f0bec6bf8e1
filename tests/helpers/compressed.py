"""Checkpoints in compressed-tensors, rounded to nearest and packed by the library itself."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

COMPANIONS = ("tokenizer.json", "tokenizer_config.json")


def compress(
    source: Path, out: Path, groups: dict, ignore=(), kv_cache=None, largest=None, **settings
) -> Path:
    """Write ``source`` with its linear layers compressed.

    Args:
        source: An unquantized checkpoint.
        out: A directory to be made.
        groups: The ``config_groups``: schemes as dictionaries, or a preset's name and its targets.
        ignore: Layers that stay as they are.
        kv_cache: The ``kv_cache_scheme``; scales of one go beside.
        largest: By layer, the largest magnitude that its inputs have; by default 1 is their scale.
        settings: More of the ``quantization_config``.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups=groups,
        ignore=list(ignore),
        kv_cache_scheme=kv_cache,
        quantization_status="compressed",
    )
    formats = set()
    for scheme in config.config_groups.values():
        if scheme.weights is not None:
            scheme.format = scheme.format or infer_module_format(torch.nn.Linear, scheme)
            formats.add(getattr(scheme.format, "value", scheme.format))
    config.format = formats.pop() if len(formats) == 1 else "mixed-precision"
    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        scheme = scheme_of(config, layer) if is_linear(name, weight) else None
        if scheme is None:
            tensors[name] = weight
            continue
        parts = {"weight": weight.float(), **scales(weight.float(), scheme.weights)}
        form = getattr(scheme.format, "value", scheme.format)
        # Otherwise it compiles the rounding of FP4, which takes longer than all else.
        with torch.compiler.set_stance("force_eager"):
            packed = BaseCompressor.get_value_from_registry(form).compress(parts, scheme)
        tensors |= {f"{layer}.{part}": tensor for part, tensor in packed.items()}
        tensors |= {f"{layer}.{x}": t for x, t in input_scales(scheme, layer, largest).items()}
        if layer.endswith("k_proj") and kv_cache is not None:
            attention = layer.rpartition(".")[0]
            tensors |= {f"{attention}.{x}_scale": torch.ones(1) for x in ("k", "v")}
    stated = {**json.loads(config.model_dump_json()), **settings}
    return write(source, out, tensors, stated)


def input_scales(scheme, layer, largest) -> dict:
    """What is stored for a layer's inputs: a static scale, or that of the scales of groups."""
    args = scheme.input_activations
    if args is None or args.dynamic is True:
        return {}
    if args.dynamic == "local":
        most = 1.0 if largest is None else largest[layer]
        return {"input_global_scale": torch.tensor([448.0 * 6.0 / most])}
    if largest is None:
        return {"input_scale": torch.ones(1, dtype=torch.bfloat16)}
    return {
        "input_scale": torch.tensor([largest[layer] / (448.0 if args.type == "float" else 127)])
    }


def write(source: Path, out: Path, tensors: dict, settings, **more) -> Path:
    """A checkpoint of these tensors, with the configuration (and ``more``) and tokenizer of ``source``."""
    out.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    if settings is not None:
        more["quantization_config"] = settings
    (out / "config.json").write_text(json.dumps({**config, **more}))
    kept = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    for name in COMPANIONS:
        shutil.copy(source / name, out / name)
    return out


def one_layer(whole: Path, out: Path) -> Path:
    """A model of two layers cut down to one, whose sizes hold every group size."""
    tensors = load_file(whole / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    return write(whole, out, kept, None, num_hidden_layers=1)


def changed(path, out, edit=lambda tensors: None, config=lambda settings: None):
    """A copy of a checkpoint with its tensors or its ``quantization_config`` edited."""
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    stated = json.loads((path / "config.json").read_text())["quantization_config"]
    config(stated)
    return write(path, out, tensors, stated)


def is_linear(name, weight):
    return name.endswith(".weight") and weight.ndim == 2 and "embed" not in name


def scheme_of(config, layer):
    """What transformers would take: a name, an expression, a class; None where it is left out."""
    from compressed_tensors.utils.match import match_name, match_targets

    if any(match_name(layer, name) for name in config.ignore):
        return None
    schemes = {t: scheme for scheme in config.config_groups.values() for t in scheme.targets}
    found = match_targets(layer, torch.nn.Linear(1, 1), list(schemes))
    scheme = schemes[found[0]] if found else None
    return scheme if scheme is not None and scheme.weights is not None else None


def scales(weight, args):
    """Scales and zero points of the nearest grid, as the library computes them from extremes."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    rows, columns = weight.shape
    if args.strategy == "tensor":
        pieces = weight.reshape(1, -1)
    elif args.strategy == "channel":
        pieces = weight[:, None, :]
    elif args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.reshape(-(-rows // height), height, -(-columns // width), width)
        pieces = blocks.transpose(1, 2).flatten(2)
    else:
        pieces = weight.reshape(rows, -1, args.group_size)
    low, high = pieces.amin(-1), pieces.amax(-1)
    whole = None
    if args.strategy == "tensor_group":
        whole = generate_gparam(low.min(), high.max())
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    kept = scale if args.type == "float" and args.num_bits < 8 else scale.to(torch.bfloat16)
    found = {"weight_scale": kept.float() if whole is not None else kept, "weight_zero_point": zero}
    return found if whole is None else {**found, "weight_global_scale": whole.reshape(1)}
