"""Python's own text: its parts never mix, on any version; exercises are right and held out."""

import itertools
import json
import random

import pytest

from draw_splits import draw_splits
from qsweep.models.tiny import MODEL_DIR
from qsweep.models.tiny.exercises import GENERATORS, exercises
from qsweep.models.tiny.text import (
    SPLITS_FILE,
    docstrings,
    documents,
    modules,
    split_of,
    topics,
)

HELD_OUT = ("calibration", "test")


@pytest.fixture(scope="module")
def splits():
    return json.loads(SPLITS_FILE.read_text())


def test_no_unit_is_in_two_parts(splits):
    assert set(splits) == set(HELD_OUT)
    calibration, test = (set(splits[name]) for name in HELD_OUT)
    assert not calibration & test
    assert {unit.partition(":")[0] for unit in calibration | test} == {"topic", "module"}
    for name in HELD_OUT:
        assert all(split_of(unit) == name for unit in splits[name])
    assert split_of("module:no_such_module") == "train"


def test_what_is_held_out_is_there_and_large_enough(splits):
    for name in HELD_OUT:
        units = splits[name]
        there = [u for u in units if u.partition(":")[2] in ({**topics(), **modules()})]
        # nearly all, on every supported version of Python
        assert len(there) >= 0.9 * len(units)
        assert sum(len(text) for text in documents("docs", name)) > 60_000
        assert sum(len(text) for text in documents("code", name)) > 60_000


def test_no_document_of_one_part_is_in_another():
    for kind in ("docs", "code"):
        test, calibration = (documents(kind, name) for name in ("test", "calibration"))
        assert not set(test) & set(calibration)
    training = "\0".join(documents("code", "train"))
    for name in HELD_OUT:
        # no paragraph of some length of a held-out module was trained on either
        for text in documents("code", name):
            body = max(text.split("\n\n"), key=len)
            assert len(body) < 300 or body not in training


def test_a_modules_docstrings_follow_the_module():
    test_code, test_docs = documents("code", "test"), documents("docs", "test")
    told = [d for d in (docstrings(source) for source in test_code) if d]
    assert told and test_docs[-len(told) :] == told


def test_docstrings_are_those_of_two_lines_or_more():
    source = (
        '"""Module.\n\nMore."""\nclass A:\n    """One line."""\n    def f(self):\n'
        '        """Two\n        lines."""\n'
    )
    assert docstrings(source) == "Module.\n\nMore.\n\nTwo\nlines."
    assert docstrings("def broken(:") == ""


def test_tables_and_third_party_code_are_no_modules():
    names = set(modules())
    assert {"json.decoder", "argparse", "asyncio.events"} <= names
    assert not any("site-packages" in n or n.startswith(("test.", "encodings.")) for n in names)


def test_a_draw_fills_its_quotas_and_no_unit_twice():
    quotas = {
        "calibration": {"topic": 20_000, "module": 100_000},
        "test": {"topic": 20_000, "module": 100_000},
    }
    drawn = draw_splits(quotas)
    assert drawn == draw_splits(quotas)
    assert not set(drawn["calibration"]) & set(drawn["test"])
    texts = {f"topic:{k}": v for k, v in topics().items()}
    texts |= {f"module:{k}": v for k, v in modules().items()}
    for units in drawn.values():
        for kind, quota in (("topic", 20_000), ("module", 100_000)):
            size = sum(len(texts[u].encode()) for u in units if u.startswith(kind))
            assert 0.8 * quota < size <= quota


# exercises


ANSWERS = {
    "addition": lambda q: eval(q.rstrip(" =")),
    "subtraction": lambda q: eval(q.rstrip(" =")),
    "multiplication": lambda q: eval(q.rstrip(" =")),
}


def order(question):
    """Who is at the asked end, by putting the people in a row."""
    facts, _, asked = question.partition(" Who is the ")
    pairs = [f.rstrip(".").split() for f in facts.split(". ")]
    more = {(words[0], words[-1]) for words in pairs}
    tops, bottoms = {a for a, _ in more}, {b for _, b in more}
    word = pairs[0][2].removesuffix("er")
    return (tops - bottoms if asked.startswith(word) else bottoms - tops).pop()


def conclusion(question):
    first, second, owns, asked = question.split(". ")
    rules = dict((s.split()[1], s.split()[3]) for s in (first, second))
    trait = rules[owns.split()[-1]]
    return "true" if f" is {trait}, " in f" {asked}" else "false"


@pytest.mark.parametrize("generate", GENERATORS, ids=lambda g: g.__name__)
def test_answers_are_right(generate):
    rng = random.Random(0)
    check = ANSWERS | {"transitive": order, "syllogism": conclusion}
    for _ in range(300):
        exercise = generate(rng)
        assert exercise.answer == str(check[exercise.kind](exercise.question)), exercise
        assert "\n" not in exercise.text


def test_a_question_is_in_one_part_whatever_seed_drew_it():
    train = {e.question for e in itertools.islice(exercises("train", 1), 5000)}
    test = {e.question for e in itertools.islice(exercises("test", 2), 1000)}
    assert not train & test
    assert {e.kind for e in itertools.islice(exercises("test", 2), 500)} == {
        g.__name__ for g in GENERATORS
    }
    first, again = ([e.text for e in itertools.islice(exercises("test", 7), 50)] for _ in range(2))
    assert first == again


# the model


def test_the_model_is_what_it_is_said_to_be():
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert config["max_position_embeddings"] == 1024
    assert 4000 <= config["vocab_size"] <= 4200
    size = sum(f.stat().st_size for f in MODEL_DIR.iterdir())
    assert size <= 12_000_000
    with (MODEL_DIR / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    sizes = [e["data_offsets"][1] - e["data_offsets"][0] for e in header.values()]
    assert sum(sizes) // 2 <= 5_900_000
    card = (MODEL_DIR / "README.md").read_text()
    for word in ("perplexity", "steps", "licence", "loss"):
        assert word in card.lower() or (word == "licence" and "license" in card.lower())
