"""Models by name: the hub's cache as its own library lays it out, and what is said where it ends."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import pytest

from qsweep.base.errors import ConfigError
from qsweep.base.store import Store
from qsweep.models.hub import content_hash, resolve
from qsweep.models.settings import ModelConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, pocket_dir):
    """A hub cache that holds one repository: blobs, a snapshot of links to them, a reference."""
    cache = tmp_path / "hub"
    repository = cache / "models--someone--pocket"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(pocket_dir.iterdir())):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return cache


def resolve_in_subprocess(cache, tmp_path, fields, **environment):
    # The hub library reads its environment when it is imported.
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from qsweep.base.errors import QsweepError
        from qsweep.models.hub import resolve
        from qsweep.models.settings import ModelConfig
        try:
            print(resolve(ModelConfig({fields})))
        except QsweepError as error:
            print("error:", error)
        """
    )
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    return result.stdout.strip(), result.stderr


def test_a_cached_repository_is_found_offline(hub_cache, tmp_path):
    out, errors = resolve_in_subprocess(hub_cache, tmp_path, "'p', repo='someone/pocket'")
    assert COMMIT in out, errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("'p', repo='someone/else'", "error: model=p: someone/else is not in the hub cache"),
        ("'p', repo='someone/pocket', revision='v2'", "error: model=p: someone/pocket is not"),
    ],
)
def test_what_is_not_cached_is_one_line_that_says_what_to_do(hub_cache, tmp_path, fields, message):
    out, _ = resolve_in_subprocess(hub_cache, tmp_path, fields)
    assert out.startswith(message)
    assert "model.path=DIR" in out
    assert len(out.splitlines()) == 1


@pytest.fixture
def interrupted(hub_cache):
    """The cache after a download that was interrupted: the second of two shards is not there."""
    snapshot = hub_cache / "models--someone--pocket" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    names = {f"w{n}": f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return hub_cache


def test_what_is_half_in_the_cache_is_not_taken_for_the_model(interrupted, tmp_path):
    out, _ = resolve_in_subprocess(interrupted, tmp_path, "'p', repo='someone/pocket'")
    assert out.startswith("error: model=p: someone/pocket is only partly in the hub cache")
    # with a network, the rest is fetched: here nobody answers
    started = time.monotonic()
    out, _ = resolve_in_subprocess(
        interrupted,
        tmp_path,
        "'p', repo='someone/pocket'",
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert out.startswith("error: model=p: someone/pocket is not whole in the hub cache")
    assert "the hub cannot be reached" in out
    assert time.monotonic() - started < 60


def test_an_unreachable_hub_is_one_line_and_what_is_cached_needs_none(hub_cache, tmp_path):
    nobody = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    out, _ = resolve_in_subprocess(hub_cache, tmp_path, "'p', repo='someone/else'", **nobody)
    assert out.startswith("error: model=p: the model hub cannot be reached for someone/else")
    assert len(out.splitlines()) == 1
    out, _ = resolve_in_subprocess(hub_cache, tmp_path, "'p', repo='someone/pocket'", **nobody)
    assert COMMIT in out


def test_without_a_hub_a_model_says_what_else_there_is(hub_cache, tmp_path):
    fields = "'smol', repo='someone/else', hint='or model.path=elsewhere'"
    out, _ = resolve_in_subprocess(hub_cache, tmp_path, fields)
    assert out.startswith("error: ") and out.endswith("; or model.path=elsewhere")


def test_a_path_must_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, message in (("missing", "no such directory"), ("file", "is a file")):
        with pytest.raises(ConfigError, match=message):
            resolve(ModelConfig("m", path=str(tmp_path / path)))


def test_the_content_hash_ignores_the_place_and_the_readme_but_not_the_weights(
    tmp_path, pocket_dir
):
    store = Store(tmp_path / "store")
    copy = tmp_path / "copy"
    shutil.copytree(pocket_dir, copy)
    (copy / "README.md").write_text("other words")
    assert content_hash(copy, store) == content_hash(pocket_dir, store)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert content_hash(copy, store) != content_hash(pocket_dir, store)
