"""A Hugging Face checkpoint's tensors by name, mapped from its safetensors files."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.errors import UnknownLayout
from qsweep.models.facts import TensorHeader, read_outline
from qsweep.models.stacks import Place, stack_places

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """Where each tensor of a checkpoint lies."""

    path: Path
    infos: dict[str, TensorHeader]

    @property
    def base_type(self) -> str:
        """The smallest GGUF type that holds every matrix exactly: bf16, f16 or f32."""
        dtypes = {info.dtype for info in self.infos.values() if len(info.shape) >= 2}
        only = dtypes.pop() if len(dtypes) == 1 else ""
        return {"BF16": "bf16", "F16": "f16"}.get(only, "f32")

    def place(self, layer: str) -> Place:
        """Where the weight of a linear layer lies; an expert's may be a part of a stack."""
        return self._stacked.get(layer) or Place(f"{layer}.weight")

    @cached_property
    def _stacked(self) -> dict[str, Place]:
        return stack_places({name: info.shape for name, info in self.infos.items()})

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Every tensor [...] with its name, file by file, in its own dtype."""
        from safetensors import safe_open

        for path in sorted({info.file for info in self.infos.values()}):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    yield name, file.get_tensor(name)

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor [...] in its own dtype. Raises UnknownLayout where only its shape is here."""
        from safetensors import safe_open

        if not self.infos[name].file.exists():
            raise UnknownLayout(f"{self.path}: holds the head of its model alone, and no {name}")
        with safe_open(self.infos[name].file, framework="pt") as file:
            return file.get_tensor(name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Index a checkpoint's directory. Raises ConfigError where its files are not whole."""
    return Checkpoint(path, read_outline(path))
