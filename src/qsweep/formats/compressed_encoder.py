"""Writing compressed-tensors checkpoints, with the library's own code: what vLLM and transformers read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qsweep.formats.encoder import Differing, Encoder, Parts

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme

    from qsweep.formats.numbers.scheme import Scheme
    from qsweep.formats.packing import QuantizedMatrix


@dataclass(frozen=True)
class CompressedEncoder(Encoder):
    """Writes layers of one quantization scheme.

    Attributes:
        preset: The library's name for the scheme; None for weights alone that are integers.
        bits: Of a code, where there is no preset.
        group_size: Inputs per scale, or -1, where there is no preset.
        sym: Whether zero points are in the middle, where there is no preset.
        dtype: What the unquantized checkpoint has most of its weights in; scales have it, too.
        runtimes: What serves it.
        own: How weights become codes where the library has no word for it.
    """

    preset: str | None
    bits: int
    group_size: int
    sym: bool
    dtype: "torch.dtype"
    runtimes: tuple[str, ...] = ()
    own: "Scheme | None" = None

    container = "compressed-tensors"

    @property
    def scale_dtype(self) -> "torch.dtype":  # type: ignore[override]
        """See :class:`Encoder`."""
        return self.dtype

    @property
    def scales_whole_tensors(self) -> bool:  # type: ignore[override]
        """See :class:`Encoder`."""
        return bool(self.scheme.weights.strategy == "tensor_group")

    def read_by(self, runtime: str, shapes: Sequence[tuple[int, int]]) -> bool:
        """Whether a runtime that serves the scheme can do so with layers of these (outputs, inputs).

        transformers 5.18 cuts blocks from whole matrices only, and unpacks fp4 and mxfp8 to bfloat16,
        which a model in float32 does not multiply with.
        """
        import torch

        if runtime != "transformers":
            return True
        args = self.scheme.weights
        if args.strategy == "block":
            rows, columns = args.block_structure
            return all(out % rows == 0 and inp % columns == 0 for out, inp in shapes)
        unpacks = self.stored_as.startswith(("nvfp", "mxfp"))
        return not (unpacks and self.dtype == torch.float32)

    def loads_experts(self, runtime: str) -> bool:
        """See :meth:`Encoder.loads_experts`.

        transformers 5.18 unpacks experts before it stacks them (``DecompressExperts``), out of codes and
        one kind of scales: it asks for no zero points, loses NVFP4's global scales without a word
        (huggingface/transformers issue 48371), and takes FP8 for the only whole codes there are, which
        it multiplies by a scale as that lies. vLLM's kernels for experts take integers without zero
        points alone.
        """
        args = self.scheme.weights
        if runtime == "transformers":
            packed = self.stored_as in ("pack-quantized", "mxfp4-pack-quantized")
            whole = self.stored_as == "float-quantized" and args.strategy in ("tensor", "channel")
            return bool(args.symmetric) and (packed or whole)
        return runtime == "vllm" and bool(args.symmetric)

    @cached_property
    def scheme(self) -> "QuantizationScheme":
        """What the library calls it all."""
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationScheme,
            preset_name_to_scheme,
        )

        if self.preset is not None:
            return preset_name_to_scheme(self.preset, ["Linear"])
        weights = QuantizationArgs(
            num_bits=self.bits,
            type="int",
            symmetric=self.sym,
            strategy="channel" if self.group_size == -1 else "group",
            group_size=None if self.group_size == -1 else self.group_size,
        )
        return QuantizationScheme(targets=["Linear"], weights=weights)

    @cached_property
    def stored_as(self) -> str:
        """The library's name for how codes lie in tensors."""
        from compressed_tensors.compressors.format import infer_module_format
        from torch.nn import Linear

        return str(infer_module_format(Linear, self.scheme).value)

    def pack(self, matrix: "QuantizedMatrix", inputs: "torch.Tensor | None" = None) -> Parts:
        """See :meth:`Encoder.pack`.

        The library rounds the weights anew, which finds the very codes: they lie on the grid.
        """
        import torch

        args = self.scheme.weights
        scale = matrix.scales.to(torch.float32)
        if args.strategy == "tensor":
            scale = scale[0, :1]
        elif args.strategy == "block":
            scale = scale[:: args.block_structure[0]]
        parts = {"weight": matrix.dense(torch.float32), "weight_scale": scale.contiguous()}
        if matrix.whole is not None:
            parts["weight_scale"] = parts["weight_scale"] * matrix.whole
            # Layers that share one have each its own on disk.
            parts["weight_global_scale"] = matrix.whole.reshape(1).clone()
        if not args.symmetric:
            # The library counts codes from the middle.
            middle = 2 ** (args.num_bits - 1)
            parts["weight_zero_point"] = (matrix.zeros.to(torch.int16) - middle).to(torch.int8)
        return self._compressed(parts, inputs)

    def round(
        self,
        weight: "torch.Tensor",
        extreme: "torch.Tensor | None" = None,
        inputs: "torch.Tensor | None" = None,
    ) -> Parts:
        """See :meth:`Encoder.round`; in the weights' own dtype and in the library's own steps.

        So does llm-compressor's ``QuantizationModifier``, of which this gives every bit.
        """
        import torch
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        from qsweep.formats.numbers.rounding import round_to_nearest

        if self.own is not None:
            return self.pack(round_to_nearest(weight.to(torch.float32), self.own), inputs)
        args = self.scheme.weights
        whole = None
        if args.strategy == "tensor_group":
            reach = weight.abs().amax() if extreme is None else extreme.to(weight.device)
            reach = reach.reshape(1)
            whole = generate_gparam(-reach, reach)
        low, high = _extent(weight, args)
        scale, zero = calculate_qparams(low, high, args, global_scale=whole)
        parts = {
            "weight": weight,
            "weight_scale": scale.to(torch.promote_types(scale.dtype, weight.dtype)),
        }
        if whole is not None:
            parts["weight_global_scale"] = whole
        if not args.symmetric:
            parts["weight_zero_point"] = zero
        return self._compressed(parts, inputs)

    def settings(
        self, unquantized: Sequence[str], others: Sequence[Differing] = ()
    ) -> dict[str, Any]:
        """See :meth:`Encoder.settings`."""
        import compressed_tensors
        from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

        groups = {"group_0": self._group(["Linear"])}
        before: list[str] = []
        for expression, encoder in others:
            if encoder is None:
                continue  # those layers are among the unquantized ones
            assert isinstance(encoder, CompressedEncoder)
            groups[f"group_{len(groups)}"] = encoder._group([_target(expression, before)])
            before.append(expression)
        formats = {group.format for group in groups.values()}
        config = QuantizationConfig(
            config_groups=groups,
            format=self.stored_as if len(formats) == 1 else "mixed-precision",
            quantization_status=QuantizationStatus.COMPRESSED,
            ignore=["lm_head", *(_below(name) for name in unquantized)],
        )
        return {
            **config.model_dump(mode="json"),
            "quant_method": "compressed-tensors",
            "version": compressed_tensors.__version__,
            "sparsity_config": {},
            "transform_config": {},
        }

    def _group(self, targets: list[str]) -> "QuantizationScheme":
        return self.scheme.model_copy(update={"format": self.stored_as, "targets": targets})

    def _compressed(self, parts: "dict[str, torch.Tensor]", inputs: "torch.Tensor | None") -> Parts:
        import torch
        from compressed_tensors.compressors import BaseCompressor

        compressor = BaseCompressor.get_value_from_registry(self.stored_as)
        found: dict[str, torch.Tensor] = compressor.compress(parts, self.scheme)
        scale = found["weight_scale"]
        if scale.dtype in (torch.float32, torch.float16, torch.bfloat16):
            found["weight_scale"] = scale.to(self.dtype)
        args = self.scheme.input_activations
        if inputs is not None and args is not None and args.dynamic is not True:
            found |= self._of_inputs(inputs)
        return found

    def _of_inputs(self, extreme: "torch.Tensor") -> "dict[str, torch.Tensor]":
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        args = self.scheme.input_activations
        reach = extreme.reshape(1)
        if args.strategy == "tensor_group":
            return {"input_global_scale": generate_gparam(-reach, reach)}
        scale, _ = calculate_qparams(-reach, reach, args)
        return {"input_scale": scale.to(self.dtype)}


def _extent(weight: "torch.Tensor", args: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """Lowest and highest value of what shares a scale, shaped as the library's scales are."""
    from compressed_tensors.quantization.utils import maybe_pad_tensor_for_block_quant

    if args.strategy == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        rows, columns = args.block_structure
        padded = maybe_pad_tensor_for_block_quant(weight, tuple(args.block_structure))
        blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    grouped = weight.unflatten(1, (-1, args.group_size))
    return grouped.amin(-1), grouped.amax(-1)


def _target(expression: str, before: Sequence[str]) -> str:
    """A target for layers that match an expression for whole names, and none of those before it.

    The library looks at targets in alphabetical order, so that they must not overlap.
    """
    others = "|".join(rf"(?:.*\.)?(?:{one})" for one in before)
    return rf"re:{f'(?!(?:{others})$)' if others else ''}(.*\.)?{expression}$"


def _below(name: str) -> str:
    """An expression for a module and all that is below it, in memory perhaps under a longer name."""
    return rf"re:(.*\.)?{re.escape(name)}(\..*)?$"
