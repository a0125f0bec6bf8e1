"""What a worker needs to speak with qsweep: one file, with torch and safetensors and nothing else.

A worker is a script that runs in an environment of its own and ends with ``qsweep_worker.run(f)``.
``f`` takes a :class:`Job`, calls :meth:`Job.handshake` with the model it has loaded before it
changes anything, saves a checkpoint into ``job.out``, and returns ``{"settings": …}``: the
checkpoint's ``quantization_config``, and under ``details`` whatever is worth reporting.

What it prints goes to a log. The request comes in as a JSON file, the answer goes out as one.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Optional  # noqa: UP035 - Python 3.9 runs this, too

_PR_SET_PDEATHSIG = 1


class Mismatch(Exception):
    """The library does not see the model that qsweep sees."""


@dataclass
class Job:
    """What is to be done.

    Attributes:
        model: Directory with the unquantized checkpoint, its configuration in both generations'
            spelling.
        out: Empty directory for the quantized checkpoint.
        device: ``cpu`` or ``cuda:0``.
        dtype: What to load and compute in, by torch's name.
        options: The quantizer's options.
        trust_remote_code: Whether the checkpoint's own code may run.
    """

    model: str
    out: str
    device: str
    dtype: str
    options: Dict[str, Any]  # noqa: UP006
    trust_remote_code: bool
    tokens: str
    probe: str
    tolerance: float
    agreement: Dict[str, float] = field(default_factory=dict)  # noqa: UP006

    @property
    def torch_dtype(self) -> Any:
        """``dtype`` as torch's own object."""
        import torch

        return getattr(torch, self.dtype)

    def samples(self) -> Any:
        """The calibration set: token ids, int64 [samples, tokens]."""
        from safetensors.torch import load_file

        return load_file(self.tokens)["input_ids"]

    def handshake(self, model: Any) -> None:
        """Compare ``model``'s logits with qsweep's on one short window.

        Args:
            model: The library's unquantized transformers model.

        Raises:
            Mismatch: The mean KL divergence is more than rounding explains.
        """
        import torch
        from safetensors.torch import load_file

        probe = load_file(self.probe)
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(probe["input_ids"].to(device), use_cache=False).logits[0].float().cpu()
        shared = min(logits.shape[1], probe["logits"].shape[1])
        ours = probe["logits"][:, :shared].log_softmax(-1)
        theirs = logits[:, :shared].log_softmax(-1)
        self.agreement = {
            "kld": float((ours.exp() * (ours - theirs)).sum(-1).mean()),
            "top1_agreement": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
            "tokens": logits.shape[0],
        }
        # Not "more than": what is not a number agrees with nothing.
        if not self.agreement["kld"] <= self.tolerance:
            raise Mismatch(json.dumps(_plain(model.config.to_dict())))


def progress(step: str, done: Optional[float] = None) -> None:  # noqa: UP045
    """Tell what is being done, and which share of it (0 to 1) is behind."""
    descriptor = os.environ.get("QSWEEP_PROGRESS")
    if descriptor:
        os.write(int(descriptor), (json.dumps([str(step)[:80], done]) + "\n").encode())


def watch(iterable: Any, *_: Any, step: str = "layer", **__: Any) -> Any:
    """Stand in for tqdm in a library's loop over layers, so that its progress is qsweep's."""
    items = list(iterable)
    for number, item in enumerate(items):
        progress(f"{step} {number + 1} of {len(items)}", number / len(items))
        yield item


def read_config(folder: str) -> Dict[str, Any]:  # noqa: UP006
    """The ``config.json`` of a checkpoint."""
    return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))


def run(quantize: Callable[[Job], Dict[str, Any]]) -> None:  # noqa: UP006
    """Do the job that the command line names, write the answer, and end the process."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = Path(request.pop("result"))
    if sys.platform == "linux":
        # A worker whose qsweep was killed has no reason to live.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = Job(**request)
    try:
        answer = quantize(job)
        answer = {"settings": answer["settings"], "details": answer.get("details", {})}
        answer["agreement"] = job.agreement
    except Mismatch as error:
        answer = {"mismatch": job.agreement, "config": json.loads(str(error))}
    except BaseException as error:
        traceback.print_exc()
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        answer = {"error": type(error).__name__ + (": " + lines[0] if lines[0] else "")}
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps(_plain(answer)), encoding="utf-8")
    temporary.replace(result)
    sys.stdout.flush()
    sys.stderr.flush()
    # Exit handlers of these libraries have been seen to hang.
    os._exit(0)


def _plain(value: Any) -> Any:
    # Settings hold dtypes, enumerations and paths.
    return json.loads(json.dumps(value, default=str))
