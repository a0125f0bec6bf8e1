"""Blends of calibration texts: how they are typed, what they compose to, and what keys say of them."""

import json
import shutil

import pytest

from helpers.sweeps import qsweep, rows
from qsweep.api.composition import compose_trials
from qsweep.api.words import as_overrides
from qsweep.base.errors import ConfigError, IncompatibleTrial, QsweepError
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.search.sweep_file import read_trials
from qsweep.sweep.artifacts import calibration_tokens
from qsweep.sweep.calibration import calibration_config
from qsweep.sweep.config import trial_config
from qsweep.sweep.overrides import acceptable
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting

HALVES = "calibration=[python_docs:0.5,python_code:0.5]"


def blends(*words):
    return [trial_config(config).calibration.blend for config in compose_trials(words)]


def names(*words):
    return [blend.name for blend in blends(*words)]


# as it is typed


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("[a:0.5,b:0.3,c:0.2]", "a:0.5+b:0.3+c:0.2"),
        ("[a,b]", "a+b"),
        ("[ a : 0.5 , b:0.5]", "a:0.5+b:0.5"),
        ("['a:0.5','b:0.5']", "a:0.5+b:0.5"),
        ("[a:1e-2,b:3]", "a:1e-2+b:3"),
        ("x,[a:0.5,b:0.5],[a,b]", "x,a:0.5+b:0.5,a+b"),
        ("choice(x,[a,b])", "x,a+b"),
        # one alone is what it is
        ("[a]", "a"),
        ("[a:0.7]", "a"),
        ("a", "a"),
        ("a,b", "a,b"),
    ],
)
def test_a_list_of_texts_becomes_one_choice(typed, taken):
    assert acceptable(f"calibration={typed}") == f"calibration={taken}"


def test_other_lists_stay_as_they_are():
    for override in ("corpus=[a,b]", "eval.tasks=[a,b]", "calibration.num_samples=3"):
        assert acceptable(override) == override


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "[python_docs:0.5,python_code]",
            "python_code has no share, others have; write calibration=[",
        ),
        ("[python_docs:0,python_code:1]", "python_docs:0.0: a share is a number above 0"),
        ("[python_docs:-1,python_code:1]", "python_docs:-1.0: a share is a number above 0"),
        ("[python_docs:nan,python_code:1]", "python_docs:nan: a share is a number above 0"),
        ("[python_docs:inf,python_code:1]", "python_docs:inf: a share is a number above 0"),
        ("[python_docs:much,python_code:1]", "python_docs:much: a share is a number above 0"),
        ("[python_docs:0.5,python_docs:0.5]", "python_docs is named twice"),
        ("[pithon_docs:0.5,python_code:0.5]", "no such choice; did you mean 'python_docs'"),
        ("[:0.5,python_code:0.5]", "a blend names texts; write calibration=["),
        ("[]", "a blend names texts; write calibration=["),
        ("[file:0.5,python_code:0.5]", "calibration.path has no value"),
        ("[python_docs:0.99,python_code:0.01]", "python_code has a share of 1 %"),
    ],
)
def test_what_is_no_blend_is_told_in_one_line(typed, message):
    with pytest.raises(ConfigError) as told:
        blends(f"calibration={typed}")
    assert message in str(told.value) and "\n" not in str(told.value)


def test_the_blends_that_are_advised_are_taken():
    with pytest.raises(ConfigError, match=r"names no text; choose some with calibration=\[A,B\]"):
        calibration_config({"blend": {}})
    assert names("calibration=[python_docs:0.7,python_code:0.3]", "calibration.num_samples=10")
    assert names("calibration=[python_docs,python_code]")
    few = ["calibration=[python_docs:0.99,python_code:0.01]", "calibration.num_samples=100"]
    assert names(*few) == ["python_docs 99 % + python_code 1 %"]


def test_a_blend_is_swept_beside_plain_texts():
    both = names("calibration=python_docs,[python_docs:0.7,python_code:0.3]")
    assert both == ["python_docs", "python_docs 70 % + python_code 30 %"]


def test_sweep_files_take_blends_too(tmp_path):
    space = {"calibration": "python_docs,[python_docs:0.7,python_code:0.3]", "bits": "3"}
    jobs = read_trials(space, None, None, [])
    words = [word for job in jobs for word in job if word.startswith("calibration=")]
    assert [names(word) for word in words] == [
        ["python_docs"],
        ["python_docs 70 % + python_code 30 %"],
    ]
    ((row,),) = read_trials(None, None, ["calibration=[python_docs,python_code]"], [])
    assert names(row) == ["python_code 50 % + python_docs 50 %"]


def test_python_takes_a_tuple_for_a_blend_and_a_mapping_with_shares():
    for value in (("python_docs:0.7", "python_code:0.3"), {"python_docs": 0.7, "python_code": 0.3}):
        assert names(*as_overrides({"calibration": value})) == [
            "python_docs 70 % + python_code 30 %"
        ]
    swept = ["python_docs", {"python_docs": 1, "python_code": 1}]
    assert len(names(*as_overrides({"calibration": swept}))) == 2


# what it composes to


def test_how_much_is_drawn_is_the_most_that_a_text_asks_for_unless_it_is_given():
    (first,) = compose_trials(["calibration=[python_docs,wikitext2]"])
    assert (first["calibration"]["num_samples"], first["calibration"]["max_seq_len"]) == (128, 2048)
    given = ["calibration.num_samples=9", "calibration.max_seq_len=64", "seed=4"]
    (second,) = compose_trials(["calibration=[python_docs,wikitext2]", *given])
    trial = trial_config(second)
    found = trial.calibration
    assert (found.num_samples, found.max_seq_len, found.seed) == (9, 64, 4)
    # and what a text asks for where it is alone is not told of the blend
    assert all("num_samples" not in one for one in trial.resolved["calibration"]["blend"].values())
    assert trial_config(trial.resolved).calibration == found


def test_a_text_of_a_blend_has_options_of_its_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Some text. " * 99)
    words = ["calibration=[file:0.5,python_code:0.5]", f"calibration.path={path}"]
    (blend,) = blends(*words, "calibration.blend.python_code.max_bytes=500")
    assert {text.name: (text.path, text.max_bytes) for text in blend.texts} == {
        "mine.txt": (str(path), None),
        "python_code": (None, 500),
    }
    with pytest.raises(ConfigError, match=r"blend.pyton_code: no such text.*'python_code'"):
        blends(*words, "calibration.blend.pyton_code.max_bytes=500")
    with pytest.raises(ConfigError, match=r"no option 'calibration.blend.file.fild'|fild"):
        blends(*words, "calibration.blend.file.fild=x")
    with pytest.raises(ConfigError, match="calibration.max_bytes: no such option of a blend"):
        blends(*words, "calibration.max_bytes=500")


# keys


@pytest.fixture(scope="module")
def plan(tmp_path_factory, pocket_dir):
    store = Store(tmp_path_factory.mktemp("blends") / "store")
    base = ["corpus=python_docs", "device=cpu", "quant=gptq", "eval.max_windows=1"]

    def make(*words, model=pocket_dir):
        (config,) = compose_trials([*base, *words])
        trial = trial_config(config)
        return make_plan(trial, find_setting(trial, model, store))

    return make


def test_equal_blends_have_one_key_however_they_are_typed(plan):
    same = [
        HALVES,
        "calibration=[python_code:0.5,python_docs:0.5]",
        "calibration=[python_docs,python_code]",
        "calibration=[python_docs:3,python_code:3]",
    ]
    assert len({plan(word).key for word in same}) == 1
    samples = [calibration_tokens(plan(word)).samples for word in same[:2]]
    assert samples[0] == samples[1]


def test_texts_shares_and_amounts_are_in_the_key(plan):
    one = "calibration=python_docs"
    others = [
        (HALVES,),
        ("calibration=[python_docs:0.6,python_code:0.4]",),
        ("calibration=[python_docs:0.5,python:0.5]",),
        (HALVES, "calibration.num_samples=8"),
        (HALVES, "calibration.max_seq_len=64"),
        (HALVES, "seed=1"),
        (HALVES, "calibration.packing=documents"),
        (one,),
        (one, "calibration.packing=documents"),
    ]
    assert len({plan(*words).artifact_key for words in others}) == len(others)


def test_one_text_in_brackets_is_that_text_and_its_key_is_what_it_was(plan):
    plain = plan("calibration=python_docs")
    for word in ("calibration=[python_docs]", "calibration=[python_docs:0.3]"):
        assert plan(word).key == plain.key
    part = plain.setting.calibration.parts[0]
    # as it was before there were blends
    assert plain.artifact["calibration"] == {
        "text": part.text.fingerprint, "num_samples": 32, "max_seq_len": 512, "seed": 0,
    }  # fmt: skip
    given = [key for key in plain.trial.resolved["calibration"] if key in ("packing", "blend")]
    assert given == []


def test_samples_are_drawn_by_share_and_are_the_first_of_each_text_alone(plan):
    def samples(*words):
        return [tuple(one) for one in calibration_tokens(plan(*words)).samples]

    size = ("calibration.num_samples=10", "calibration.max_seq_len=32")
    mixed = samples("calibration=[python_docs:0.7,python_code:0.3]", *size)
    docs, code = (samples(f"calibration=python_{kind}", *size) for kind in ("docs", "code"))
    assert [one for one in mixed if one in docs] == docs[:7]
    assert [one for one in mixed if one in code] == code[:3]


def test_the_same_text_under_two_names_is_refused(plan, tmp_path):
    path = tmp_path / "again.txt"
    path.write_text("text " * 500)
    twice = ["calibration=[file,python_docs]", f"calibration.path={path}"]
    spec = {"source": "file", "path": str(path)}
    (config,) = compose_trials([*twice, "corpus=python_docs", "device=cpu", "quant=gptq"])
    config["calibration"]["blend"]["other"] = spec
    trial = trial_config(config)
    with pytest.raises(ConfigError, match="are the same text; name it once, with the whole share"):
        find_setting(
            trial, plan("calibration=python_docs").setting.facts.path, Store(tmp_path / "s")
        )


def test_a_text_that_cannot_be_had_is_named(pocket_dir, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = [
        "calibration=[python_docs,wikitext2]",
        "corpus=python_docs",
        "quant=gptq",
        "device=cpu",
    ]
    (config,) = compose_trials(words)
    with pytest.raises(QsweepError, match=r"^wikitext2: dataset .* is not in the cache") as told:
        find_setting(trial_config(config), pocket_dir, Store(tmp_path / "store"))
    assert "\n" not in str(told.value)


# conversations


def test_a_model_without_a_chat_template_is_told_and_one_with_it_takes_conversations(
    plan, pocket_dir, tmp_path
):
    chats = tmp_path / "chats.jsonl"
    turn = [{"role": "user", "content": "Why? " * 9}, {"role": "assistant", "content": "So. " * 9}]
    chats.write_text("\n".join(json.dumps({"messages": turn}) for _ in range(9)))
    words = ["calibration=file", f"calibration.path={chats}", "calibration.field=messages"]
    small = ["calibration.num_samples=2", "calibration.max_seq_len=48"]
    packed = [*words, *small, "calibration.packing=conversations"]
    with pytest.raises(IncompatibleTrial, match="has no chat template.*packing=documents packs"):
        plan(*packed)
    assert plan(*words, *small, "calibration.packing=documents")

    model = tmp_path / "chatty"
    shutil.copytree(pocket_dir, model)
    template = "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}\n{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    made = plan(*packed, model=model)
    assert made.artifact["calibration"]["packing"] == [1, "conversations"]
    assert made.artifact_key != plan(*words, *small, model=model).artifact_key
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    told = [tokenizer.decode(one) for one in calibration_tokens(made).samples]
    assert len(told) == 2 and all(one.startswith("[user] Why?") for one in told)
    # the template is a part of the model, and so of the key
    (model / "chat_template.jinja").write_text(template + "!")
    assert key_of(plan(*packed, model=model).artifact) != made.artifact_key


# a whole sweep


def test_a_sweep_over_blends_names_its_rows_by_them_and_goes_on_where_it_was(tmp_path):
    brief = ["quant=gptq", "bits=3", "corpus=python_docs", "eval.noise_floor=false"]
    size = ["calibration.max_seq_len=64", "eval.context=64", "device=cpu"]
    words = ["-m", *brief, *size, "calibration=python_docs,[python_docs:0.75,python_code:0.25]"]
    done = qsweep(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    name = "python_docs 75 % + python_code 25 %"
    found = {row["calibration"]: row for row in rows(tmp_path) if row["method"] == "gptq"}
    assert set(found) == {"python_docs", name}
    assert found[name]["calibration_tokens"] == "256"
    assert name in (tmp_path / "sweeps" / "t" / "report.html").read_text(encoding="utf-8")
    again = qsweep(tmp_path, *words[:-1], "calibration=[python_code:0.25,python_docs:0.75]")
    assert again.returncode == 0 and "[1/" not in again.stderr, again.stderr
    row = next(row for row in rows(tmp_path) if row["calibration"] == name)
    assert row["ppl"] == found[name]["ppl"]


@pytest.mark.parametrize("option", ["assistant_only", "new_tokens"])
def test_what_is_scored_of_a_text_is_no_matter_of_a_blend(option):
    texts = {"a": {"source": "python", option: 1}, "b": {"source": "python", "split": "test"}}
    with pytest.raises(ConfigError, match=f"calibration.blend.a.{option}: no such option"):
        calibration_config({"blend": texts, "num_samples": 4, "max_seq_len": 8, "seed": 0})
    del texts["a"][option]
    assert calibration_config({"blend": texts, "num_samples": 4, "max_seq_len": 8, "seed": 0})
