"""Reference packs, made and used in this process."""

from pathlib import Path

from helpers.configs import composed
from qsweep.base.progress import silent
from qsweep.base.store import Store
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import trial_config
from qsweep.sweep.found import identified
from qsweep.sweep.pack_choices import with_pack
from qsweep.sweep.packing import write_reference_pack
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting
from qsweep.sweep.trial import run_trial

SMALL = ["eval.context=64", "eval.max_windows=3", "device=cpu"]


def text_file(folder: Path) -> Path:
    """A text of some windows."""
    file = folder / "text.txt"
    file.write_text(
        "".join(f"def f{n}(x):\n    return x + {n * n % 97}  # and so on\n" for n in range(300))
    )
    return file


def configuration(*overrides, quant=None):
    """A composed configuration, whose quantizer may be given as a mapping."""
    config = Composed(composed(*overrides))
    config |= {"quant": quant} if quant else {}
    config.written = dict(config)
    return with_pack(config, {one.partition("=")[0].lstrip("+") for one in overrides})


def make_pack(model: Path, text: Path, out: Path, *overrides, store=None, head="exact"):
    """Measure a model as a reference, and pack it: the plan and what was written."""
    store = Store(store or out.with_suffix(".store"))
    given = {o.partition("=")[0] for o in overrides}
    small = [o for o in SMALL if o.partition("=")[0] not in given]
    config = configuration(
        "quant=none",
        "corpus=file",
        f"corpus.path={text}",
        f"model.path={model}",
        *small,
        *overrides,
    )
    trial = trial_config(config)
    plan = make_plan(trial, find_setting(trial, model, store))
    run_trial(plan, store, silent)
    return plan, write_reference_pack([plan], store, out, head)


def packed_trial(pack: Path, artifact: Path, store: Store, *overrides):
    """The trial that measures an artifact against a pack."""
    target = "qsweep.quantizers.artifact.ExistingArtifact"
    trial = trial_config(
        configuration(
            f"+model.pack={pack}",
            "device=cpu",
            *overrides,
            quant={"_target_": target, "path": str(artifact)},
        )
    )
    return identified(trial, store)


def measure_against(pack: Path, artifact: Path, store: Store, *overrides):
    """Run that trial in this process; returns its plan."""
    trial = packed_trial(pack, artifact, store, *overrides)
    plan = make_plan(trial, find_setting(trial, pack, store))
    run_trial(plan, store, silent)
    return plan
