"""Writing checkpoints of 4 bits as bitsandbytes has them, and transformers loads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qsweep.formats.encoder import Differing, Encoder, Parts

if TYPE_CHECKING:
    import torch

    from qsweep.formats.packing import QuantizedMatrix

_BLOCK = 64


@dataclass(frozen=True)
class BitsAndBytesEncoder(Encoder):
    """Writes layers of NF4 or FP4, each 64 weights of a row with a scale in float32.

    Attributes:
        type: Which of the two.
        double_quant: Whether scales are quantized, to 8 bits in blocks of 256.
        dtype: What weights are unpacked to, as the checkpoint states.
        runtimes: What serves it.
    """

    type: Literal["nf4", "fp4"]
    double_quant: bool
    dtype: "torch.dtype"
    runtimes: tuple[str, ...] = ()

    container = "bitsandbytes"

    @property
    def scale_dtype(self) -> "torch.dtype":  # type: ignore[override]
        """See :class:`Encoder`."""
        import torch

        return torch.float32

    def pack(self, matrix: "QuantizedMatrix", inputs: "torch.Tensor | None" = None) -> Parts:
        """See :meth:`Encoder.pack`."""
        from bitsandbytes.functional import QuantState

        assert matrix.table is not None
        codes = matrix.codes.flatten()
        state = QuantState(
            absmax=matrix.scales.flatten(),
            shape=matrix.codes.shape,
            code=matrix.table.clone(),
            blocksize=_BLOCK,
            quant_type=self.type,
            dtype=self.dtype,
        )
        # The first of two codes lies in the higher half of their byte.
        return _parts((codes[0::2] << 4 | codes[1::2])[:, None], state)

    def round(
        self,
        weight: "torch.Tensor",
        extreme: "torch.Tensor | None" = None,
        inputs: "torch.Tensor | None" = None,
    ) -> Parts:
        """See :meth:`Encoder.round`; by the library itself."""
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(
            weight.contiguous(),
            blocksize=_BLOCK,
            compress_statistics=self.double_quant,
            quant_type=self.type,
        )
        return _parts(codes, state)

    def settings(
        self, unquantized: Sequence[str], others: Sequence[Differing] = ()
    ) -> dict[str, Any]:
        """See :meth:`Encoder.settings`; of ``others`` there are only those that stay."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": self.type,
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["lm_head", *unquantized],
        }


def _parts(codes: "torch.Tensor", state: Any) -> Parts:
    return {"weight": codes, **{f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
