"""GPTQ checkpoints, as GPTQModel, AutoGPTQ, transformers and vLLM read them.

A layer of ``out`` x ``in`` weights: ``qweight`` [in * bits / 32, out] packs along the inputs,
``qzeros`` [groups, out * bits / 32] along the outputs, ``scales`` [groups, out], ``g_idx`` [in] names
each input's group. Version 1 of the format stores zero points less 1, version 2 as they are, and so
does ``gptq_p``, whose codes lie in planes (:mod:`qsweep.formats.planar`). Words have 32 bits, or 8 or
16 where GPTQModel was told so. Marlin's layout is :mod:`qsweep.formats.marlin`'s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.checkpoint import Settings
from qsweep.formats.marlin import MARLIN_BITS, unpack_marlin
from qsweep.formats.packed import (
    MARLIN_GROUP_SIZES,
    PARTS,
    PackedContainer,
    PackedLayer,
    Shapes,
    layer_of,
)
from qsweep.formats.packed_settings import layout_of
from qsweep.formats.packing import QuantizedMatrix, pack, unpack
from qsweep.formats.planar import PLANES, pack_planar, unpack_planar
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch

# Layouts that are read, by the version of their zero points; marlin has none.
_VERSIONS = {"": 1, "gptq": 1, "gptq_v2": 2, "gptq_p": 2, "marlin": 2}


class GPTQContainer(PackedContainer):
    """See the module's docstring.

    >>> fits = GPTQContainer().fits
    >>> fits(64, (128, 256)), fits(64, (4, 256)), fits(64, (128, 96))
    (True, False, False)
    """

    name = "gptq"
    quant_methods = ("gptq", "marlin")
    parts = PARTS[:3]
    optional = ("g_idx", "B", "s", "workspace", "Workspace")
    codes = ("qweight", "B")
    group_sizes = (16, 32, 64, 128, 256, 512, 1024)
    packed_sides = "rows and columns"

    def refusal(self, path: Path, settings: Mapping[str, Any]) -> str | None:
        """See :meth:`Container.refusal`."""
        layout = _layout(settings)
        if layout not in _VERSIONS:
            known = ", ".join(name for name in _VERSIONS if name)
            return f"its layout is {layout[:40]!r}; {known} are read"
        return refused_transform(settings)

    def needed(self, parts: Mapping[str, TensorHeader], settings: Settings) -> tuple[str, ...]:
        """See :meth:`QuantizedCheckpoint.needed`."""
        return ("B", "s") if "B" in parts else self.parts

    def pack(
        self, matrix: QuantizedMatrix, settings: Mapping[str, Any]
    ) -> "dict[str, torch.Tensor]":
        """See :meth:`PackedContainer.pack`."""
        return pack_gptq(matrix, settings["bits"], _VERSIONS[_layout(settings)])

    def layer(self, name: str, shapes: Shapes, settings: Settings) -> PackedLayer:
        """See :meth:`PackedContainer.layer`."""
        if "B" in shapes:
            return marlin_layer(name, shapes, settings, "B", "s")
        (rows, _), word = shapes["qweight"]
        (groups, outputs), _ = shapes["scales"]

        def expected(bits: int) -> tuple[int, dict[str, tuple[int, int]]]:
            inputs = shapes["g_idx"][0][0] if "g_idx" in shapes else rows * word // bits
            return inputs, {
                "qweight": (-(-inputs * bits // word), outputs),
                "qzeros": (groups, -(-outputs * bits // word)),
            }

        found = layer_of(name, outputs, groups, settings, shapes, expected)
        if word != 32 and found.bits in PLANES:
            raise ArtifactCorrupt(f"{name}: codes of {found.bits} bits in words of {word}, not 32")
        return found

    def unpack(
        self, layer: PackedLayer, tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """See :meth:`PackedContainer.unpack`."""
        import torch

        if "B" in tensors:
            return unpack_marlin(tensors["B"], tensors["s"]).dense(torch.float32)
        layout = _layout(settings)
        matrix = unpack_gptq(
            tensors["qweight"],
            tensors["qzeros"],
            tensors["scales"],
            _groups(layer, tensors.get("g_idx"), tensors["qweight"].device),
            layer.bits,
            _VERSIONS.get(layout, 1),
            planar=layer.bits > 4 or layout == "gptq_p",
        )
        return matrix.dense(torch.float32)

    def packs(self, shape: tuple[int, int]) -> bool:
        """Words of 32 bits lie along both dimensions."""
        return shape[0] % 32 == 0 and shape[1] % 32 == 0

    def runtimes(self, bits: int, group_size: int, sym: bool) -> tuple[str, ...]:
        """See :meth:`PackedContainer.runtimes`."""
        names = ["gptqmodel", "transformers"]
        if group_size in MARLIN_GROUP_SIZES and sym and bits in (4, 8):
            names.append("vllm")
        if bits == 4 and sym:
            names.append("exllamav2")
        return tuple(names)


CONTAINER = GPTQContainer()


def format_of(sym: bool) -> str:
    """The version to write: of version 1, loaders disagree on what becomes of a zero point of 0."""
    return "gptq" if sym else "gptq_v2"


def marlin_layer(
    name: str, shapes: Shapes, settings: Settings, codes: str, scales: str
) -> PackedLayer:
    """See :meth:`PackedContainer.layer`; of Marlin's layout, with its parts called that way."""
    (groups, outputs), _ = shapes[scales]
    inputs = shapes[codes][0][0] * 16

    def expected(bits: int) -> tuple[int, dict[str, tuple[int, int]]]:
        return inputs, {codes: (inputs // 16, outputs * bits // 2)}

    found = layer_of(name, outputs, groups, settings, shapes, expected)
    if found.bits != MARLIN_BITS or outputs % 64:
        raise ArtifactCorrupt(
            f"{name}: {found.bits} bits and {outputs} outputs, where Marlin's layout has 4 bits "
            "and a multiple of 64 outputs"
        )
    return found


def refused_transform(settings: Settings) -> str | None:
    """Why a checkpoint's weights are not those of the model that its codes stand in, if so."""
    if rotation := settings.get("rotation"):
        return f"its inputs are rotated while it runs (rotation: {str(rotation)[:40]})"
    return None


def unpack_gptq(
    qweight: "torch.Tensor",
    qzeros: "torch.Tensor",
    scales: "torch.Tensor",
    g_idx: "torch.Tensor",
    bits: int,
    version: int = 1,
    planar: bool = False,
) -> QuantizedMatrix:
    """Read a GPTQ layer.

    Args:
        qweight: Codes, [in * bits / 32, out].
        qzeros: Zero points, [groups, out * bits / 32].
        scales: [groups, out].
        g_idx: The group of each input, [in].
        bits: Bits per code.
        version: 1 where zero points are stored less 1.
        planar: Whether codes lie in planes.
    """
    import torch

    inputs, outputs = g_idx.shape[0], scales.shape[1]
    lies_in_planes = planar and bits in PLANES
    read = unpack_planar if lies_in_planes else unpack
    codes = read(qweight.T, bits, inputs)
    if version == 1:
        qzeros = _shift_zeros(qzeros, bits, 1, lies_in_planes)
    zeros = read(qzeros, bits, outputs)
    group, groups = g_idx.to(torch.int64), scales.shape[0]
    consecutive = inputs % groups == 0 and torch.equal(
        group, torch.arange(inputs, device=group.device) // (inputs // groups)
    )
    return QuantizedMatrix(codes, zeros.T, scales.T, None if consecutive else group)


def pack_gptq(matrix: QuantizedMatrix, bits: int, version: int = 1) -> dict[str, "torch.Tensor"]:
    """The inverse of :func:`unpack_gptq`: its four tensors by name, scales [groups, out] in float16."""
    import torch

    inputs, groups = matrix.codes.shape[1], matrix.scales.shape[1]
    g_idx = matrix.g_idx
    if g_idx is None:
        g_idx = torch.arange(inputs, device=matrix.codes.device) // (inputs // groups)
    qzeros = pack(matrix.zeros.T, bits)
    return {
        "qweight": pack(matrix.codes, bits).T.contiguous(),
        "qzeros": _shift_zeros(qzeros, bits, -1) if version == 1 else qzeros,
        "scales": matrix.scales.T.to(torch.float16).contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }


def _layout(settings: Settings) -> str:
    return layout_of(settings, ("format", "checkpoint_format"))


def _groups(
    layer: PackedLayer, g_idx: "torch.Tensor | None", device: "torch.device"
) -> "torch.Tensor":
    # Files from before act-order have no g_idx, or one of zeros that nobody filled.
    import torch

    if g_idx is None or (layer.groups > 1 and not g_idx.any()):
        return torch.arange(layer.inputs, device=device) // layer.group_size
    least, most = int(g_idx.min()), int(g_idx.max())
    if least < 0 or most >= layer.groups:
        raise ArtifactCorrupt(
            f"{layer.name}: g_idx names group {least if least < 0 else most}, and there are "
            f"{layer.groups}"
        )
    return g_idx


def _shift_zeros(
    qzeros: "torch.Tensor", bits: int, by: int, planar: bool = False
) -> "torch.Tensor":
    # GPTQModel converts between the versions on whole words at 2, 4 and 8 bits, so that a zero
    # point of 0 borrows from its neighbour, and code by code at others. What it wrote must be read
    # the same way.
    import torch

    if bits in (2, 4, 8):
        word = 8 * qzeros.element_size()
        ones = sum(1 << place for place in range(0, word, bits))
        return (qzeros.to(torch.int64) + by * ones).to(qzeros.dtype)
    count = qzeros.shape[1] * 32 // bits
    read, write = (unpack_planar, pack_planar) if planar else (unpack, pack)
    shifted = (read(qzeros, bits, count).to(torch.int16) + by) & ((1 << bits) - 1)
    return write(shifted, bits)[:, : qzeros.shape[1]]
