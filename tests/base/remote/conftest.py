"""What is shared, in both kinds that there are: a mounted folder, and a bucket."""

import pytest

from qsweep.base.objects import Objects
from qsweep.base.remote_settings import RemoteSettings
from qsweep.base.store import ROOT_VARIABLE, Store


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.cluster)])
def url(request, tmp_path):
    """The URL of an empty remote."""
    if request.param == "s3":
        return request.getfixturevalue("s3_bucket") + "/some/folder"
    (folder := tmp_path / "mounted").mkdir()
    return f"file://{folder}"


@pytest.fixture
def objects(url):
    return Objects(url)


@pytest.fixture
def node(url, tmp_path, monkeypatch):
    """``node("a")`` is the store of a machine that shares nothing with others but the remote."""
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)

    def open_store(name, **settings):
        return Store(tmp_path / name / "store", RemoteSettings(url, **settings))

    return open_store
