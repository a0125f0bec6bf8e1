"""Users' own tasks: the worked examples, and every way to get one wrong."""

import json
from pathlib import Path

import pytest

from qsweep.base.errors import ConfigError
from qsweep.tasks.suite import find_tasks
from qsweep.tasks.task import TaskOptions
from qsweep.tasks.user import user_task

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
GOOD = {"name": "t", "type": "multiple_choice", "data": "t.jsonl", "prompt": "{q}"}
LINE = {"q": "1 + 1 =", "choices": ["2", "3"], "answer": "2"}


def write(folder, values, lines):
    import yaml

    (folder / "t.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "t.jsonl").write_text(text)
    return folder / "t.yaml"


def load(folder, lines=(LINE,), **changes):
    values = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    return user_task(write(folder, values, lines), TaskOptions())


def test_the_worked_examples_load():
    support = user_task(EXAMPLES / "support.yaml", TaskOptions())
    examples, asked = support.load()
    assert len(examples) == 3 and len(asked) == 57
    assert set(asked[0].choices) == {"billing", "delivery", "repair"}
    assert user_task(EXAMPLES / "totals.yaml", TaskOptions()).kind == "regex"
    assert user_task(EXAMPLES / "functions.yaml", TaskOptions()).kind == "code"


def test_the_page_shows_the_files_that_are_run():
    page = (EXAMPLES.parent / "your-own-benchmark.md").read_text()
    shown = page.split("```yaml\n")[1].split("```")[0]
    assert shown in (EXAMPLES / "support.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "lines", "said"),
    [
        ({"type": "multiplechoice"}, [LINE], r"t\.yaml:2: type: .*mean 'multiple_choice'"),
        ({"promt": "x"}, [LINE], r"t\.yaml:5: promt: no such option; did you mean 'prompt'"),
        ({"prompt": None}, [LINE], r"t\.yaml: prompt: is missing"),
        ({"capability": "mathh"}, [LINE], r"t\.yaml:5: capability: 'mathh'; did you mean 'math'"),
        ({"fewshot": "many"}, [LINE], r"t\.yaml:5: fewshot=many"),
        ({"name": "a b"}, [LINE], r"t\.yaml:1: name: 'a b'"),
        ({"data": "none.jsonl"}, [LINE], r"data: .*none\.jsonl: No such file"),
        ({"fewshot": 1}, [LINE], r"none is left"),
        ({}, [], r"t\.jsonl: no lines"),
        ({}, [LINE, "{broken\n"], r"t\.jsonl:2: not JSON"),
        ({}, [LINE, "[1]\n"], r"t\.jsonl:2: not a JSON object"),
        ({}, [LINE, {"Q": 1, "choices": ["a", "b"]}], r"t\.jsonl:2: q: is missing"),
        ({}, [{**LINE, "q": None}], r"t\.jsonl:1: q: is null, and prompt needs text"),
        ({"type": "code"}, [{"q": "a", "test": []}], r"t\.jsonl:1: test: is a list, and"),
        ({}, [{"q": "a", "choises": []}], r"t\.jsonl:1: choices: is missing; did you mean 'choises'"),
        ({}, [{**LINE, "choices": ["2"]}], r"t\.jsonl:1: choices: .*at least two"),
        ({}, [{**LINE, "choices": ["2", "2"]}], r"choices: two are equal"),
        ({}, [{**LINE, "answer": "4"}], r"t\.jsonl:1: answer: '4' is none of the choices"),
        ({}, [{**LINE, "answer": 2}], r"t\.jsonl:1: answer=2: there are 2 choices"),
        ({"type": "regex"}, [LINE], r"pattern: type regex needs one"),
        ({"type": "regex", "pattern": "("}, [LINE], r"not a regular expression"),
        ({"type": "exact_match"}, [{"q": "a"}], r"t\.jsonl:1: answer: is missing"),
        ({"type": "code"}, [{"q": "a"}], r"t\.jsonl:1: test: is missing"),
    ],
)  # fmt: skip
def test_mistakes_name_file_line_and_field(tmp_path, changes, lines, said):
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, lines, **changes)


def test_text_that_is_no_yaml_or_no_utf8(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("name: [unclosed\n")
    with pytest.raises(ConfigError, match=r"t\.yaml:\d+: not YAML"):
        user_task(path, TaskOptions())
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        user_task(path, TaskOptions())
    with pytest.raises(ConfigError, match="No such file"):
        user_task(tmp_path / "none.yaml", TaskOptions())
    load(tmp_path)
    (tmp_path / "t.jsonl").write_bytes(b'{"q": "\xff"}')
    with pytest.raises(ConfigError, match=r"t\.jsonl: not UTF-8"):
        user_task(path, TaskOptions())


def test_an_answer_may_be_a_place_or_a_list(tmp_path):
    task = load(tmp_path, [{**LINE, "answer": 1}])
    assert task.load()[1][0].answer == "3"
    task = load(tmp_path, [{"q": "a", "answer": ["x", "y"]}], type="exact_match")
    item = task.load()[1][0]
    assert (item.answer, item.also) == ("x", ("y",))


def test_generated_answers_are_scored_as_the_page_says(tmp_path):
    exact = load(tmp_path, [{"q": "a", "answer": ["Paris", "paris, France"]}], type="exact_match")
    item = exact.load()[1][0]
    assert [exact._right(item, t) for t in (" Paris.", "paris, France", "paris", "In Paris")] == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]
    changes = {"type": "regex", "pattern": r"total is (\d+)", "answer": "{n}"}
    regex = load(tmp_path, [{"q": "a", "n": 7}], **changes)
    item = regex.load()[1][0]
    assert [regex._right(item, t) for t in ("The total is 7", "The total is 8", "7")] == [1, 0, 0]
    bare = load(tmp_path, [{"q": "a", "w": "a.b"}], type="regex", pattern="^{w}$")
    item = bare.load()[1][0]
    assert [bare._right(item, t) for t in ("a.b", "axb")] == [1, 0]


def test_the_key_follows_the_content(tmp_path):
    first = load(tmp_path).identity()
    assert load(tmp_path).identity() == first
    assert load(tmp_path, [LINE, LINE]).identity() != first
    assert load(tmp_path, prompt="Q: {q}").identity() != first


def test_a_task_is_found_by_its_path_and_an_unknown_name_names_near_ones(tmp_path):
    path = write(tmp_path, GOOD, [LINE])
    found = find_tasks([str(path), "embedded", "arithmetic"], TaskOptions(), tmp_path)
    assert [task.name for task in found][:2] == ["t", "world_facts"]
    assert len({task.name for task in found}) == len(found) == 11


def test_lines_of_data_end_at_line_feeds_alone(tmp_path):
    line = json.dumps({**LINE, "q": "a\u2028b\x85c"}, ensure_ascii=False)
    (item,) = load(tmp_path, [line + "\r\n"]).load()[1]
    assert item.prompt == "a\u2028b\x85c"


def test_half_a_character_in_a_question_is_replaced_and_told(tmp_path, capsys):
    line = '{"q": "\\ud83d?", "choices": ["\\udc00", "b"], "answer": "b"}\n'
    (item,) = load(tmp_path, [line]).load()[1]
    assert item.prompt == "\ufffd?" and item.choices == ("\ufffd", "b")
    assert "2 lone surrogates" in capsys.readouterr().err


def test_a_pipe_is_no_data(tmp_path):
    import os

    path = write(tmp_path, GOOD, [LINE])
    (tmp_path / "t.jsonl").unlink()
    os.mkfifo(tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match="is a pipe, not a regular file"):
        user_task(path, TaskOptions())


def test_an_empty_choice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"t\.jsonl:1: choices: one is empty"):
        load(tmp_path, [{**LINE, "choices": ["2", ""]}])


def test_a_key_says_more_only_where_older_figures_were_wrong(tmp_path, pocket_dir):
    import dataclasses
    import shutil

    from qsweep.models.facts import read_facts
    from qsweep.tasks.revisions import key_revisions

    facts = read_facts(pocket_dir, "pocket")
    call = {"q": "    return g(", "choices": [")", "x)"], "answer": ")"}
    assert key_revisions(load(tmp_path), facts) == {}
    assert key_revisions(load(tmp_path, [call]), facts) == {}  # a blank stands between
    assert key_revisions(load(tmp_path, [call], separator=""), facts).keys() == {"cut"}
    exact = {"type": "exact_match", "choices": None}
    assert key_revisions(load(tmp_path, **exact), facts) == {}
    assert key_revisions(load(tmp_path, **exact, max_new_tokens=600), facts).keys() == {"room"}
    model = tmp_path / "sliding"
    shutil.copytree(pocket_dir, model)
    config = json.loads((model / "config.json").read_text())
    for sliding, said in ((128, {"full_attention_span": 128}), (4096, {}), (None, {})):
        (model / "config.json").write_text(json.dumps({**config, "sliding_window": sliding}))
        found = dataclasses.replace(facts, path=model)
        assert key_revisions(load(tmp_path), found) == said
        assert key_revisions(load(tmp_path, **exact), found) == {}
