"""Where artifacts of other makers lie: paths as people type them, patterns, parts of split files."""

import os

import pytest

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.artifact_files import (
    counting_files,
    find_place,
    find_places,
    is_pattern,
    parts_of,
    whole_name,
)


@pytest.fixture
def models(tmp_path):
    for name in ("b-Q4_K_M.gguf", "a ü.gguf", "sub/c.gguf", "mmproj-b.gguf", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"GGUF")
    for number in (1, 2, 3):
        (tmp_path / f"big-Q8_0-{number:05}-of-00003.gguf").write_bytes(b"GGUF%d" % number)
    return tmp_path


def test_a_pattern_is_each_match_once_in_order(models):
    found = [place.name for place in find_places(f"{models}/*.gguf")]
    assert found == ["a ü.gguf", "b-Q4_K_M.gguf", "big-Q8_0-00001-of-00003.gguf", "mmproj-b.gguf"]
    assert [p.name for p in find_places(f"{models}/**/c.gguf")] == ["c.gguf"]
    assert len(find_places(f"{models}/**/*.gguf")) == 5
    # A link into its own folder, and one to a file, are what they lead to.
    (models / "sub" / "loop").symlink_to(models)
    (models / "same.gguf").symlink_to(models / "sub" / "c.gguf")
    assert len(find_places(f"{models}/**/*.gguf")) == 5


def test_what_is_there_under_its_name_is_no_pattern(models):
    odd = models / "odd [v2].gguf"
    odd.write_bytes(b"GGUF")
    assert is_pattern(f"{models}/*.gguf") and not is_pattern(str(odd))
    assert find_place(odd) == odd


def test_relative_paths_and_the_home_folder(models, monkeypatch):
    monkeypatch.chdir(models)
    monkeypatch.setenv("HOME", str(models))
    assert find_place("sub/c.gguf") == find_place("~/sub/c.gguf") == models / "sub" / "c.gguf"
    assert find_place("sub") == models / "sub" / "c.gguf"


def test_a_split_file_is_named_by_its_first_part_and_needs_all(models):
    first = find_place(models / "big-Q8_0-00002-of-00003.gguf")
    assert first.name == "big-Q8_0-00001-of-00003.gguf" and whole_name(first) == "big-Q8_0"
    assert [p.read_bytes()[-1:] for p in counting_files(first).values()] == [b"1", b"2", b"3"]
    (models / "big-Q8_0-00003-of-00003.gguf").unlink()
    with pytest.raises(ArtifactCorrupt, match="00003-of-00003.gguf: missing, one of the 3 parts"):
        parts_of(first)
    (models / "big-Q8_0-00002-of-00003.gguf").unlink()
    with pytest.raises(ArtifactCorrupt, match="00002-of-00003.gguf: missing, .* and 1 more"):
        parts_of(first)


def test_a_models_other_parts_are_no_models(tmp_path):
    from qsweep.formats.gguf.reader import find_file

    for name in ("m-imatrix-Q4_K_M.gguf", "m-mmproj-f16.gguf", "MMPROJ-m.gguf", "m.imatrix.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert find_place(tmp_path) == find_file(tmp_path) == tmp_path / "m-imatrix-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("b-Q4_K_S.gguf", "no such file or directory; did you mean 'b-Q4_K_M.gguf'"),
        ("nowhere/at/all", "no such file or directory"),
        ("dangling", "a link that leads nowhere"),
        ("ring", "a link that leads nowhere"),
        ("pipe", "is a pipe, not a regular file"),
        ("", "3 GGUF files (a ü.gguf, b-Q4_K_M.gguf, big-Q8_0-00001-of-00003.gguf); name one"),
        ("sub/x\0y", "null byte"),
    ],
)
def test_what_is_not_there_is_one_line(models, path, message):
    (models / "dangling").symlink_to(models / "gone")
    (models / "ring").symlink_to(models / "ring")
    os.mkfifo(models / "pipe")
    with pytest.raises(ConfigError) as caught:
        find_place(models / path if path else models)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.safetensors", "nothing matches; in {root} there are a ü.gguf"),
        ("sub/*.bin", "nothing matches; in {root}/sub there are c.gguf"),
        ("none/*.gguf", "nothing matches; there is no folder {root}/none"),
    ],
)
def test_a_pattern_without_a_match_says_what_is_there(models, pattern, message):
    with pytest.raises(ConfigError) as caught:
        find_places(f"{models}/{pattern}")
    assert message.format(root=models) in str(caught.value)
