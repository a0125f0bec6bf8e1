"""What ``qsweep --help`` prints: the commands, and what can be varied."""

from collections.abc import Iterator
from string import Template

from qsweep.commands.entry import config_loader
from qsweep.commands.main import COMMANDS

_TEXT = Template("""\
qsweep: what quantization costs a language model, measured over whole grids.

  one trial     qsweep quant=gguf bits=4
  a sweep       qsweep -m quant=gptq,awq bits=3,4,8
  your model    qsweep -m model.path=DIR quant=gptq,gguf bits=3,4
  your text     qsweep corpus=file corpus.path=FILE
  capabilities  qsweep -m quant=gptq bits=3,4 eval=embedded
  a file        qsweep --config-name=degradation   (qsweep sweeps lists such files)
  formats       qsweep -m quant=rtn,gptq format=int,nvfp4,fp8_dynamic
  best per GB   qsweep search --config-name=pareto
  others' files qsweep score FILE DIR --reference MODEL
  no worse?     qsweep certify TRIAL --margin "ppl 1 %, kld 0.02"

With -m, commas sweep. What cannot exist is skipped; what is done is not done again.

== Commands: qsweep COMMAND --help says more ==
$commands

== Groups: choose with GROUP=NAME, several corpora with corpus=[A,B], a blend with calibration=[A:0.7,B:0.3] ==
$groups

== Options: override with NAME=VALUE ==
bits: 4             2, 3, 4, 8; gguf also 5 and 6
group_size: 128     32, 64, 128; -1: one scale per output channel
desc_act: false     gptq: quantize columns in the order of decreasing activation
sym: auto           symmetric grid; auto: true for gptq, false for awq and rtn
container: auto     where integers lie: the method's own, or compressed-tensors
kv_cache: none      fp8, int8, nvfp4, q8_0, q5_1, q4_0, …: what a quantized KV cache adds; KEYS/VALUES
seed: 0             draws the calibration samples
seeds: null         N draws from seed on, or [0,3,7]: a row is a setting's mean, its interval covers them
device: auto        auto, cpu, cuda, cuda:N
n_jobs: auto        trials at a time; auto: one per visible GPU
timeout_s: null     end a trial as failed after so many seconds
silent_kld: 0.01    nats of KLD below which nothing ranks trials but size; 0: rank all
sweep: null         the sweep's name; null: made from what it varies
outputs_dir: outputs
store: {remote: null}   store.remote=s3://BUCKET/FOLDER, file:///FOLDER: shared with other machines

also: model.path, model.pack, model.dtype, model.revision, quant.backend, quant.type, quant.imatrix (gguf),
calibration.num_samples, calibration.max_seq_len, calibration.packing, eval.presets, eval.max_windows, eval.until,
eval.speed, eval.tasks, eval.limit, eval.chat_template, eval.samples, eval.steps, eval.max_new_tokens

--cfg job prints the composed configuration with every option (any can be overridden: gptq's
damping is quant.damp_percent=0.01), --config-name=NAME runs a file of sweeps/, --hydra-help
lists Hydra's flags, eval "$$(qsweep -sc install=bash)" completes words (zsh and fish, too).
Results: outputs/sweeps/NAME/report.html, and `qsweep ui` opens MLflow.
""")


def help_text(config_dir: str | None = None) -> str:
    """The whole text.

    Args:
        config_dir: a folder of further configuration files, whose choices are listed, too.
    """
    width = max(map(len, COMMANDS))
    return _TEXT.substitute(
        commands="\n".join(f"{name:<{width}}  {what}" for name, what in COMMANDS.items()),
        groups="\n".join(f"{name}: {', '.join(found)}" for name, found in _groups(config_dir)),
    )


def _groups(config_dir: str | None) -> Iterator[tuple[str, list[str]]]:
    """The configuration groups that Hydra finds, those of other packages too, and their choices."""
    from hydra.core.object_type import ObjectType

    # The loader itself composes everything anew for each question.
    files = config_loader(config_dir).repository

    def below(parent: str) -> Iterator[tuple[str, list[str]]]:
        for name in files.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            if group == "hydra":
                continue
            if found := files.get_group_options(group, ObjectType.CONFIG):
                yield group, sorted(found)
            yield from below(group)

    return below("")
