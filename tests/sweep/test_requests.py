"""What a model cannot give of what was asked for: said once, or refused before anything runs."""

import dataclasses

import pytest

from helpers.configs import composed
from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.store import Store
from qsweep.sweep import planning
from qsweep.sweep.config import trial_config
from qsweep.sweep.setting import find_setting


@pytest.fixture
def asked(tmp_path, pocket_dir, capsys):
    """``asked("eval.context=9")`` gives what is said of a request to the embedded model."""
    (tmp_path / "a.txt").write_text("a text")

    def ask(*overrides):
        planning._note.cache_clear()
        text = ["corpus=file", f"corpus.path={tmp_path / 'a.txt'}", "device=cpu"]
        trial = trial_config(composed(*text, *overrides))
        setting = find_setting(trial, pocket_dir, Store(tmp_path / "store"))
        for _ in range(2):
            planning.check_requests(trial, setting)
        return capsys.readouterr().err

    return ask


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["quant=rtn", "eval.context=1024"], ""),
        (["quant=rtn", "eval.context=1025"], "eval.context=1025: pocket reads 1024 tokens"),
        (["quant=rtn", "eval.context=99999999"], "windows are of 1024"),
        (["quant=rtn", "calibration.max_seq_len=10000000"], ""),  # it sees no text
        (["quant=gptq", "calibration.max_seq_len=10000000"], "samples are of 1024"),
        (["quant=gptq", "calibration.max_seq_len=1024"], ""),
        (["quant=rtn", "+calibration.all_experts=true"], ""),
        (["quant=gptq", "+calibration.all_experts=true"], "changes nothing: pocket has no experts"),
        (["quant=rtn", "eval.stride=8"], "changes nothing: preset paper has no stride"),
        (["quant=rtn", "eval.stride=8", "eval.presets=[gptq,strided]"], ""),
        (["quant=rtn", "eval.presets=[strided]", "eval.context=16"], ""),  # half of it, by default
    ],
)
def test_what_is_cut_is_said_once(asked, overrides, words):
    said = asked(*overrides)
    assert words in said and said.count("\n") == (1 if words else 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["eval.context=64", "eval.stride=64"],
            "eval.stride=64: must be less than the context, 64",
        ),
        (["eval.stride=1024"], "eval.stride=1024: must be less than the context, 1024"),
        # of the model's limit, not of what was asked for
        (["eval.context=5000", "eval.stride=1500"], "must be less than the context, 1024"),
        (["eval.context=3"], "eval.context=3: too small"),
        (["quant=gptq", "calibration.num_samples=100000000"], "are the most"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(asked, overrides, message):
    quant = [] if any(o.startswith("quant=") for o in overrides) else ["quant=rtn"]
    with pytest.raises(ConfigError, match=message):
        asked("eval.presets=[strided]", *quant, *overrides)


def test_a_note_shows_no_secret(capsys):
    planning._note("cannot reach https://me:hunter2@host/x?token=hunter2")
    said = capsys.readouterr().err
    assert said.startswith("note: cannot reach https://") and "hunter2" not in said


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["quant=gptq"], False),
        (["quant=awq"], False),
        (["quant=rtn"], False),
        (["quant=gguf"], False),
        (["quant=gptq", "quant.backend=llmcompressor"], True),
    ],
)
def test_who_shows_an_expert_its_own_tokens_alone_says_so(tmp_path, pocket_dir, overrides, refused):
    (tmp_path / "a.txt").write_text("a text")
    text = ["calibration=file", f"calibration.path={tmp_path / 'a.txt'}", "device=cpu"]
    trial = trial_config(composed(*text, "+calibration.all_experts=true", *overrides))
    setting = find_setting(trial, pocket_dir, Store(tmp_path / "store"))
    mixture = dataclasses.replace(setting, facts=dataclasses.replace(setting.facts, experts=True))
    planning.require_all_experts(trial, setting)
    if not refused:
        planning.require_all_experts(trial, mixture)
        return
    with pytest.raises(IncompatibleTrial, match="with quant.backend=native show it all"):
        planning.require_all_experts(trial, mixture)
