"""Where a store lies, told to jobs on this node and on others."""

import json

import pytest

from qsweep.base.errors import ConfigError
from qsweep.base.remote_settings import RemoteSettings
from qsweep.base.store import ROOT_VARIABLE, Store
from qsweep.sweep.config import sweep_config
from qsweep.sweep.naming import default_name


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)


def test_an_address_survives_json_and_a_node_may_have_a_folder_of_its_own(tmp_path, monkeypatch):
    store = Store(tmp_path / "here", RemoteSettings("s3://bucket/folder", push=False))
    address = json.loads(json.dumps(store.address))
    same = Store.at(address)
    assert (same.root, same.settings) == (store.root, store.settings)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "there"))
    other = Store.at(address)
    assert (other.root, other.settings) == (tmp_path / "there", store.settings)
    assert Store.below(tmp_path / "outputs").root == tmp_path / "there"


def test_a_folder_whose_name_is_quoted_is_the_same_for_a_job(tmp_path):
    (folder := tmp_path / "a#b %41").mkdir()
    store = Store(tmp_path / "here", RemoteSettings(folder.as_uri()))
    store.build("texts", {"n": 1}, lambda out: {})
    job = Store.at(json.loads(json.dumps(store.address)))
    assert job.settings == store.settings and job.remote.url == folder.as_uri()
    assert len(job.remote.objects.names("manifests/")) == 1
    assert [path.name for path in folder.iterdir()] == ["manifests"]


def test_what_lies_in_the_store_is_found_in_a_node_s_own(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    name = here.portable(here.path("models", "abc"))
    assert there.located(name) == tmp_path / "there/models/abc"
    outside = tmp_path / "model"
    assert there.located(here.portable(outside)) == outside


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://x", "memory is of one process"),
        ("/mnt/store", "file:///FOLDER"),
        ("http://host/x", "no such kind"),
        ("s3://", "names no bucket"),
        ("file://mnt/store", "names no folder"),
        ("file:///", "names no folder"),
        ("s3://bucket/x?versionId=1", "takes no ?"),
        ("file:///mnt/store#1", "in a folder's name they are %3F and %23"),
        ("s3://key:sEcr3t@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://[bucket/x", "is no URL"),
        ("s3://key:sEc/r3t@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://key:sEcr3t/x", "AWS_SECRET_ACCESS_KEY"),
        ("gs://sEc/r3t@bucket/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://key:sE[cr3t@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://key:sE?cr3t@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3:/key:sEcr3t@bucket/x", "names no bucket"),
        ("http://key:sEcr3t@host/x", "no such kind"),
        ("file:/mnt/store", "write it as s3://BUCKET/FOLDER, "),
        ("FILE:///mnt/store", "write it as "),
        ("S3://bucket/x", "write it as "),
        (" s3://bucket/x", "write it as "),
    ],
)
def test_a_url_that_nobody_can_share_is_refused_in_one_line(url, says, configs):
    with pytest.raises(ConfigError) as refused:
        sweep_config({**configs, "store": {"remote": url}})
    line = str(refused.value)
    assert line.startswith("store.remote=") and says in line
    assert "\n" not in line and not any(part in line for part in ("sE", "r3t"))


def test_a_sweep_s_name_and_options(configs):
    found = sweep_config({**configs, "store": {"remote": "file:///mnt/a%20b/", "push": "false"}})
    assert found.store == RemoteSettings("file:///mnt/a%20b", push=False)
    assert sweep_config(configs).store == RemoteSettings()
    with pytest.raises(ConfigError, match=r"store.remot: no such option; did you mean 'remote'"):
        sweep_config({**configs, "store": {"remot": "s3://a/b"}})
    with pytest.raises(ConfigError, match="give store.remote=URL"):
        sweep_config({**configs, "store": "s3://a/b"})
    words = ["bits=3", "store.remote=s3://a/b", "store.push=false"]
    assert default_name(words, "config") == default_name(["bits=3"], "config")


@pytest.fixture
def configs():
    return {
        "launch": {"_target_": "qsweep.launch.local.LocalLauncher"},
        "tracking": {"_target_": "qsweep.tracking.none.NoTracker"},
    }


def test_the_embedded_model_is_where_a_nodes_own_qsweep_is(tmp_path):
    from qsweep.models.tiny import MODEL_DIR

    here, there = Store(tmp_path / "a"), Store(tmp_path / "b")
    name = here.portable(MODEL_DIR)
    assert name == "qsweep:models/tiny/model"
    assert there.located(name) == MODEL_DIR


def test_a_folder_that_the_sweep_never_sees_is_refused(tmp_path, monkeypatch):
    address = Store(tmp_path / "here").address
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "there"))
    with pytest.raises(ConfigError, match="give the sweep store.remote=URL"):
        Store.at(address)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "here"))
    assert Store.at(address).root == tmp_path / "here"
