"""What a key changes with, and what it does not: that decides what a sweep does again."""

import dataclasses
import functools
from pathlib import Path

import pytest

from helpers.configs import composed
from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.sweep.config import EvalConfig, trial_config
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting

GGUF = ["quant=gguf", "eval.kld_native=true"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory, pocket_dir):
    root = tmp_path_factory.mktemp("plan")
    store = Store(root / "store")
    for name in ("a", "b"):
        (root / f"{name}.txt").write_text(f"text {name}")

    @functools.cache
    def trial_and_setting(*overrides):
        base = [
            "corpus=file",
            f"corpus.path={root / 'a.txt'}",
            "calibration=file",
            f"calibration.path={root / 'a.txt'}",
            "device=cpu",
            "quant=gptq",
        ]
        given = [o.replace("ROOT", str(root)) for o in overrides]
        names = [o.partition("=")[0] for o in given]
        kept = [o for o in base if o.partition("=")[0] not in names]
        trial = trial_config(composed(*kept, *given))
        return trial, find_setting(trial, pocket_dir, store)

    def make(*overrides, **changes):
        trial, setting = trial_and_setting(*overrides)
        return make_plan(trial, dataclasses.replace(setting, **changes))

    return make


def keys(plan):
    (step,) = plan.measurements
    return {
        "artifact": plan.artifact_key,
        "measurement": step.key,
        "reference": key_of(step.reference),
        "reference's measurement": plan.reference().measurements[0].key,
        "timing": key_of(plan.timing),
    }


def changed(first, second):
    before, after = keys(first), keys(second)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # nothing that concerns the sweep as a whole, or only what results are called
        (["n_jobs=3", "timeout_s=9", "tracking=none", "outputs_dir=/x", "sweep=y"], set()),
        (["corpus.file.name=other", "eval.primary=other"], set()),
        (["calibration.name=other", "model.name=other"], set()),
        # how it is quantized
        (["bits=3"], {"artifact", "measurement"}),
        (["group_size=64"], {"artifact", "measurement"}),
        (["desc_act=true"], {"artifact", "measurement"}),
        (["sym=false"], {"artifact", "measurement"}),
        (["sym=true"], set()),  # which auto is
        (["quant=rtn"], {"artifact", "measurement"}),
        (["quant.backend=gptqmodel"], {"artifact", "measurement"}),
        # what the quantizer sees
        (["calibration.path=ROOT/b.txt"], {"artifact", "measurement"}),
        (["calibration.num_samples=5"], {"artifact", "measurement"}),
        (["calibration.max_seq_len=64"], {"artifact", "measurement"}),
        (["+calibration.all_experts=true"], set()),  # there are none
        (["seed=1"], {"artifact", "measurement"}),
        # what is measured, and how
        (["corpus.path=ROOT/b.txt"], {"measurement", "reference", "reference's measurement"}),
        (
            ["eval.presets=[llamacpp]"],
            {"measurement", "reference", "reference's measurement"},
        ),
        (["eval.max_windows=3"], {"measurement", "reference", "reference's measurement"}),
        (["eval.context=64"], {"measurement", "reference", "reference's measurement"}),
        (["eval.context=2048"], set()),  # what the preset has anyway
        (["eval.stride=8"], set()),  # the preset has no stride
        (["eval.dtype=bfloat16"], {"measurement", "reference", "reference's measurement"}),
        (["eval.dtype=float32"], set()),  # which auto is on a CPU
        (["eval.divergence=false"], {"measurement", "reference's measurement"}),
        # the floor is measured on the reference alone
        (["eval.noise_floor=false"], {"reference's measurement"}),
        (["eval.speed=true"], {"timing"}),
        (["eval.kld_native=true"], set()),  # not of GPTQ
    ],
)
def test_a_key_is_of_what_determines_the_result_and_of_nothing_else(planned, overrides, expected):
    assert changed(planned(), planned(*overrides)) == expected


def test_a_presets_alias_is_the_preset_and_its_key_is_what_it_was(planned):
    first = planned("eval.presets=[paper]")
    for presets in ("[gptq]", "[gptq,paper]"):
        plan = planned(f"eval.presets={presets}")
        assert changed(first, plan) == set()
        assert [step.preset for step in plan.measurements] == ["paper"]
        assert plan.trial.resolved["eval"]["presets"] == ["paper"]
        assert plan.trial.written["eval"]["presets"] == ["paper"]
    assert EvalConfig(presets=("strided", "gptq")).presets == ("strided", "paper")
    # stores of earlier versions are hit
    assert planned().measurements[0].identity["preset"] == "gptq"


def test_a_stride_counts_for_the_preset_that_has_one(planned):
    strided = "eval.presets=[strided]"
    first, second = planned(strided), planned(strided, "eval.stride=8")
    assert "measurement" in changed(first, second)


def test_of_a_mixture_it_counts_whether_experts_are_shown_all_tokens(planned):
    def mixture(*overrides):
        facts = dataclasses.replace(planned(*overrides).setting.facts, experts=True)
        return planned(*overrides, facts=facts)

    first, second = mixture(), mixture("+calibration.all_experts=true")
    assert changed(first, second) == {"artifact", "measurement"}
    assert first.importance != second.importance
    assert changed(planned(), first) == set()


def test_rounding_to_nearest_does_not_depend_on_calibration(planned):
    first = planned("quant=rtn")
    for more in ("calibration.path=ROOT/b.txt", "calibration.num_samples=5", "seed=3"):
        assert changed(first, planned("quant=rtn", more)) == set()
    assert first.setting.calibration is None


def test_samples_are_never_longer_than_the_model_reads(planned):
    long, longer = (planned(f"calibration.max_seq_len={n}") for n in (5000, 6000))
    assert changed(long, longer) == set()


def test_the_model_is_its_content(planned):
    first, second = planned(), planned(model_hash="another")
    assert changed(first, second) == {
        "artifact",
        "measurement",
        "reference",
        "reference's measurement",
    }


def test_a_file_whose_metadata_is_completed_is_another_one_than_before(
    planned, pocket_dir, tmp_path
):
    import json

    settings = json.loads((pocket_dir / "config.json").read_text(encoding="utf-8"))
    plain, facts = planned("quant=gguf"), planned("quant=gguf").setting.facts
    one, other = "full_attention", "sliding_attention"
    for architecture, more, differs in (
        ("PhiForCausalLM", {"rope_theta": 1e6}, True),
        ("PhiForCausalLM", {"rope_theta": 1e4}, False),
        ("LlamaForCausalLM", {"rope_theta": 1e6}, False),
        ("Gemma3ForCausalLM", {"layer_types": [one, other]}, True),
        ("Gemma3ForCausalLM", {"layer_types": [other] * 5 + [one, other]}, False),
        ("Gemma3ForCausalLM", {"layer_types": [one, one]}, False),  # nothing that it could be told
        ("Gemma3ForCausalLM", {"num_hidden_layers": 6, "sliding_window_pattern": 3}, True),
        ("GptOssForCausalLM", {"layer_types": [other, one, other]}, False),
        ("LlamaForCausalLM", {"layer_types": [one, other]}, False),
    ):
        changed = settings | {"architectures": [architecture], **more}
        changed.pop("rope_parameters", None)
        (tmp_path / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        those = dataclasses.replace(facts, path=tmp_path)
        assert (planned("quant=gguf", facts=those).artifact_key != plain.artifact_key) == differs
        assert planned(facts=those).artifact_key == planned().artifact_key


def test_a_device_counts_by_its_kind_and_not_for_the_artifact(planned):
    first, second = planned(device="cuda:0"), planned(device="cuda:1")
    assert changed(first, second) == set()
    assert changed(planned(), first) == {"measurement", "reference", "reference's measurement"}


def test_native_divergence_is_of_certain_text_and_speed_is_not(planned):
    assert changed(planned(*GGUF), planned(*GGUF, "corpus.path=ROOT/b.txt")) >= {"timing"}
    assert changed(planned(*GGUF), planned(*GGUF, "eval.max_windows=3")) >= {"timing"}
    speed = ["quant=gguf", "eval.speed=true"]
    assert "timing" not in changed(planned(*speed), planned(*speed, "corpus.path=ROOT/b.txt"))


def test_nothing_is_timed_where_nothing_is_asked(planned):
    assert planned().timing is None
    assert planned("eval.kld_native=true").timing is None
    assert planned(*GGUF).reference().timing is None
    assert planned("eval.speed=true").reference().timing is not None


def test_the_reference_of_a_trial_is_the_trial_without_quantization(planned):
    plan = planned("bits=3", "eval.presets=[gptq,strided]")
    reference, alone = plan.reference(), planned("quant=none", "eval.presets=[gptq,strided]")
    assert reference.key == alone.key != plan.key
    assert reference.reference() is reference and reference.is_reference
    assert [m.preset for m in reference.measurements] == ["paper", "strided"]
    assert [m.primary for m in reference.measurements] == [True, False]
    # all of a model's trials share the reference's cache
    assert [m.reference for m in plan.measurements] == [
        m.reference for m in planned("quant=rtn", "eval.presets=[gptq,strided]").measurements
    ]


def test_a_context_in_which_nothing_can_be_scored_is_refused_before_anything_runs(planned):
    with pytest.raises(ConfigError, match="eval.context=3: too small"):
        planned("eval.context=3")


def test_planning_imports_no_tensor_library(tmp_path, pocket_dir):
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from helpers.configs import composed\n"
        "from qsweep.sweep.config import EvalConfig, trial_config; from qsweep.base.store import Store\n"
        "from qsweep.sweep.plan import make_plan; from qsweep.sweep.setting import find_setting\n"
        "trial = trial_config(composed('quant=rtn', 'device=cpu', 'corpus=python_code'))\n"
        f"setting = find_setting(trial, Path({str(pocket_dir)!r}), Store(Path({str(tmp_path)!r})))\n"
        "print(make_plan(trial, setting).key)\n"
        "print(*sorted({'torch', 'transformers', 'gptqmodel', 'mlflow'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=120,
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 2 and lines[1] == "", result.stdout + result.stderr


def test_a_tasks_key_knows_the_chat_template_that_no_model_hash_covers(tmp_path, pocket_dir):
    import json
    import shutil

    model = tmp_path / "model"
    shutil.copytree(pocket_dir, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages }}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings))

    def revisions(in_chat):
        asked = ["eval.tasks=[arithmetic]", f"eval.chat_template={in_chat}", "device=cpu"]
        trial = trial_config(composed("quant=rtn", "corpus=python_code", *asked))
        (found,) = find_setting(trial, model, Store(tmp_path / "store")).task_revisions
        return found

    plain = revisions(False)
    assert revisions(True) == plain  # what tokenizer_config.json holds is in the hash
    found = []
    for text in ("{{ messages }}", "{{ messages }}."):
        (model / "chat_template.jinja").write_text(text)
        assert revisions(False) == plain
        found.append(revisions(True)["chat_template"])
    assert found[0] != found[1]
    (model / "chat_template.jinja").unlink()
    del settings["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert revisions(True)["chat_template"] == found[0]
