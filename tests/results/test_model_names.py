"""Models of one name, from two places or of two contents."""

import pytest

from helpers.records import reference, trial
from helpers.typed import on_disk, table
from qsweep.results.checks import check
from qsweep.results.model_names import distinct_ends, with_distinct_models
from qsweep.results.rows import noise_floors

check, with_distinct_models, noise_floors = map(
    on_disk, (check, with_distinct_models, noise_floors)
)


def of(path, model_hash, *records):
    """Records of a model at ``path``, all called ``final``."""
    made = []
    for record in records:
        name = record["name"].replace("pocket", "final")
        config = {"model": {"name": "final", "path": path, "repo": None}}
        own = {"model": "final", "name": name, "config": config, "key": record["key"] + path}
        made.append(record | own | ({"model_hash": model_hash} if model_hash else {}))
    return made


def two(first="/runs/a/final", second="/runs/b/final", hashes=("1" * 8, "2" * 8)):
    four = trial("gptq 4-bit", "gptq", 1.30, 0.001, bits=4)
    three = trial("gptq 3-bit", "gptq", 1.05, 0.001, bits=3)
    return [
        *of(first, hashes[0], reference(), four),
        *of(second, hashes[1], reference(), three),
    ]


@pytest.mark.parametrize(
    ("paths", "ends"),
    [
        (["/r/a/final", "/r/b/final"], ["a/final", "b/final"]),
        (["/r/a/ckpt/final/", "/r/b/ckpt/final"], ["a/ckpt/final", "b/ckpt/final"]),
        (["a", "/x/a"], ["a", "x/a"]),
        (["x/y", "z"], ["y", "z"]),
    ],
)
def test_the_shortest_end_that_tells_paths_apart(paths, ends):
    assert list(distinct_ends(paths).values()) == ends


@pytest.mark.parametrize("hashes", [("1" * 8, "2" * 8), (None, None)])
def test_models_of_one_name_are_called_by_their_paths(hashes):
    named = with_distinct_models(two(hashes=hashes))
    assert {r.model for r in named} == {"a/final", "b/final"}
    assert {r.name for r in named} >= {"a/final none", "b/final gptq 3-bit"}
    assert with_distinct_models(named) == named


def test_a_directory_whose_content_changed_is_two_models():
    named = with_distinct_models(two("/runs/final", "/runs/final"))
    assert {r.model for r in named} == {"final (111111)", "final (222222)"}


def test_one_model_keeps_its_name_wherever_it_lies_and_whoever_recorded_it():
    same = two(hashes=("1" * 8, "1" * 8))
    assert {r.model for r in with_distinct_models(same)} == {"final"}
    older = two("/runs/a/final", "/runs/a/final", hashes=("1" * 8, None))
    assert {r.model for r in with_distinct_models(older)} == {"final"}


def test_no_check_pairs_models_and_each_has_its_own_noise_floor():
    records = two()
    assert check(records) == []
    assert check(two(hashes=("1" * 8, "1" * 8)))  # of one model it is a violation
    records[0]["measurements"][0]["metrics"]["kld_floor_dtype"] = 0.001
    records[2]["measurements"][0]["metrics"]["kld_floor_dtype"] = 0.5
    assert len(noise_floors(records)) == 2
    floors = {row["model_path"]: row["noise_floor"] for row in table(records)}
    assert floors == {"/runs/a/final": 0.001, "/runs/b/final": 0.5}
