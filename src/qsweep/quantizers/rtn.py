"""Round to nearest: no calibration, no error feedback. The baseline that every method must beat."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.gptq import CONTAINER, format_of
from qsweep.formats.packed import PackedContainer, kept_settings
from qsweep.models.source import SourceModel
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.text.calibration import CalibrationTokens

if TYPE_CHECKING:
    import torch

    from qsweep.formats.packing import QuantizedMatrix


@dataclass(frozen=True)
class RTN(GroupedOptions):
    """Each weight becomes the nearest point of its group's grid, in a GPTQ checkpoint.

    ``sym`` auto means false: a zero point per group, as in the baseline of the papers.

    >>> RTN(bits=3).options()
    {'bits': 3, 'group_size': 128, 'sym': False}
    """

    method: ClassVar[str] = "rtn"
    backend: ClassVar[str] = "qsweep"
    uses_calibration: ClassVar[bool] = False
    container: ClassVar[PackedContainer] = CONTAINER

    def version(self) -> str:
        """The revision of this module."""
        return "1"

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a GPTQ checkpoint, one tensor at a time; asymmetric ones in version 2."""
        import torch
        from safetensors import safe_open

        from qsweep.formats.hf import ShardWriter, write_frame
        from qsweep.models.facts import CONV1D_TYPES, other_linears, read_tensors, weight_files

        kept = self.container.kept_layers(self.group_size, model.facts.linears)
        linears = model.facts.linears.keys() - set(kept)
        transposed = model.facts.model_type in CONV1D_TYPES
        settings = _settings(self.bits, self.group_size, self.symmetric)
        writer, done = ShardWriter(out), 0
        for file in weight_files(model.path):
            with safe_open(file, framework="pt", device="cpu") as handle:
                for name in handle.keys():  # noqa: SIM118 - it is no mapping
                    tensor, layer = handle.get_tensor(name), name.removesuffix(".weight")
                    if layer == name or layer not in linears:
                        writer.add(name, tensor)
                        continue
                    weight = tensor.to(model.device, torch.float32)
                    weight = weight.T if transposed else weight
                    matrix = round_to_grid(weight, self.bits, self.group_size, self.symmetric)
                    for part, packed in self.container.pack(matrix, settings).items():
                        writer.add(f"{layer}.{part}", packed)
                    done += 1
                    progress("round", done / len(linears))
        writer.close()
        left = kept_settings([*kept, *other_linears(read_tensors(model.path))])
        write_frame(model.path, out, settings | left)
        return Artifact(
            path=out,
            format=self.container.name,
            size=self.container.size(out),
            runtimes=self.runtimes,
            details={"kept_layers": sorted(kept)} if kept else {},
        )


def round_to_grid(
    weight: "torch.Tensor", bits: int, group_size: int, sym: bool
) -> "QuantizedMatrix":
    """The nearest codes for a matrix, each group on a uniform grid that spans its values and 0.

    The grids are GPTQ's own (Frantar et al. 2022, section 4), so that beside GPTQ only the rounding
    differs. Scales are rounded to float16 first, as they will be stored.

    Args:
        weight: float32 [out, in].
        bits: Bits per code.
        group_size: Inputs per group, a divisor of ``in``, or -1 for one group per row.
        sym: Whether zero stands in the middle of the grid.
    """
    import torch

    from qsweep.formats.packing import QuantizedMatrix
    from qsweep.quantizers.native.rounding import Scheme, encode, find_grid

    scheme = Scheme(bits, sym)
    grouped = weight.reshape(len(weight), -1, weight.shape[1] if group_size == -1 else group_size)
    scales, zeros = find_grid(grouped, scheme)
    codes = encode(grouped, scales[..., None], zeros[..., None], scheme.top)
    return QuantizedMatrix(codes.to(torch.uint8).view_as(weight), zeros.to(torch.uint8), scales)


def _settings(bits: int, group_size: int, sym: bool) -> dict[str, Any]:
    name = format_of(sym)
    return {
        "quant_method": "gptq",
        "checkpoint_format": name,
        "format": name,
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "desc_act": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": ["qsweep:rtn"]},
    }
