"""Round to nearest: no calibration, no error feedback. The baseline that every method must beat."""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.gptq import CONTAINER, format_of
from qsweep.formats.packed import PackedContainer
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.kept import kept_details
from qsweep.quantizers.native.limits import SHARD_BYTES
from qsweep.quantizers.protocol import PassResult, SharedPass
from qsweep.text.calibration import CalibrationTokens

if TYPE_CHECKING:
    import torch

    from qsweep.formats.encoder import LayerEncoders


# Raised whenever what the pass tells of inputs changes an artifact.
_PASS = 1


@dataclass(frozen=True)
class RTN(GroupedOptions):
    """Each weight becomes the nearest value of its group's grid.

    ``sym`` auto means false: a zero point per group, as in the baseline of the papers. Integers
    lie in a GPTQ checkpoint. What lies in a compressed-tensors checkpoint is, bit by bit, what
    llm-compressor's ``QuantizationModifier`` makes of the same scheme.

    A format whose activations have static scales, or are smoothed, needs calibration text, and then
    takes part in the native backend's pass.

    >>> RTN(bits=3).options()
    {'bits': 3, 'group_size': 128, 'sym': False}
    """

    method: ClassVar[str] = "rtn"
    backend: ClassVar[str] = "qsweep"
    container: ClassVar[PackedContainer] = CONTAINER
    any_format: ClassVar[bool] = True
    takes_experts: ClassVar[bool] = True
    shows_experts_all_tokens: ClassVar[bool] = True
    takes_rules: ClassVar[bool] = True

    @property
    def uses_calibration(self) -> bool:  # type: ignore[override]
        """Whether inputs have to be looked at: for static scales, or to smooth them."""
        return self.format.needs_ranges

    @property
    def pass_name(self) -> str | None:
        """See :class:`SharedPass`."""
        return "native" if self.uses_calibration else None

    def version(self) -> str:
        """The revision of this module, and what else a result depends on: who rounds, and the pass."""
        if self.holder not in ("compressed-tensors", "bitsandbytes"):
            return f"1{self.written_by}"
        try:
            made = f"1+{self.holder}-{importlib.metadata.version(self.holder)}"
        except importlib.metadata.PackageNotFoundError:
            return "missing"
        return f"{made}+{_PASS}" if self.uses_calibration else made

    def packed_settings(self) -> dict[str, Any]:
        """See :meth:`GroupedOptions.packed_settings`."""
        name = format_of(self.symmetric)
        return {
            "quant_method": "gptq",
            "checkpoint_format": name,
            "format": name,
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["qsweep:rtn"]},
        }

    def pass_bytes(self, model: ModelFacts, tokens: int) -> tuple[int, int]:
        """See :meth:`SharedPass.pass_bytes`; beside others it only looks at what comes by."""
        widest = max((width for _, width in model.linears.values()), default=0)
        waiting = min(model.parameters * (self.bits + 1) // 8, SHARD_BYTES)
        return 4 * model.parameters + 2 * 4 * tokens * widest, waiting

    def quantize_together(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        configurations: Sequence[tuple[SharedPass, Path]],
        progress: Progress = silent,
        *,
        importance: bool = False,
    ) -> PassResult:
        """See :func:`qsweep.quantizers.native.quantize_grid`."""
        from qsweep.quantizers.native.grid import run

        return run(model, calibration, configurations, progress, importance=importance)

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a checkpoint, one tensor at a time; asymmetric ones of GPTQ in version 2. Or a GGUF."""
        if self.uses_calibration:
            return self.quantize_together(model, calibration, [(self, out)], progress).artifacts[0]
        if self.holder == "gguf":
            return self._quantize_blocks(model, out, progress)

        from qsweep.formats.container import container
        from qsweep.formats.encoder import require_finite
        from qsweep.formats.hf import ShardWriter, write_frame
        from qsweep.models.facts import CONV1D_TYPES, is_buffer, is_head, other_parts, read_tensors
        from qsweep.models.spelling import called_in_memory

        kept = self.kept(model.facts)
        linears = model.facts.all_linears.keys() - kept.keys()
        stored = read_tensors(model.path)
        if any(f"{name}.weight" not in stored for name in linears):
            return self._quantize_stacks(model, out, progress)
        transposed = model.facts.model_type in CONV1D_TYPES
        encoders = self.encoders(model.facts)
        extremes = _extremes(encoders, model.path, linears)
        writer, done = ShardWriter(out), 0
        for name, tensor in _tensors(model.path):
            layer = name.removesuffix(".weight")
            if tensor.is_floating_point() and not is_buffer(name):
                require_finite(layer, tensor)
            if layer == name or layer not in linears:
                writer.add(name, tensor)
                continue
            weight = tensor.to(model.device)
            weight = weight.T if transposed else weight
            for part, packed in encoders.of(layer).round(weight, extremes.get(layer)).items():
                writer.add(f"{layer}.{part}", packed)
            done += 1
            progress("round", done / len(linears))
        writer.close()
        others = other_parts(stored)
        trusting = {"trust_remote_code": True} if model.trust_remote_code else {}
        # Loaders know layers by either name.
        names = [*kept, *(called_in_memory(model.path, kept, **trusting) if kept else ())]
        heads = [name.removesuffix(".weight") for name in stored if is_head(name)]
        write_frame(model.path, out, encoders.settings([*names, *others], heads))
        holder = encoders.usual.container
        return Artifact(
            path=out,
            format=holder,
            size=container(holder).size(out),
            runtimes=encoders.runtimes,
            details=kept_details(kept),
        )

    def _quantize_stacks(self, model: SourceModel, out: Path, progress: Progress) -> Artifact:
        """The same where experts lie in stacks, of which transformers knows how they are read."""
        from qsweep.models.facts import read_tensors
        from qsweep.models.room import stream_of
        from qsweep.models.spelling import spelling_of
        from qsweep.models.streaming import holding
        from qsweep.quantizers.native.graph import (
            find_decoder,
            linears_of,
            require_linear,
            weight_of,
        )
        from qsweep.quantizers.native.network import load_network, not_run_as_linear
        from qsweep.quantizers.native.rounding_jobs import round_linears
        from qsweep.quantizers.native.writer import CheckpointWriter

        network = load_network(model, "cpu", "auto", beside=0)
        spelling = spelling_of(network, read_tensors(model.path))
        decoder = find_decoder(network)
        others = not_run_as_linear(model, spelling, linears_of(network))
        kept, encoders = self.kept(model.facts), self.encoders(model.facts)
        streamed = stream_of(network) is not None
        writer = CheckpointWriter(
            out, model.path, encoders, spelling, {**kept, **others}, rests_on_disk=streamed
        )
        wanted = model.facts.all_linears.keys() - kept.keys()
        require_linear(self.asked(model.facts), [spelling.layer(n) for n in linears_of(network)])
        for index, linears in enumerate(decoder.linears):
            named = {decoder.full_name(index, name): linear for name, linear in linears.items()}
            chosen = {n: one for n, one in named.items() if spelling.layer(n) in wanted}
            with holding(network, index):
                round_linears(writer, {n: weight_of(linear) for n, linear in chosen.items()})
            progress("round", (index + 1) / len(decoder.linears))
        return writer.finish(network, {})

    def _quantize_blocks(self, model: SourceModel, out: Path, progress: Progress) -> Artifact:
        import torch

        from qsweep.formats.numbers.superblocks import BlockScheme
        from qsweep.models.facts import CONV1D_TYPES
        from qsweep.models.room import streams
        from qsweep.quantizers.conversion.solved import SolvedFile

        assert self.format.gguf is not None
        # All blocks wait for the file's end.
        waiting = model.facts.parameters * (self.bits + 1) // 8
        model = replace(model, stream=streams(model.stream, waiting))
        file = SolvedFile(out, model, self.format.gguf)
        file.keep(self.kept_by_rules(model.facts))
        linears = self.quantized(model.facts)
        schemes = {own: own.scheme(torch.float16) for own in self.every}
        transposed, done = model.facts.model_type in CONV1D_TYPES, 0
        for name, tensor in _tensors(model.path):
            layer = name.removesuffix(".weight")
            if layer == name or layer not in linears:
                continue
            weight = tensor.to(model.device, torch.float32)
            scheme = schemes[linears[layer]]
            assert isinstance(scheme, BlockScheme)
            file.add(layer, scheme.rounded(weight.T if transposed else weight))
            done += 1
            progress("round", done / len(linears))
        return file.finish({})


def _tensors(path: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    from safetensors import safe_open

    from qsweep.models.facts import weight_files

    for file in weight_files(path):
        with safe_open(file, framework="pt", device="cpu") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no mapping
                yield name, handle.get_tensor(name)


def _extremes(
    encoders: "LayerEncoders", path: Path, linears: set[str]
) -> "Mapping[str, torch.Tensor]":
    """The largest magnitude in all layers that a runtime fuses with each; {} where nobody asks."""
    wanted = {layer for layer in linears if encoders.of(layer).scales_whole_tensors}
    if not wanted:
        return {}
    from qsweep.formats.encoder import fused_extremes

    return fused_extremes(
        {
            name.removesuffix(".weight"): tensor.abs().amax()
            for name, tensor in _tensors(path)
            if name.removesuffix(".weight") in wanted and name.endswith(".weight")
        }
    )
