"""Every file of conf and sweeps composes, and becomes a typed trial."""

import pytest

from helpers.configs import CONF, composed
from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.sweep.config import describe, sweep_config, trial_config
from qsweep.sweep.naming import default_name

CHOICES = [
    f"{group}={file.stem}"
    for group in ("model", "quant", "calibration", "corpus", "eval", "tracking")
    for file in sorted((CONF / group).glob("*.yaml"))
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_becomes_a_trial(choice, tmp_path):
    extra = {
        "model=path": [f"model.path={tmp_path}"],
        "calibration=file": ["calibration.path=/some/text.txt"],
        "corpus=file": ["corpus.path=/some/text.txt"],
        "quant=artifact": ["quant.path=/some/file.gguf"],
    }.get(choice, [])
    config = composed(choice, *extra)
    trial = trial_config(config)
    assert trial.name
    assert sweep_config(config).outputs_dir.is_absolute()


def test_a_local_model_is_named_after_its_folder(tmp_path):
    assert trial_config(composed("model=pocket")).model.name == "pocket"
    path = tmp_path / "my-model"
    assert trial_config(composed(f"model.path={path}")).model.name == "my-model"


def test_options_that_a_method_ignores_do_not_tell_trials_apart():
    def options(*overrides):
        return trial_config(composed(*overrides)).quant.options()

    assert options("quant=awq", "desc_act=true") == options("quant=awq", "desc_act=false")
    assert options("quant=none", "bits=3") == options("quant=none", "bits=8")
    assert options("quant=gguf", "group_size=32") == options("quant=gguf", "group_size=64")
    assert options("quant=gptq", "sym=auto") == options("quant=gptq", "sym=true")
    assert options("quant=awq", "sym=auto") == options("quant=awq", "sym=false")
    assert options("quant=gptq", "bits=3") != options("quant=gptq", "bits=4")


def test_a_trial_is_described_in_a_few_words():
    quant = trial_config(composed("quant=gptq", "desc_act=true", "group_size=64")).quant
    assert describe(quant) == "gptq 4-bit g64 desc_act"
    quant = trial_config(composed("quant=gptq", "quant.act_group_aware=false")).quant
    assert describe(quant) == "gptq 4-bit g128 plain"
    # With one group per output the native backend has one order of columns only.
    quant = trial_config(composed("quant=gptq", "desc_act=true", "group_size=-1")).quant
    assert describe(quant) == "gptq 4-bit channel"
    quant = trial_config(composed("quant=gptaq", "bits=3", "group_size=64")).quant
    assert describe(quant) == "gptaq 3-bit g64"
    assert quant.method == "gptq"  # the format of its artifact


def test_a_backend_is_named_where_it_is_not_the_methods_usual_one():
    def names(method: str, *overrides: str) -> set[str]:
        backends = composed(f"quant={method}")["quant"]["backends"]
        return {
            describe(trial_config(composed(f"quant={method}", f"quant.backend={b}")).quant)
            for b in backends
        }

    # The usual one is what the group's file chooses.
    for method in ("gptq", "awq"):
        usual = describe(trial_config(composed(f"quant={method}")).quant)
        assert usual == f"{method} 4-bit g128"
        assert usual in names(method)
    assert names("awq") == {
        "awq 4-bit g128",
        "awq 4-bit g128 · gptqmodel",
        "awq 4-bit g128 · autoawq",
        "awq 4-bit g128 · llmcompressor",
    }
    assert len(names("gptq")) == 4
    # A method that one library alone offers needs no second word for it, but one for its format.
    assert describe(trial_config(composed("quant=autoround")).quant) == "autoround 4-bit g128 gptq"


def test_the_primary_corpus_is_the_first_unless_named():
    assert trial_config(composed("corpus=[python_code,python_docs]")).primary == "python_code"
    assert trial_config(composed("eval.primary=python_code")).primary == "python_code"
    with pytest.raises(ConfigError, match="did you mean 'python_docs'"):
        trial_config(composed("eval.primary=python_doc"))


def test_a_sweep_is_named_after_what_it_varies():
    assert default_name(["quant=gptq,awq", "bits=3,4,8"], "config") == "bits-3-4-8_quant-gptq-awq"
    assert default_name(["n_jobs=2", "outputs_dir=/tmp/x"], "bits") == "bits"
    assert default_name(["bits=3", "model.stream=true"], "config") == "bits-3"
    assert default_name([], "config") == "default"
    long = default_name(["quant=" + ",".join(f"method{i}" for i in range(50))], "config")
    assert len(long) <= 80


def test_keys_do_not_depend_on_order():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
