"""``corpus=chat`` in a trial: its keys, what is scored, and the same against a reference pack."""

import json
import shutil

import pytest

from helpers.configs import composed
from helpers.reference_packs import configuration, measure_against, packed_trial
from qsweep.base.errors import ConfigError
from qsweep.base.progress import silent
from qsweep.base.store import Store
from qsweep.results.columns.table import KLD_VERDICT
from qsweep.results.record import Row
from qsweep.sweep.config import trial_config
from qsweep.sweep.packing import write_reference_pack
from qsweep.sweep.plan import make_plan
from qsweep.sweep.recording import finished_record
from qsweep.sweep.setting import find_setting
from qsweep.sweep.trial import run_trial, windows_of
from qsweep.text.windows import CONVERSATIONS

CHAT = ("corpus=chat", "eval.context=96", "eval.max_windows=3")


@pytest.fixture
def chat(tmp_path, pocket_dir):
    store = Store(tmp_path / "store")

    def make(*overrides):
        trial = trial_config(composed(*CHAT, "device=cpu", *overrides))
        return store, make_plan(trial, find_setting(trial, pocket_dir, store))

    return make


def test_answers_are_measured_and_nothing_else(chat):
    store, plan = chat("quant=rtn")
    run_trial(plan, store, silent)
    (found,) = finished_record(plan, store).measurements
    facts, metrics = found.facts, found.metrics
    assert found.preset == facts["preset"] == "conversations" and found.primary
    assert facts["template"] == "plain" and facts["context"] <= 96 and facts["windows"] == 3
    windows = windows_of(plan, plan.measurements[0], store)
    assert facts["tokens_scored"] == windows.tokens_scored < int(windows.lengths.sum()) - 3
    assert 0 < metrics["ear"] < 1 < metrics["ppl"] and metrics["kld"] > 0
    assert KLD_VERDICT.cell(Row(finished_record(plan, store), found))


def test_presets_are_for_other_texts(chat):
    _, plan = chat("quant=rtn", "corpus=[chat,python_docs]", "eval.presets=[paper,llamacpp]")
    places = [(m.corpus.name, m.preset, m.primary) for m in plan.measurements]
    assert places == [
        ("chat", "conversations", True), ("python_docs", "paper", False), ("python_docs", "llamacpp", False)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no preset 'conversations'"):
        trial_config(composed("eval.presets=[conversations]"))


def test_the_template_is_in_the_key_of_conversations_alone(chat, pocket_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pocket_dir, other)
    (other / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")

    def keys(corpus):
        store, plan = chat("quant=rtn", f"corpus={corpus}")
        moved = make_plan(plan.trial, find_setting(plan.trial, other, store))
        assert moved.setting.model_hash == plan.setting.model_hash
        return plan.measurements[0], moved.measurements[0]

    here, there = keys("python_docs")
    assert here.key == there.key and "conversations" not in here.identity
    here, there = keys("chat")
    assert here.key != there.key and here.reference != there.reference


def test_a_users_own_conversations_and_a_field_that_holds_none(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": [], "text": "words"}) + "\n")
    given = ["corpus=file", f"corpus.path={path}"]
    (plain,) = trial_config(composed(*given)).corpora
    (own,) = trial_config(
        composed(*given, "corpus.field=messages", "corpus.assistant_only=true")
    ).corpora
    assert not plain.assistant_only and own.assistant_only and own.field == "messages"
    assert trial_config(composed(*given)).eval.presets_for(own) == (CONVERSATIONS.name,)
    assert trial_config(composed(*given)).eval.presets_for(plain) == ("paper",)


@pytest.mark.parametrize("option", ["assistant_only=true", "new_tokens=8"])
def test_a_quantizer_sees_whole_texts(option):
    name = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"calibration\.{name}: no such option"):
        trial_config(composed(f"+calibration.{option}"))


def test_a_pack_carries_conversations(tmp_path, pocket_dir):
    out, artifact = tmp_path / "pocket.pack", tmp_path / "artifact"
    shutil.copytree(pocket_dir, artifact)
    here = Store(tmp_path / "here")
    given = ["corpus=[chat,python_docs]", "eval.context=96", "eval.max_windows=3", "device=cpu"]
    trial = trial_config(configuration("quant=none", *given))
    plan = make_plan(trial, find_setting(trial, pocket_dir, here))
    run_trial(plan, here, silent)
    write_reference_pack([plan], here, out, "exact")
    own = finished_record(plan, here)
    store = Store(tmp_path / "there")
    measured = measure_against(out, artifact, store)
    record = finished_record(measured, store)
    assert [m.place for m in record.measurements] == [
        ("chat", "conversations"), ("python_docs", "paper")
    ]  # fmt: skip
    for found, base in zip(record.measurements, own.measurements, strict=True):
        assert found.metrics["kld"] == 0 and found.metrics["ear"] == 1
        assert found.metrics["ppl"] == base.metrics["ppl"]
        assert {k: found.facts[k] for k in base.facts} == base.facts
    # The same text, whose questions would be scored, too.
    with pytest.raises(
        ConfigError,
        match=r"chat was measured otherwise \(corpus.chat.assistant_only=true\); leave corpus= out",
    ):
        find_setting(
            packed_trial(out, artifact, store, "corpus=chat", "corpus.chat.assistant_only=false"),
            out,
            store,
        )
    again = measure_against(out, artifact, store, "corpus=chat", "eval.context=96")
    assert [m.corpus.name for m in again.measurements] == ["chat"]
    assert again.measurements[0].key == measured.measurements[0].key
