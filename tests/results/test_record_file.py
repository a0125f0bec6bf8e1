"""Records on disk: anything may lie there, and what is none counts as absent."""

import copy
import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.damage import JUNK, with_text_for_numbers
from helpers.synthetic import synthetic
from qsweep.results import comparable
from qsweep.results.record_file import (
    VERSION,
    NotARecord,
    content_of,
    read_record,
    record_of,
    without_damage,
)
from qsweep.results.rows import rows, to_csv
from qsweep.tracking.identity import fingerprint


@pytest.fixture
def file(tmp_path):
    return tmp_path / "key.json"


@pytest.mark.parametrize("record", synthetic(60), ids=lambda record: record["key"])
def test_what_a_sweep_writes_is_a_record(record, file):
    file.write_text(json.dumps(record))
    read = read_record(file)
    found = json.loads(json.dumps(content_of(read)))
    assert found == found | {"version": VERSION, **json.loads(json.dumps(record))}
    assert record_of(found) == read


def test_an_older_versions_record_calls_the_preset_by_its_name_of_today(file):
    new = synthetic(60)[0]
    new["config"] = {"eval": {"presets": ["paper"]}}
    old = json.loads(json.dumps(new).replace('"paper"', '"gptq"'))
    assert old["measurements"][0]["preset"] == old["measurements"][0]["facts"]["preset"] == "gptq"
    file.write_text(json.dumps(old))
    assert read_record(file) == record_of(new)
    # so that the two stand in one table
    assert comparable.measured_by(read_record(file).measurements[0]) == comparable.measured_by(
        record_of(new).measurements[0]
    )
    assert without_damage(old).measurements == record_of(new).measurements


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


# --- what version 1 wrote ------------------------------------------------------------------------

KEPT = Path(__file__).parent / "records_v1"
FILES = sorted(KEPT.glob("*.json"))


def _by_names_of_today(content):
    """Presets are called by another name since."""
    measurements = [
        m
        | {"preset": {"gptq": "paper"}.get(m["preset"], m["preset"])}
        | {"facts": m["facts"] | {"preset": "paper"}}
        for m in content["measurements"]
    ]
    evaluated = content["config"]["eval"] | {"presets": ["paper"]}
    return content | {
        "measurements": measurements,
        "config": content["config"] | {"eval": evaluated},
    }


@pytest.mark.parametrize("kept", FILES, ids=lambda file: file.stem)
def test_a_record_of_version_1_is_read_and_written_in_the_same_shape(kept):
    content = json.loads(kept.read_text())
    record = read_record(kept)
    assert record is not None and record.status == content["status"]
    written = json.loads(json.dumps(content_of(record)))
    assert written.pop("version") == VERSION
    assert written == _by_names_of_today(content)
    assert record_of(content_of(record)) == record


def test_records_of_version_1_give_the_figures_that_version_1_gave_of_them():
    records = [read_record(file) for file in FILES]
    assert {r.status for r in records} == {"finished", "failed", "skipped"}
    kept = (KEPT / "results.csv").read_text().replace("text.txt,gptq,", "text.txt,paper,")
    now = list(csv.reader(io.StringIO(to_csv(rows(records)))))
    known = len(kept.partition("\n")[0].split(","))
    # Columns that came later follow the ones that there were, and those records say nothing there
    # but what follows from the file format and the draw that they name, and from their divergence.
    assert [line[:known] for line in now] == list(csv.reader(io.StringIO(kept)))
    later = {name for line in now[1:] for name, value in zip(now[0], line, strict=True) if value}
    assert later - set(now[0][:known]) == {"native_on", "draws", "covers", "seed", "kld_verdict"}
    # What a tracker holds of them is not logged again.
    logged = dict(line.split() for line in (KEPT / "logged.txt").read_text().splitlines())
    assert {f.stem: fingerprint(r) for f, r in zip(FILES, records, strict=True)} == logged


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 3}, "not a record of version 1 to 2: version 3"),
        ({"version": "2"}, "not a record of version 1 to 2: version '2'"),
        ({"colour": "red"}, "colour: a record has no such field"),
        ({"quantize_s": "12"}, "quantize_s: a number is wanted, not '12'"),
        ({"artifact": {"size_gb": True}}, "artifact.size_gb: a number is wanted, not 'True'"),
        ({"measurements": [{"corpus": "c"}]}, "measurements.0.preset: missing"),
        ({"options": {"bits": [4]}}, "options.bits: a plain value is wanted"),
        ({"status": None}, "status: missing"),
    ],
)
def test_what_is_not_known_or_of_a_wrong_type_is_refused_and_says_why(change, reason):
    content = json.loads(FILES[0].read_text()) | change
    with pytest.raises(NotARecord) as caught:
        record_of(content)
    assert str(caught.value) == reason


def test_what_an_older_version_did_not_write_is_completed_and_stays_the_same_result():
    from qsweep.sweep.recording import completed

    now = record_of(json.loads(FILES[0].read_text()))
    earlier = replace(now, model_hash=None, vocab_size=None, implied=None, command="earlier")
    kept = completed(earlier, now)
    assert fingerprint(kept) == fingerprint(now) and kept.command == "earlier"
    other = completed(replace(earlier, quantize_s=1.0), now)
    assert fingerprint(other) != fingerprint(now)
