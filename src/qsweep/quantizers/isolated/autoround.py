"""AutoRound (SignRound) through Intel's package, in an environment of its own. CPU and CUDA.

Cheng et al. 2023, https://arxiv.org/abs/2309.05516: rounding and clipping of each weight are learnt
by signed gradient descent on the layer's output.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qsweep.base.errors import ConfigError, IncompatibleTrial, TrialFailed
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.awq import CONTAINER as AWQ_CONTAINER
from qsweep.formats.gguf.types import FileType, file_type
from qsweep.formats.gptq import CONTAINER as GPTQ_CONTAINER
from qsweep.formats.packed import PackedContainer
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.isolated.base import IsolatedQuantizer
from qsweep.quantizers.isolated.run import Recipe, quantize
from qsweep.text.calibration import CalibrationTokens

if TYPE_CHECKING:
    from qsweep.quantizers.conversion.base import UnquantizedFile

_ENVIRONMENT = "autoround"
# The llama.cpp types that it tunes for and writes, and which of them a width means.
_TYPES = (
    "Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_0 Q4_1 Q4_K_S Q4_K_M Q5_0 Q5_1 Q5_K_S Q5_K_M Q6_K Q8_0".split()
)
_BY_BITS = {2: "Q2_K_S", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0"}


@dataclass(frozen=True)
class AutoRound(IsolatedQuantizer):
    """AutoRound, saved in the format that ``export`` names.

    ``sym`` auto means true for gptq and false for awq. AWQ's format takes 4 bits. For gguf,
    ``bits`` picks the usual file type and ``type`` names any other exactly; ``group_size`` and
    ``sym`` are the type's own then.
    """

    export: Literal["gptq", "awq", "gguf"] = "gptq"
    type: str | None = None
    iters: int = 200
    seed: int = 0

    method: ClassVar[str] = "autoround"
    backend: ClassVar[str] = "auto-round"
    label: ClassVar[str] = "autoround"
    recipe: ClassVar[Recipe] = Recipe("run_autoround", _ENVIRONMENT, "gptq")

    def __post_init__(self) -> None:
        gguf = self.export == "gguf"
        if gguf:
            if self.type is not None:
                file_type(self.type)
        else:
            super().__post_init__()
            if self.type is not None:
                raise ConfigError(f"quant.type={self.type}: a GGUF type; quant.export=gguf")
        # Without tuning it rounds to nearest, after a search of its own for GGUF's scales.
        if self.iters < (0 if gguf else 1):
            raise ConfigError(f"quant.iters={self.iters}: at least 1; quant=rtn rounds to nearest")

    @property
    def file_type(self) -> FileType | None:
        """What is written with ``export`` gguf; None if ``bits`` names nothing."""
        name = self.type or _BY_BITS.get(self.bits)
        return file_type(name) if name else None

    @property
    def container(self) -> PackedContainer:  # type: ignore[override]
        """GPTQ's or AWQ's, as ``export`` says."""
        return AWQ_CONTAINER if self.export == "awq" else GPTQ_CONTAINER

    @property
    def sym_by_default(self) -> bool:  # type: ignore[override]
        """GPTQ's checkpoints are symmetric."""
        return self.export == "gptq"

    def options(self) -> dict[str, Any]:
        """The effective options."""
        tuning = {"export": self.export, "iters": self.iters, "seed": self.seed}
        if self.export == "gguf":
            type_ = self.file_type
            named = {"bits": type_.bits, "type": type_.name} if type_ else {"bits": self.bits}
            return named | tuning
        return super().options() | tuning

    def check(self, model: ModelFacts) -> None:
        """Refuse what the format cannot hold, and a missing environment. Raises IncompatibleTrial."""
        if self.export == "gguf":
            self.check_format()
            self._check_gguf(model)
            self.env.require(_ENVIRONMENT)
        else:
            super().check(model)

    @property
    def packed_bits(self) -> int:
        """As AWQ it exports 4 bits only."""
        return 4 if self.export == "awq" else self.bits

    def refuse(self, model: ModelFacts) -> None:
        """What its export cannot write. Raises IncompatibleTrial."""
        if self.export == "awq" and self.bits != 4:
            raise IncompatibleTrial(f"autoround exports AWQ at 4 bits only, not {self.bits}")
        if self.export == "gptq" and not self.symmetric:
            raise IncompatibleTrial(
                "autoround exports GPTQ in version 1, which loses zero points of 0: sym=true"
            )

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a GPTQ or AWQ checkpoint, or ``model.gguf``."""
        options = self.options()
        recipe = replace(self.recipe, writes=self.export)
        if self.export != "gguf":
            return quantize(
                recipe, self.env, options, model, calibration, out, progress, self.runtimes
            )
        assert (type_ := self.file_type) is not None
        from qsweep.formats.gguf.reader import read_gguf
        from qsweep.quantizers.conversion.artifact import require_runnable
        from qsweep.quantizers.conversion.artifact import runtimes as runtimes_of
        from qsweep.quantizers.conversion.base import unquantized

        progress("convert", None)
        with unquantized(model, out) as base:
            require_runnable(model.facts.name, base.unexplained, base.agreement, model.own_run)
            # Which pre-tokenizer it is, its own converter's table may not know.
            known = read_gguf(base.path).metadata.get("tokenizer.ggml.pre")
            # Its converter forgets what ours does, and nobody adds it there.
            served = () if base.added else runtimes_of(type_, base)
            return quantize(
                recipe, self.env, options | {"pre_tokenizer": known}, model, calibration, out,
                progress, served, lambda saved: _take_over(model, base, type_, saved, out),
            )  # fmt: skip

    def _check_gguf(self, model: ModelFacts) -> None:
        from qsweep.quantizers.conversion.artifact import require_converter

        type_ = self.file_type
        if type_ is None:
            raise IncompatibleTrial(
                f"autoround exports no GGUF type of {self.bits} bits; there are "
                f"{', '.join(map(str, _BY_BITS))}, or name one with quant.type"
            )
        if type_.name not in _TYPES:
            raise IncompatibleTrial(
                f"autoround does not export {type_.name}; it has {', '.join(_TYPES)}"
            )
        require_converter(model)


def _take_over(
    model: SourceModel, base: "UnquantizedFile", type_: FileType, saved: Path, out: Path
) -> tuple[Size, dict[str, Any]]:
    """Move the one file that was saved into its place, and prove that it can be read back."""
    from qsweep.formats.gguf.dense import MODEL_FILE
    from qsweep.formats.gguf.reader import read_gguf
    from qsweep.quantizers.conversion.artifact import gguf_artifact
    from qsweep.quantizers.gguf.foreign import difference

    found = sorted(saved.rglob("*.gguf"))
    if len(found) != 1:
        raise TrialFailed(f"autoround saved {len(found)} GGUF files instead of one")
    found[0].rename(out / MODEL_FILE)
    what = None if base.unexplained else difference(base, read_gguf(out / MODEL_FILE))
    if what:
        raise TrialFailed(
            f"autoround's converter lays the model out in another way than ours, so it cannot be "
            f"measured: {what}"
        )
    forgotten = {"agrees": False, "reason": f"its file lacks {', '.join(base.added)}"}
    more = {"llama_cpp": forgotten, "metadata_added": {}} if base.added else {}
    made = gguf_artifact(model, base, type_, out, more)
    return made.size, made.details
