"""Records on disk: anything may lie there, and what is none counts as absent."""

import copy
import json
import os

import pytest

from helpers.damage import JUNK, with_text_for_numbers
from helpers.synthetic import synthetic
from qsweep.results.record_file import VERSION, content_of, read_record, without_damage


@pytest.fixture
def file(tmp_path):
    return tmp_path / "key.json"


@pytest.mark.parametrize("record", synthetic(60), ids=lambda record: record["key"])
def test_what_a_sweep_writes_is_a_record(record, file):
    file.write_text(json.dumps(record))
    found = json.loads(json.dumps(content_of(read_record(file))))
    assert found == {"version": VERSION, **json.loads(json.dumps(record))}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_what_is_none_is_absent(junk, file):
    file.write_bytes(junk)
    assert read_record(file) is None


@pytest.mark.timeout(10)
def test_neither_is_a_folder_or_a_pipe(file):
    assert read_record(file) is None
    file.mkdir()
    assert read_record(file) is None
    file.rmdir()
    os.mkfifo(file)
    assert read_record(file) is None


def places(content, path=()):
    """Every place in a nested mapping or list."""
    yield path
    if isinstance(content, dict):
        for name, value in content.items():
            yield from places(value, (*path, name))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from places(value, (*path, number))


def put(content, path, value):
    changed = copy.deepcopy(content)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize("value", [[], {}, "x", None, 3, True, ["x"], {"x": "x"}], ids=repr)
def test_whatever_stands_anywhere_a_page_is_made_of_the_rest(value, file):
    from qsweep.results.html.data import SweepData
    from qsweep.results.rows import rows, to_csv

    reference, record, *_ = synthetic(3)
    shallow = [
        p for p in places(record) if 0 < len(p) <= 4 and p[0] not in ("config", "environment")
    ]
    for path in shallow:
        file.write_text(json.dumps(put(record, path, value)))
        found = read_record(file)
        shown = [r for r in (without_damage(reference), found) if r is not None]
        assert to_csv(rows(shown))
        assert SweepData("t", "", shown).records


def test_numbers_that_became_text_are_no_record(file):
    for record in synthetic(3)[1:]:
        file.write_text(json.dumps(with_text_for_numbers(record)))
        assert read_record(file) is None
