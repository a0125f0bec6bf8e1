"""Runs in PostgreSQL, files in a bucket: the tracker of machines that share no folder."""

import json

import pytest

from helpers.trackers import Outputs, client_of, record
from qsweep.tracking.mlflow.reader import Reader

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_files_go_where_the_experiment_keeps_them(
    postgresql, s3_server, s3_bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server.url)
    monkeypatch.chdir(tmp_path)
    first = Outputs(tmp_path / "first", postgresql, experiment="shared")
    # As `mlflow experiments create --artifact-location s3://…` does, once, for everybody.
    client_of(postgresql).create_experiment("shared", f"{s3_bucket}/mlflow")
    said = first.run(record("k1"), record("k2", bits=3))
    assert not any("could not" in line or "error" in line for line in said), said
    # Another machine, another sweep, the same tracker.
    second = Outputs(tmp_path / "second", postgresql, name="other", experiment="shared")
    second.run(record("k3"))
    assert {run.info.artifact_uri.split("/mlflow/")[0] for run in second.runs()} == {s3_bucket}
    keys = {o["Key"] for o in s3_server.client().list_objects_v2(
        Bucket=s3_bucket.removeprefix("s3://"))["Contents"]}  # fmt: skip
    runs = second.runs()
    assert len(runs) == 5  # two sweeps and three trials
    for run in runs:
        if key := run.data.tags.get("qsweep.key"):
            found = Reader(second.place).fetch(run.info.run_id, "record.json", tmp_path)
            assert json.loads(found.read_text())["key"] == key
        else:
            assert f"mlflow/{run.info.run_id}/artifacts/results.csv" in keys
    assert not list(tmp_path.rglob("mlruns"))
