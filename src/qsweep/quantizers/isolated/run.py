"""From a source model to an artifact through a worker in another environment."""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError, TrialFailed
from qsweep.base.names import file_word
from qsweep.base.progress import Progress
from qsweep.formats.artifact import Artifact, Size
from qsweep.models.source import SourceModel
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.isolated.process import WORKERS, run_worker
from qsweep.quantizers.reference import reference_logits
from qsweep.text.calibration import CalibrationTokens

# Makes an artifact's size and details of the folder of what the worker saved.
Frame = Callable[[Path], tuple[Size, dict[str, Any]]]

# Raised when what is done beside the libraries' own work changes an artifact.
REVISION = 1
# How long a text the handshake compares.
_PROBE_TOKENS = 128
# Mean KL divergence that two implementations of one model stay below, in nats per token.
_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Recipe:
    """What of a foreign quantizer is not an option.

    Attributes:
        worker: The script; a bare name is one of qsweep's own.
        environment: The environment it is made for.
        writes: The format of what it saves.
        dtypes: The dtypes that the library can compute in; the first one replaces others.
        own_dtype: Whether it computes in the checkpoint's dtype on a CPU, too, because what it
            makes of the weights depends on it.
        calibrated: Whether it looks at calibration text.
    """

    worker: str
    environment: str
    writes: str
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    own_dtype: bool = False
    calibrated: bool = True

    @property
    def script(self) -> Path:
        """The worker's file."""
        own = WORKERS / f"{self.worker}.py"
        return own if own.exists() else Path(self.worker).expanduser().absolute()


def quantize(
    recipe: Recipe,
    env: EnvChoice,
    options: dict[str, Any],
    model: SourceModel,
    calibration: CalibrationTokens | None,
    out: Path,
    progress: Progress,
    runtimes: tuple[str, ...],
    frame: Frame | None = None,
) -> Artifact:
    """Quantize ``model`` into the empty directory ``out``, in the worker's environment.

    Args:
        recipe: Which worker, and what it saves.
        env: Which environment.
        options: What the worker is told.
        model: The unquantized model.
        calibration: The token ids that it may see; None where it is not calibrated.
        out: The artifact's directory.
        progress: Told of the worker's steps.
        runtimes: What can serve the artifact.
        frame: Takes over what was saved, where that is no Hugging Face checkpoint.

    Raises:
        BackendUnavailable: The environment is not there.
        TrialFailed: The library reads another model than this one, or the worker failed; the text
            ends with the path of the worker's log.
    """
    if recipe.calibrated and (calibration is None or not calibration.samples):
        raise ConfigError(f"{recipe.environment} needs calibration text, and got none")
    python = env.interpreter(recipe.environment, progress)
    work = out / "work"
    work.mkdir()
    log = work / "worker.log"
    try:
        request = _prepare(recipe, options, model, calibration, work, progress)
        progress(f"import {recipe.environment}", None)
        answer = run_worker(python, recipe.script, request, work, log, progress, env.timeout_s)
        _require_agreement(recipe, answer, work)
        progress("write", None)
        if frame is None:
            size = _frame(recipe, model.path, work / "saved", out, answer["settings"])
            more: dict[str, Any] = {}
        else:
            size, more = frame(work / "saved")
    except TrialFailed as error:
        raise TrialFailed(f"{error}; log: {_keep_log(log, env, recipe)}") from error
    finally:
        _print_log(log)
        shutil.rmtree(work, ignore_errors=True)
    details = {
        "environment": env.version(recipe.environment),
        "compute_dtype": request["dtype"],
        "handshake_kld": answer["agreement"]["kld"],
        **answer.get("details", {}),
        **more,
    }
    return Artifact(out, recipe.writes, size, runtimes, details)


def _prepare(
    recipe: Recipe,
    options: dict[str, Any],
    model: SourceModel,
    calibration: CalibrationTokens | None,
    work: Path,
    progress: Progress,
) -> dict[str, Any]:
    # Everything that the worker reads, laid out below `work`.
    import torch
    from safetensors.torch import save_file

    from qsweep.quantizers.isolated.handover import hand_over

    dtype = _dtype(recipe, model)
    hand_over(model.path, work / "model")
    (work / "saved").mkdir()
    # Without text, the vocabulary's first tokens will do for a probe.
    samples = [range(_PROBE_TOKENS)] if calibration is None else calibration.samples
    tokens = torch.tensor([list(ids) for ids in samples], dtype=torch.int64)
    save_file({"input_ids": tokens}, work / "tokens.safetensors")
    progress("handshake", None)
    window = tokens[:1, :_PROBE_TOKENS].contiguous()
    logits = reference_logits(model, window[0].tolist(), dtype)
    save_file({"input_ids": window, "logits": logits}, work / "probe.safetensors")
    return {
        "model": str(work / "model"),
        "out": str(work / "saved"),
        "device": "cuda:0" if model.device.startswith("cuda") else "cpu",
        "dtype": dtype,
        "options": options,
        "trust_remote_code": model.trust_remote_code,
        "tokens": str(work / "tokens.safetensors"),
        "probe": str(work / "probe.safetensors"),
        "tolerance": _TOLERANCE[dtype],
    }


def _dtype(recipe: Recipe, model: SourceModel) -> str:
    # float32 on a CPU; on CUDA, or where the recipe says so, the checkpoint's own.
    from qsweep.models.devices import own_dtype, resolve_dtype

    if recipe.own_dtype:
        found = own_dtype(model.path)
    else:
        found = resolve_dtype("auto", model.device, model.path)
    return found if found in recipe.dtypes else recipe.dtypes[0]


def _require_agreement(recipe: Recipe, answer: dict[str, Any], work: Path) -> None:
    from qsweep.models.facts import read_config
    from qsweep.quantizers.isolated.handover import differences

    if "mismatch" in answer:
        found = answer["mismatch"]
        differing = differences(read_config(work / "model"), answer.get("config", {}))
        what = f" ({'; '.join(differing[:3])})" if differing else ""
        raise TrialFailed(
            f"{recipe.environment} reads another model than this one, so nothing was quantized: "
            f"its unquantized logits have a KL divergence of {found['kld']:.2g} from ours and the "
            f"same top token at {found['top1_agreement']:.0%} of {found['tokens']} positions{what}"
        )
    if "kld" not in answer.get("agreement", {}):
        raise TrialFailed(
            f"{recipe.script.name} did not compare its logits: call job.handshake(model) in it "
            "before anything is quantized"
        )


def _frame(recipe: Recipe, source: Path, saved: Path, out: Path, settings: dict[str, Any]) -> Size:
    """Take over the saved weights; tokenizer and configuration are the source's own."""
    from qsweep.formats.container import container
    from qsweep.formats.hf import restore_dtypes, write_frame

    try:
        restore_dtypes(source, saved, out)
    except ConfigError as error:
        raise TrialFailed(f"{recipe.environment} saved no weights ({error})") from error
    write_frame(source, out, settings)
    return container(recipe.writes).size(out)


def _keep_log(log: Path, env: EnvChoice, recipe: Recipe) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"{file_word(recipe.environment)}-{stamp}-{log.stat().st_ino % 10000}.log"
    kept = env.folder / "logs" / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, kept)
    return kept


def _print_log(log: Path) -> None:
    # Into the trial's own log, among all else that was printed.
    if log.exists():
        sys.stdout.write(log.read_text(encoding="utf-8", errors="backslashreplace"))
        sys.stdout.flush()
