"""How far an artifact's weights are from the model's, one layer at a time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import ArtifactCorrupt, IncompatibleTrial
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container
from qsweep.formats.restacked import splits_in_halves
from qsweep.formats.weight_errors import differences
from qsweep.formats.weights import open_weights
from qsweep.models.experts import ExpertLinear, Part
from qsweep.models.facts import read_tensors
from qsweep.models.source import SourceModel
from qsweep.models.spelling import Spelling
from qsweep.quantizers.native.graph import is_transposed


class Candidate:
    """An artifact whose layers could stand in for the model's, each by itself.

    Args:
        artifact: The artifact.
        model: The unquantized model that it was made from.
        spelling: What the checkpoint calls what is in memory.

    Raises:
        ArtifactCorrupt: Its files cannot be read.
        IncompatibleTrial: Its layers cannot be swapped one by one: scales went into the layers before.
    """

    def __init__(self, artifact: Artifact, model: SourceModel, spelling: Spelling):
        self._artifact, self._spelling = artifact, spelling
        kind = container(artifact.format)
        dense = kind.dense_weights(artifact, model.path, model.device)
        if dense is None:
            dense = _slices(open_weights(artifact.files))
        self._dense: Mapping[str, Any] = dense
        self._base = _slices(open_weights(model.path))
        self._halves = splits_in_halves(artifact.files)
        # Where in a tensor of the checkpoint a layer lies, and the stacks last read.
        self._rows: dict[str, slice] = {}
        self._turned: dict[str, bool] = {}
        self._stacks: dict[str, torch.Tensor] = {}
        self._require_unfolded(model)

    def error(self, name: str, module: nn.Module) -> torch.Tensor | None:
        """What its weight is more than the model's, float32 [out, in], of embeddings [vocabulary, width].

        Args:
            name: The layer's in memory.
            module: The layer.

        Returns:
            None where the artifact has no weight of it: the model's own stays.

        Raises:
            ArtifactCorrupt: Some of it is NaN or infinite.
            IncompatibleTrial: It lies in the artifact in a way that is not followed.
        """
        weight = self._weight(name, module)
        if weight is None:
            return None
        base = module.weight
        assert isinstance(base, torch.Tensor)
        if is_transposed(module):
            base, weight = base.T, weight.T
        if weight.shape != base.shape:
            raise ArtifactCorrupt(
                f"{self._artifact.files}: {self._spelling.layer(name)} is {list(weight.shape)}, and "
                f"the model's {list(base.shape)}"
            )
        error = weight.to(base.device, torch.float32) - base.detach().float()
        if not bool(error.isfinite().all()):
            raise ArtifactCorrupt(
                f"{self._artifact.files}: {self._spelling.layer(name)} has weights that are NaN or "
                "infinite; make it again"
            )
        return error

    def _weight(self, name: str, module: nn.Module) -> torch.Tensor | None:
        # As the artifact has it: what is written layer by layer may be called as in memory.
        expert = isinstance(module, ExpertLinear)
        for called in (f"{self._spelling.layer(name)}.weight", f"{name}.weight"):
            if called in self._dense:
                if isinstance(module, ExpertLinear) and module.part.interleaved and self._halves:
                    raise IncompatibleTrial(
                        f"{self._artifact.files}: {name} is another half of the experts' rows than the "
                        "model's, so that it cannot be compared; quantize with quant.backend=native"
                    )
                return _read(self._dense[called])
        if name in self._spelling.split:
            whole = f"{self._spelling.split[name]}.weight"
            return self._part_of(name, whole, module) if whole in self._dense else None
        return self._from_stack(name, module) if expert else None

    def _part_of(self, name: str, whole: str, module: nn.Module) -> torch.Tensor:
        """Of a layer that transformers takes apart: its rows of the checkpoint's."""
        if name not in self._rows:
            own = module.weight
            assert isinstance(own, torch.Tensor)
            rows = _rows_of(own, _read(self._base[whole]).to(own))
            if rows is None:
                raise IncompatibleTrial(
                    f"{name}: transformers makes it of {whole} in a way that is not followed here"
                )
            self._rows[name] = rows
        return _read(self._dense[whole])[self._rows[name]]

    def _from_stack(self, name: str, module: nn.Module) -> torch.Tensor | None:
        """Of an expert that lies in a stack with others: its part of that."""
        assert isinstance(module, ExpertLinear)
        holder = name.rsplit(".", 2)[0]
        in_memory = f"{holder}.{module.part.parameter}"
        stack = self._spelling.plain.get(in_memory, in_memory)
        if stack not in self._dense:
            return None
        if stack not in self._turned:
            self._turned[stack] = self._is_turned(stack, module)
        if stack not in self._stacks:
            # Those of another layer are of no more use.
            self._stacks = {n: t for n, t in self._stacks.items() if n.startswith(_parent(stack))}
            self._stacks[stack] = _read(self._dense[stack])
        return _expert(self._stacks[stack], module.part, module.expert, self._turned[stack])

    def _is_turned(self, stack: str, module: ExpertLinear) -> bool:
        base = _read(self._base[stack])
        for turned in (False, True):
            own = _expert(base, module.part, module.expert, turned)
            weight = module.weight
            if own.shape == weight.shape and torch.equal(own.to(weight), weight):
                return turned
        raise IncompatibleTrial(
            f"{stack}: transformers turns it into experts in a way that is not followed here"
        )

    def _require_unfolded(self, model: SourceModel) -> None:
        if self._artifact.format == "awq":
            raise IncompatibleTrial(_folded(self._artifact, "AWQ puts scales into other layers"))
        for name, info in read_tensors(model.path).items():
            if len(info.shape) != 1 or name not in self._dense:
                continue
            weight = _read(self._dense[name])
            if differences(weight, self._base[name], model.device, numbers=True).changed:
                raise IncompatibleTrial(_folded(self._artifact, f"{name} is not the model's"))


def _folded(artifact: Artifact, why: str) -> str:
    return (
        f"{artifact.files}: {why}, so that no layer of it can stand in for the model's by itself; "
        "take GPTQ, rounding or GGUF"
    )


def _slices(handles: Mapping[str, Any]) -> dict[str, Any]:
    return {name: handle.get_slice(name) for name, handle in handles.items()}


def _rows_of(part: torch.Tensor, whole: torch.Tensor) -> slice | None:
    """Where the rows of a part lie: one behind the other, or alternating with others'."""
    starts = (whole == part[0]).all(1).nonzero().flatten().tolist()
    nexts = (whole == part[min(1, len(part) - 1)]).all(1).nonzero().flatten().tolist()
    for start in starts:
        for step in {max(1, other - start) for other in nexts}:
            rows = slice(start, start + step * len(part), step)
            if torch.equal(whole[rows], part):
                return rows
    return None


def _read(value: Any) -> torch.Tensor:
    found: torch.Tensor = value[...]
    return found


def _parent(tensor: str) -> str:
    return tensor.removesuffix(".weight").rpartition(".")[0] + "."


def _expert(stack: torch.Tensor, part: Part, expert: int, turned: bool) -> torch.Tensor:
    return part.of(stack.transpose(1, 2) if turned else stack, expert)
