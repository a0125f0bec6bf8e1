"""llama.cpp's formats, through llama-cpp-python and llama.cpp's own converter."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.gguf.types import BY_BITS, FileType, TensorType, file_type, tensor_type
from qsweep.formats.numbers import Int, NumberFormat
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.conversion.artifact import (
    gguf_artifact,
    linear_tensors,
    llama_cpp_version,
    require_converter,
    require_runnable,
)
from qsweep.quantizers.gguf.rules import check_types, typed_rule, uses_importance
from qsweep.quantizers.gguf.tensor_types import types_of_tensors
from qsweep.quantizers.rules import read_rules
from qsweep.text.calibration import CalibrationTokens

if TYPE_CHECKING:
    import torch

    from qsweep.quantizers.conversion.base import UnquantizedFile


@dataclass(frozen=True)
class GGUF:
    """A llama.cpp file type.

    ``bits`` picks the usual one: Q2_K, Q3_K_M, Q4_K_M, Q5_K_M, Q6_K, Q8_0. ``type`` names any
    other, and ``bits`` does not count then. With ``imatrix`` the calibration set becomes an
    importance matrix, which weighs rounding errors by how strongly each input channel is driven.
    ``format`` picks the type that has the weights of a number format; activations stay as they are.
    ``rules`` say of single layers, of the embedding and of the output head which type they get; a
    mapping as :mod:`qsweep.quantizers.gguf.rules` has it, which becomes a tuple of its rules.

    >>> GGUF(bits=4).options()
    {'bits': 4, 'type': 'Q4_K_M', 'imatrix': False}
    """

    bits: int | None = 4
    type: str | None = None
    imatrix: bool = False
    format: NumberFormat = field(default_factory=Int)
    rules: Any = ()

    method: ClassVar[str] = "gguf"
    backend: ClassVar[str] = "llama.cpp"
    shows_experts_all_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.type is not None:
            file_type(self.type)
        elif self.bits is None:
            raise ConfigError("quant=gguf: give bits or quant.type")
        elif self.bits < 1:
            raise ConfigError(f"bits={self.bits}: must be at least 1")
        object.__setattr__(self, "rules", read_rules(self.rules, typed_rule))  # frozen

    @property
    def file_type(self) -> FileType | None:
        """What will be written; None if ``bits`` names nothing."""
        own = BY_BITS.get(self.bits or 0) if self.format.name == "int" else self.format.gguf
        name = self.type or own
        return file_type(name) if name else None

    @property
    def uses_calibration(self) -> bool:
        """Whether an importance matrix is made, and counts."""
        if not self.imatrix:
            return False
        usual = self.file_type is None or self.file_type.imatrix != "ignored"
        return usual or any(uses_importance(rule) for rule in self.rules)

    @property
    def uses_importance(self) -> bool:
        """The importance matrix is all that calibration text is for."""
        return self.uses_calibration

    def options(self) -> dict[str, Any]:
        """The effective options: ``bits`` is the type's nominal width; rules where there are any."""
        type_ = self.file_type
        rules = {"rules": [str(rule) for rule in self.rules]} if self.rules else {}
        return {
            "bits": type_.bits if type_ else self.bits,
            "type": type_.name if type_ else None,
            "imatrix": self.uses_calibration,
            **rules,
        }

    def version(self) -> str:
        """llama-cpp-python's version, or ``missing``."""
        return llama_cpp_version()

    def check(self, model: ModelFacts) -> None:
        """Refuse what llama.cpp cannot write.

        Raises:
            IncompatibleTrial: no such width, an importance matrix is needed, rules that change nothing
                or cannot be followed, or the converter does not know the architecture.
            BackendUnavailable: llama-cpp-python or the converter is not installed.
        """
        self._check_format()
        type_ = self.file_type
        if type_ is None:
            raise IncompatibleTrial(
                f"gguf has no type of {self.bits} bits; there are "
                f"{', '.join(map(str, BY_BITS))}, or name one with quant.type"
            )
        if type_.imatrix == "needed" and not self.imatrix:
            raise IncompatibleTrial(
                f"gguf {type_.name} needs an importance matrix: set quant.imatrix=true"
            )
        if self.rules:
            check_types(self.rules, model, imatrix=self.imatrix)
        require_converter(model)

    def _check_format(self) -> None:
        name, container = self.format.name, self.format.container
        if container not in ("auto", "gguf"):
            raise IncompatibleTrial(f"gguf: container={container} is written by rtn, gptq and awq")
        if name == "int":
            return
        if self.type is not None:
            raise IncompatibleTrial(
                f"gguf: quant.type={self.type} and format={name} both name a type; leave one out"
            )
        if self.format.gguf is None:
            raise IncompatibleTrial(
                f"gguf has no type with the weights of format={name}; it has those of nvfp4, mxfp4 "
                "and ternary, and types of its own, by bits or quant.type"
            )

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write ``model.gguf``, with the tokenizer's files beside it.

        Raises:
            IncompatibleTrial: the converter refuses the model, or what it writes cannot be led back
                to the checkpoint and nobody asked for llama.cpp's own run.
            TrialFailed: llama.cpp refuses the type.
        """
        self.check(model.facts)
        from qsweep.formats.gguf.dense import MODEL_FILE
        from qsweep.formats.gguf.native import quantize_file
        from qsweep.quantizers.conversion.base import unquantized

        assert (type_ := self.file_type) is not None
        progress("convert", None)
        with unquantized(model, out) as base:
            require_runnable(model.facts.name, base.unexplained, base.agreement, model.own_run)
            matrix = None
            if self.uses_calibration and calibration is not None:
                matrix = _importance(model, calibration, base, progress)
            progress("quantize", None)
            overrides = _types_of_linears(model.facts, base, type_)
            if type_.linears is not None and not overrides:
                raise IncompatibleTrial(
                    f"gguf {type_.name}: none of the linear layers of {model.facts.name} is found in "
                    "the converted file, or its rows are no blocks; the type would be a name only"
                )
            facts, details, written = model.facts, {"imatrix_entries": len(matrix or ())}, type_
            if self.rules:
                chosen = types_of_tensors(self.rules, facts, base, type_, matrix, overrides)
                written, overrides, facts = chosen.written, chosen.patterns, chosen.facts
                details |= chosen.details
            quantize_file(base.path, out / MODEL_FILE, written, matrix, overrides)
        return gguf_artifact(replace(model, facts=facts), base, type_, out, details)


def _importance(
    model: SourceModel, calibration: CalibrationTokens, base: "UnquantizedFile", progress: Progress
) -> "dict[str, torch.Tensor]":
    from qsweep.quantizers.importance import measure_importance

    found = calibration.importance
    if found is None:
        found = measure_importance(model, calibration, progress).importance or {}
    return _by_tensor(found, base)


def _by_tensor(
    found: "Mapping[str, torch.Tensor]", base: "UnquantizedFile"
) -> "dict[str, torch.Tensor]":
    """Importance of input channels by tensor of the file: of a stack, matrix after matrix.

    Where the file's columns are not the layer's inputs there is none. Experts that no token was sent
    to, whose importance is zero or missing, get that of :func:`_filled`.
    """
    from qsweep.formats.gguf.reader import read_gguf

    parts: dict[str, dict[int | None, torch.Tensor]] = {}
    for name, values in found.items():
        place = base.checkpoint.place(name)
        rule = base.layout.rules.get(place.tensor)
        if rule is None or not bool(values.any()) or not rule.has_columns(turned=place.transposed):
            continue
        matrix = rule.slice if place.expert is None else place.expert
        for tensor in rule.tensors:
            parts.setdefault(tensor, {})[matrix] = values
    shapes = {name: info.shape for name, info in read_gguf(base.path).tensors.items()}
    matrices = {}
    for tensor, by_index in parts.items():
        shape = shapes[tensor]
        stack = range(shape[0] if len(shape) == 3 else 1)
        rows = [by_index.get(i, by_index.get(None)) for i in stack]
        if all(row is None or len(row) == shape[-1] for row in rows):
            matrices[tensor] = _filled(rows)
    return matrices


def _filled(rows: "Sequence[torch.Tensor | None]") -> "torch.Tensor":
    """The rows one after another, each channel as important as any other where there is none.

    llama.cpp's own tool does so, too (``load_imatrix`` in tools/quantize/quantize.cpp). On a trained
    mixture of 8 experts the weighted error of an expert that was left out was, at 4 bits, 4 % lower so
    for ``down`` than with the other experts' mean, and 0.5 % higher for ``gate`` and ``up``.
    """
    import torch

    known = next(row for row in rows if row is not None)
    return torch.cat([torch.ones_like(known) if row is None else row for row in rows])


def _types_of_linears(
    facts: ModelFacts, base: "UnquantizedFile", type_: FileType
) -> dict[str, TensorType]:
    """What linear layers are stored as, by patterns of their names, where the mixture does not say.

    Rows that its blocks do not divide are stored as the mixture has them.
    """
    from qsweep.formats.gguf.reader import read_gguf

    if type_.linears is None:
        return {}
    wanted, tensors = tensor_type(type_.linears), read_gguf(base.path).tensors
    names = sorted(linear_tensors(facts, base))
    fitting = [name for name in names if tensors[name].shape[-1] % wanted.block == 0]
    return {f"^{re.escape(name)}$": wanted for name in fitting}
