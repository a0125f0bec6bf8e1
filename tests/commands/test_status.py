"""``qsweep status`` and ``qsweep worker``: what they say, and what they refuse."""

import os
from pathlib import Path

import pytest
from sqlalchemy import update

from helpers.trackers import record
from qsweep.base.databases import sqlite_url
from qsweep.base.errors import ConfigError
from qsweep.base.files import write_json
from qsweep.commands.main import main
from qsweep.commands.worker import parser, work
from qsweep.launch import Job, JobResult
from qsweep.launch.queue.claims import Claims
from qsweep.launch.queue.database import Database
from qsweep.launch.queue.orders import Orders
from qsweep.launch.queue.tables import jobs, workers


@pytest.fixture
def queue(tmp_path):
    database = Database(sqlite_url(tmp_path / "queue.db"))
    orders = Orders(database, "night", "login1:12:x")
    orders.take_over(60, 3)
    yield database, orders
    database.close()


def job(id: str, *needs: str, counts: bool = True) -> Job:
    return Job(id, f"pocket {id}", "a:b", {}, Path("log"), needs=needs, counts=counts)


def status(outputs: Path, capsys, *more: str) -> str:
    assert main(["status", "night", f"--outputs={outputs}", *more]) == 0
    return capsys.readouterr().out


def test_it_tells_what_is_where_and_why(queue, tmp_path, capsys):
    database, orders = queue
    ordered = [job("pass", counts=False), *(job(id) for id in "abc"), job("d", "a")]
    orders.submit(ordered)
    here = Claims(database, "night", "node7:34:y")
    here.enlist("node7", 2, 1, 1 << 30)
    Claims(database, "night", "node8:56:z").enlist("node8", 1, 0, 1 << 30)
    claims = [here.take(["auto"]) for _ in range(3)]
    here.hand_in(claims[1], JobResult("failed", reason="out of memory"), "")
    with database.writing() as connection:
        connection.execute(
            update(workers).where(workers.c.host == "node8").values(seen=workers.c.seen - 600)
        )
        connection.execute(
            update(jobs).where(jobs.c.id == "b").values(started=jobs.c.started - 600, attempts=2)
        )
    assert status(tmp_path, capsys).splitlines() == [
        "sweep night: 1 failed, 1 running, 1 ready, 1 waiting",
        "preparations: 1 running",
        "running:",
        "  pocket b on node7 for 10 min, attempt 2",
        "  pocket pass on node7 for 0 s",
        "workers:",
        "  node7:34: 2 at once on 1 GPU, last heartbeat 0 s ago",
        "  node8:56: 1 at once on no GPUs, last heartbeat 10 min ago (gone?)",
        "head: login1:12, last heartbeat 0 s ago",
        "failed:",
        "  pocket a: out of memory",
    ]


def test_what_ended_while_no_head_was_there_is_told_once(queue, tmp_path, capsys):
    _, orders = queue
    orders.submit([job("a"), job("b"), job("c")])
    here = Claims(queue[0], "night", "node7:34:y")
    for _ in range(2):
        here.hand_in(here.take(["auto"]), JobResult("finished", {}), "")
    assert status(tmp_path, capsys).startswith("sweep night: 2 finished, 1 ready\n")
    write_json(tmp_path / "sweeps" / "night" / "trials" / "a.json", record("a"))
    assert status(tmp_path, capsys).startswith("sweep night: 2 finished, 1 ready\n")


def test_a_trial_that_failed_before_is_counted_as_what_it_is_now(queue, tmp_path, capsys):
    _, orders = queue
    for id in "abcd":
        failed = record(id, "failed", bits=3)
        write_json(tmp_path / "sweeps" / "night" / "trials" / f"{id}.json", failed)
    orders.submit([job("a"), job("b"), job("c")])
    here = Claims(queue[0], "night", "node7:34:y")
    here.hand_in(here.take(["auto"]), JobResult("finished", {}), "")
    here.take(["auto"])
    lines = status(tmp_path, capsys).splitlines()
    assert lines[0] == "sweep night: 1 finished, 1 failed, 1 running, 1 ready"
    assert sum("out of memory" in line for line in lines) == 1


def test_what_is_not_shown_is_counted(queue, tmp_path, capsys):
    database, orders = queue
    orders.submit([job(str(n)) for n in range(50)])
    here = Claims(database, "night", "node7:34:y")
    for _ in range(22):
        here.hand_in(here.take(["auto"]), JobResult("failed", reason="broken"), "")
    for _ in range(23):
        here.take(["auto"])
    lines = status(tmp_path, capsys).splitlines()
    assert lines[0] == "sweep night: 22 failed, 23 running, 5 ready"
    assert "  … and 3 more" in lines and "  … and 2 more" in lines


@pytest.mark.parametrize(
    ("device", "gpus", "stuck"),
    [("cuda", 0, True), ("cuda:1", 1, True), ("auto", 0, False), ("cuda", 1, False)],
)
def test_workers_that_can_take_nothing_are_told_of(queue, tmp_path, capsys, device, gpus, stuck):
    database, orders = queue
    orders.submit([Job("a", "a", "a:b", {}, Path("log"), device=device)])
    assert orders.why_nobody_takes() is None  # nobody is there
    Claims(database, "night", "node7:34:y").enlist("node7", 1, gpus, 1 << 30)
    line = (
        f"no job can start: what is ready asks for {device}, and the 1 worker there has "
        f"{'1 GPU' if gpus else 'no GPUs'}; start workers where there are such GPUs"
    )
    assert orders.why_nobody_takes() == (line if stuck else None)
    assert (line in status(tmp_path, capsys).splitlines()) == stuck


def test_it_says_how_to_go_on(queue, tmp_path, capsys):
    _, orders = queue
    orders.submit([job("a")])
    orders.leave(closed=False)
    command = "qsweep -m quant=rtn launch=workers --detach sweep=night"
    write_json(tmp_path / "sweeps" / "night" / "sweep.json", {"command": command})
    assert status(tmp_path, capsys).splitlines() == [
        "sweep night: 1 ready",
        "head: none; workers go on without",
        f"no worker is there; start one: qsweep worker night --outputs={tmp_path}",
        "go on: qsweep -m quant=rtn launch=workers sweep=night",
    ]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("'launch.queue=postgresql://me:***@db/q' sweep=night", "QSWEEP_QUEUE=URL qsweep -m sweep=night"),
        ("launch.detach=true 'sweep=a  night'", "qsweep -m 'sweep=a  night'"),
        ("'+note=it is --detached' --det", "qsweep -m '+note=it is --detached'"),
    ],
)  # fmt: skip
def test_the_command_to_go_on_with_works_as_it_stands(queue, tmp_path, capsys, typed, told):
    _, orders = queue
    orders.submit([job("a")])
    orders.leave(closed=True)  # as by a Ctrl-C before it was collected
    write_json(tmp_path / "sweeps" / "night" / "sweep.json", {"command": f"qsweep -m {typed}"})
    assert status(tmp_path, capsys).splitlines()[-1] == f"go on: {told}"


def test_a_sweep_that_was_left_to_workers_and_collected_is_done(queue, tmp_path, capsys):
    _, orders = queue
    orders.submit([job("a"), job("b")])
    orders.leave(closed=False)
    here = Claims(queue[0], "night", "node7:34:y")
    while claim := here.take(["auto"]):
        here.hand_in(claim, JobResult("finished", {}), "")
    folder = tmp_path / "sweeps" / "night"
    write_json(folder / "sweep.json", {"command": "qsweep -m quant=rtn"})
    write_json(folder / "trials" / "a.json", record("a"))
    told = ["sweep night: 2 finished"]
    assert status(tmp_path, capsys).splitlines() == [*told, "go on: qsweep -m quant=rtn"]
    write_json(folder / "trials" / "b.json", record("b"))  # found in the store, without the queue
    assert status(tmp_path, capsys).splitlines() == told


def test_a_sweep_without_a_queue_is_told_by_its_records(tmp_path, capsys):
    folder = tmp_path / "sweeps" / "night"
    command = "qsweep -m quant=rtn sweep=night"
    write_json(folder / "sweep.json", {"command": command})
    for one in (record("k1"), record("k2", "failed", bits=3), record("k3", bits=8)):
        write_json(folder / "trials" / f"{one['key']}.json", one)
    assert status(tmp_path, capsys).splitlines() == [
        "sweep night: 2 finished, 1 failed",
        "failed:",
        "  pocket gptq 3-bit: out of memory",
        f"go on: {command}",
    ]


def test_a_queue_that_cannot_be_read_hides_no_records(queue, tmp_path, capsys):
    with queue[0].writing() as connection:
        connection.exec_driver_sql("ALTER TABLE qsweep_jobs DROP COLUMN log")
    write_json(tmp_path / "sweeps" / "night" / "trials" / "a.json", record("a"))
    assert main(["status", "night", f"--outputs={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert said.out == "sweep night: 1 finished\n"
    assert said.err.startswith("note: --queue=sqlite:///") and "another version" in said.err
    url = sqlite_url(tmp_path / "queue.db")
    assert main(["status", "night", f"--outputs={tmp_path}", f"--queue={url}"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["status", "x"], 2, "no sweep 'x' in"),
        (["status", "x", "--queue=mysql://me:s3cret@h/d"], 2, "no database for a queue"),
        (["status", "x", "--queue=postgresql://me:s3cret@127.0.0.1:1/d"], 2, "cannot be used"),
        (["worker", "x", "--jobs=0"], 2, "n_jobs=0: must be"),
        (["worker", "x", "--jobs=many"], 2, "neither a number nor auto"),
        (["worker", "x", "--idle=-1"], 2, "--idle=-1: seconds, from 0"),
        (["worker", "x", "--device=tpu"], 2, "--device: invalid choice"),
        (["worker", "x", "--device=cuda"], 2, "no CUDA GPU is visible"),
        (["worker", "x", "--patience=0", "--queue=postgresql://me:s3cret@127.0.0.1:1/d"], 1, "cannot"),
        (["worker", "x", "--queue=sqlite:///:memory:"], 2, "names no file"),
        (["status", "x", "--queue=sqlite:///nowhere/q.db"], 2, "--queue=sqlite:///nowhere/q.db: no such file"),
        (["status", "x/"], 2, "SWEEP='x/': must not contain /"),
        (["status", "."], 2, "SWEEP='.': begins with a dot"),
        (["worker", "sweeps/x"], 2, "SWEEP='sweeps/x': must not contain /"),
        (["worker", ""], 2, "SWEEP='': the name is empty"),
    ],
)  # fmt: skip
def test_what_is_typed_wrong_is_one_line(words, code, why, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("QSWEEP_QUEUE", raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        found = main([*words, f"--outputs={tmp_path}"])
    except SystemExit as error:
        found = error.code
    said = capsys.readouterr().err
    assert found == code and why in said and said.count("\n") == 1
    assert said.startswith("error: ") and "s3cret" not in said
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("root", "more", "why"),
    [
        ("out/store", ["--store=own"], "nobody there would see what is made here; give the sweep store.remote"),
        ("nowhere/out/store", [], "is not on this machine; give the sweep store.remote=URL"),
    ],
)  # fmt: skip
def test_a_worker_whose_results_nobody_would_see_takes_nothing(
    queue, tmp_path, monkeypatch, root, more, why
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "QSWEEP_STORE", "")  # which the option sets
    (tmp_path / "out").mkdir()
    _, orders = queue
    store = {"root": str(tmp_path / root), "remote": None, "push": True}
    orders.submit([Job("a", "a", "a:b", {"store": store}, Path("log"))])
    with pytest.raises(ConfigError, match=why):
        work(parser().parse_args(["night", f"--outputs={tmp_path}", "--idle=0", *more]), preload=())
    assert orders.open_jobs() == 1 and not orders.news()


def test_detach_is_refused_where_nobody_could_go_on(capsys, tmp_path):
    words = ["quant=rtn", "corpus=python_docs", f"outputs_dir={tmp_path}", "tracking=none"]
    assert main([*words, "--detach"]) == 2
    assert "--detach: this launcher cannot leave its jobs to others" in capsys.readouterr().err
