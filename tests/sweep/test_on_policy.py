"""Text that the reference itself wrote: made once by its trial, measured by all."""

import json

import pytest
import torch

from helpers.configs import composed
from helpers.reference_packs import configuration
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.keys import key_of
from qsweep.base.progress import silent
from qsweep.base.store import Store
from qsweep.evaluate import read_measurement
from qsweep.sweep.config import trial_config
from qsweep.sweep.on_policy import has_written
from qsweep.sweep.packing import cut_to_tokens, write_reference_pack
from qsweep.sweep.plan import make_plan
from qsweep.sweep.recording import finished_record
from qsweep.sweep.setting import find_setting
from qsweep.sweep.trial import run_trial, windows_of
from qsweep.text.conversations import to_document
from qsweep.text.prompts import prompts

FEW = ("corpus=on_policy", "corpus.on_policy.max_documents=5", "corpus.on_policy.new_tokens=12")


@pytest.fixture
def make(tmp_path, pocket_dir):
    def planned(*overrides, store=None):
        store = Store(tmp_path / (store or "store"))
        trial = trial_config(composed(*overrides, "device=cpu", "eval.noise_floor=false"))
        return store, make_plan(trial, find_setting(trial, pocket_dir, store))

    return planned


def added(*overrides):
    """Options that the file of the choice does not have."""
    return tuple(f"+{one}" if "max_documents" in one else one for one in overrides)


def test_the_reference_writes_and_a_quantized_model_is_measured_on_that(make, pocket_dir, capsys):
    store, plan = make("quant=rtn", *added(*FEW))
    (step,) = plan.measurements
    assert step.preset == "conversations" and not has_written(plan, step, store)
    run_trial(plan, store, silent)
    (found,) = finished_record(plan, store).measurements
    windows = windows_of(plan, step, store)
    facts = found.facts
    assert facts["written_by"] == "the reference" and facts["new_tokens"] == 12
    assert facts["template"] == "plain"
    told = capsys.readouterr().err
    assert told.count("note: on_policy: the reference writes from 5 prompts only") == 1
    assert facts["tokens_scored"] == windows.tokens_scored
    assert windows.counts.max() == 12 and len(windows.ids) == 5
    # Its windows have no common length to be quartered.
    assert not any(name.startswith("kld_q") for name in found.metrics)
    assert found.metrics["kld"] > 0 and 0 < found.metrics["ear"] < 1
    # Only what was written is scored, in one piece behind its prompt.
    assert torch.equal(windows.counts, windows.lengths - windows.first_scored)
    # Drawn from the reference itself: how it is surprised is on average its own entropy.
    base = store.require("measurements", plan.reference().measurements[0].key)
    nll = read_measurement(base.path).arrays["token_nll"].double()
    held = store.require("measurements", step.key)
    excess = nll - read_measurement(held.path).arrays["reference_entropy"].double()
    assert abs(float(excess.mean())) < 4 * float(excess.std()) / len(excess) ** 0.5
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)
    begin = tokenizer.decode(windows.ids[0][: windows.first_scored[0]])
    assert begin.startswith("User: Why are there two high tides") and begin.endswith("Assistant:")


def test_it_is_the_same_wherever_it_is_written_on_one_kind_of_processor(make):
    texts = []
    for place in ("one", "two"):
        store, plan = make("quant=none", *added(*FEW), store=place)
        run_trial(plan, store, silent)
        texts.append(windows_of(plan, plan.measurements[0], store))
    assert texts[0].fingerprint == texts[1].fingerprint
    rows = {
        tuple(row[mask].tolist()) for row, mask in zip(texts[0].ids, texts[0].mask, strict=True)
    }
    assert len(rows) == 5


def test_what_was_lost_is_written_again_by_the_reference(make):
    store, plan = make("quant=none", *added(*FEW))
    run_trial(plan, store, silent)
    before = windows_of(plan, plan.measurements[0], store).fingerprint
    from qsweep.sweep.on_policy import _identity

    store.remove("texts", key_of(_identity(plan.measurements[0])))
    _, other = make("quant=rtn", *added(*FEW))
    run_trial(other, store, silent)
    assert windows_of(other, other.measurements[0], store).fingerprint == before
    assert finished_record(other, store).measurements[0].facts["fingerprint"] == before


def test_a_pack_of_it_is_cut_by_windows(make, tmp_path):
    store = Store(tmp_path / "store")
    config = configuration("quant=none", "device=cpu", "eval.noise_floor=false", *added(*FEW))
    with pytest.raises(
        QsweepError, match="--tokens=9: how much the reference writes for on_policy"
    ):
        cut_to_tokens(config, 9, store)
    _, plan = make("quant=none", *added(*FEW), "eval.max_windows=2")
    run_trial(plan, store, silent)
    summary = write_reference_pack([plan], store, tmp_path / "a.pack", "exact")
    assert summary.windows == 2 and summary.tokens <= 24


def test_keys(make):
    def key(*overrides):
        _, plan = make("quant=rtn", *added(*overrides))
        return plan.measurements[0].key

    chat = ("corpus=chat", "+corpus.chat.max_documents=5")
    plain = key(*chat)
    assert key(*chat, "+corpus.chat.new_tokens=null") == plain
    written = key(*FEW)
    assert written != plain
    assert key(*FEW[:2], "corpus.on_policy.new_tokens=13") != written


def test_begins_of_documents_and_of_conversations(pocket_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)
    long, short = "a word and another " * 30, "few words"
    found = prompts([long, "", short], tokenizer, 100)
    assert [len(ids) for ids in found] == [32, len(tokenizer(short)["input_ids"])]
    assert found[0] == tokenizer(long)["input_ids"][:32]
    assert prompts([long, short], tokenizer, 10) == found[1:]
    with pytest.raises(ConfigError, match="no begin of a document is of 1 to 10 tokens"):
        prompts([long], tokenizer, 10)
    for room in (0, -976):
        with pytest.raises(ConfigError, match="^new_tokens leaves no room .* context; lower it$"):
            prompts([long, short], tokenizer, room)
    talk = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]
    documents = [to_document(talk, "here"), to_document(talk[:1], "here")]
    (asked,) = prompts(documents, tokenizer, 100, conversations=True)
    assert tokenizer.decode(asked) == "User: Two and two?\n\nAssistant:"


def test_conversations_that_cannot_be_asked_are_left_out(pocket_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    talk = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]
    refused = to_document([{"role": "system", "content": "Be brief."}, *talk], "here")
    taken, silent_one = to_document(talk, "here"), to_document(talk[:1], "here")
    (asked,) = prompts([refused, taken, silent_one], tokenizer, 100, conversations=True)
    assert tokenizer.decode(asked).startswith("user: Two and two?")
    with pytest.raises(ConfigError, match=r"has an answer.* \(the chat template refuses: no sys"):
        prompts([refused], tokenizer, 100, conversations=True)
    # Fewer new tokens would help where there is an answer, and only there.
    with pytest.raises(
        ConfigError, match="^no conversation has an answer, .*; choose another text$"
    ):
        prompts([silent_one], tokenizer, 100, conversations=True)
    with pytest.raises(ConfigError, match="lower new_tokens"):
        prompts([silent_one, taken], tokenizer, 2, conversations=True)


def test_too_little_room(make):
    store, plan = make("quant=none", *added(*FEW[:2]), "corpus.on_policy.new_tokens=1020")
    with pytest.raises(ConfigError, match="lower new_tokens, or choose another text"):
        run_trial(plan, store, silent)
    # Both ways that the line names are open.
    _, lower = make("quant=none", *added(*FEW))
    run_trial(lower, store, silent)
    _, narrow = make("quant=none", *added(*FEW), "eval.context=8")
    with pytest.raises(
        ConfigError, match="eval.context=8: no longer than the prompts of on_policy"
    ):
        windows_of(narrow, narrow.measurements[0], store)


def test_a_number_of_tokens_that_is_none():
    with pytest.raises(ConfigError, match="on_policy: new_tokens=0: must be at least 1"):
        trial_config(composed("corpus=on_policy", "corpus.on_policy.new_tokens=0"))


def test_a_document_of_it_is_tokens_and_where_they_begin(make):
    store, plan = make("quant=none", *added(*FEW))
    run_trial(plan, store, silent)
    from qsweep.sweep.on_policy import _identity

    entry = store.require("texts", key_of(_identity(plan.measurements[0])))
    rows = [json.loads(one) for one in json.loads((entry.path / "documents.json").read_text())]
    assert all(row["from"] < len(row["ids"]) <= row["from"] + 12 for row in rows)
