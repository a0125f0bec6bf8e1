"""A model to quantize, and what is known of it before anything is loaded."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before anything is loaded, read from its files' headers.

    ``linears`` are the weights of linear layers inside the decoder, by name without ``.weight``, as
    (out_features, in_features), those of experts one by one also where they are stored in stacks.
    Embeddings, norms and the output head are not among them, nor are those in ``kept``, such as
    routers, which stay in 16 bits unless somebody asks for them (:mod:`qsweep.models.roles`).
    ``experts`` tells whether the decoder is a mixture of experts; None where nobody looked.
    ``unread_experts`` are tensors of experts that are stored in a way that is not understood.
    ``dequantized_from`` says what it was before, such as ``fp8 block 128x128``, where only a
    quantized checkpoint was given.
    """

    name: str
    path: Path
    model_type: str
    linears: dict[str, tuple[int, int]]
    parameters: int
    max_length: int
    vocab_size: int
    experts: bool | None = None
    dequantized_from: str | None = None
    unread_experts: tuple[str, ...] = ()
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def all_linears(self) -> dict[str, tuple[int, int]]:
        """``linears`` and ``kept``."""
        return self.linears | self.kept


@dataclass(frozen=True)
class SourceModel:
    """A model to quantize: a directory with an unquantized Hugging Face checkpoint."""

    facts: ModelFacts
    device: str
    """``cpu`` or ``cuda:N``."""
    trust_remote_code: bool = False
    own_run: bool = False
    """Whether an artifact that only its runtime can run is wanted, too."""
    stream: bool | Literal["auto"] = False
    """Whether the weights of a decoder layer are read only while it is quantized, where the quantizer
    can; ``auto``: of a model that does not fit into memory."""

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        return self.facts.path
