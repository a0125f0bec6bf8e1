"""What an artifact says of activations: how inputs and outputs of a layer are quantized when served.

In compressed-tensors' own words, its ``QuantizationArgs``, whatever the container: what rounds them is
one function for all (:mod:`qsweep.evaluate.activations`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, QsweepError

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from torch import Tensor


class NotSimulated(QsweepError):
    """What is served beside the weights cannot be simulated; the text says why, in one line."""


@dataclass(frozen=True, eq=False)
class Rounding:
    """How one tensor of activations [..., channels] is quantized.

    Attributes:
        args: Numbers and granularity, and whether scales are found while it runs.
        scale: Where that is static: of the tensor [1], or of each group of channels [groups].
        zero_point: The same, where the grid is asymmetric.
        global_scale: [1], what the scales of groups are multiplied by before they are rounded.
        factor: [channels], what activations are multiplied by before they are quantized, and
            divided by afterwards: here the weights have it in them.
        limit: Activations are cut off at this magnitude first; None: nowhere.
        power_of_two: Whether a scale is raised to the next power of two.
    """

    args: "QuantizationArgs"
    scale: "Tensor | None" = None
    zero_point: "Tensor | None" = None
    global_scale: "Tensor | None" = None
    factor: "Tensor | None" = None
    limit: float | None = None
    power_of_two: bool = False

    def on(self, device: "torch.device") -> "Rounding":
        """The same with its tensors on a device, where activations are."""
        tensors = ("scale", "zero_point", "global_scale", "factor")
        moved = {n: t.to(device) for n in tensors if (t := getattr(self, n)) is not None}
        return replace(self, **moved) if moved else self

    @property
    def needs_all_tokens(self) -> bool:
        """Whether a scale found while it runs is one for all tokens that are run at once."""
        return self.args.dynamic is True and self.args.strategy == "tensor"


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """What is done to a layer's inputs and outputs; None: nothing."""

    inputs: Rounding | None = None
    outputs: Rounding | None = None


def rounding(
    layer: str, of: str, args: "QuantizationArgs", stored: Mapping[str, "Tensor"], **more: Any
) -> Rounding:
    """How a layer's ``input`` or ``output`` is quantized, with the scales that are stored for it.

    Args:
        layer: Whose.
        of: ``input`` or ``output``, as in ``input_scale``.
        args: How.
        stored: Its static parts by their names.
        more: Further attributes.

    Raises:
        ArtifactCorrupt: One that is due is missing, or of another size; without the path.
        NotSimulated: The library knows no such activations.
    """
    if args.strategy not in ("tensor", "token", "group", "tensor_group"):
        raise NotSimulated(f"{layer}: {of} activations by {args.strategy} are not simulated")
    if f"{of}_g_idx" in stored:
        raise NotSimulated(f"{layer}: groups of {of} activations in an order of their own")
    parts: dict[str, Any] = {}
    if args.dynamic is False:
        parts["scale"] = _part(layer, f"{of}_scale", stored)
        if not args.symmetric:
            parts["zero_point"] = _part(layer, f"{of}_zero_point", stored)
    if args.strategy == "tensor_group":
        parts["global_scale"] = _part(layer, f"{of}_global_scale", stored)
    for name, part in parts.items():
        if part.numel() != 1 and (args.strategy == "tensor" or name == "global_scale"):
            raise ArtifactCorrupt(
                f"{layer}: {of}_{name} has the shape {list(part.shape)}, where one number is due"
            )
    return Rounding(args, **parts, **more)


def _part(layer: str, name: str, stored: Mapping[str, "Tensor"]) -> "Tensor":
    import torch

    if (part := stored.get(name)) is None:
        raise ArtifactCorrupt(f"{layer} has no {name}, which its activations are quantized with")
    return part.to(torch.float32).reshape(-1)
