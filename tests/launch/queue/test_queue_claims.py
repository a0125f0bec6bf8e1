"""Who has which job: claims, leases, needs and results, on sqlite and on PostgreSQL."""

import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.event import listen

from qsweep.base.databases import sqlite_url
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.launch import Capacity, Job, JobResult
from qsweep.launch.queue import specs
from qsweep.launch.queue.claims import Claims
from qsweep.launch.queue.database import Database, QueueAway, patiently
from qsweep.launch.queue.orders import NoLongerHead, Orders
from qsweep.launch.queue.tables import jobs, metadata

DONE, BROKEN = JobResult("finished", {"n": 1}, seconds=2.0), JobResult("failed", reason="broken")
CPU = ("auto", "cpu")


def job(id: str, *needs: str, device: str = "auto", counts: bool = True, **payload) -> Job:
    log = Path("logs") / id
    return Job(id, id.upper(), "a:b", payload, log, needs=needs, device=device, counts=counts)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    if request.param == "sqlite":
        url = sqlite_url(tmp_path / "a folder" / "q?.db")
    else:
        url = request.getfixturevalue("postgresql")
    opened = Database(url)
    yield opened
    metadata.drop_all(opened._engine)
    opened.close()


@pytest.fixture
def orders(database) -> Orders:
    found = Orders(database, "s", "head:1:x")
    found.take_over(lease_s=60, attempts=2)
    return found


@pytest.fixture
def worker(database):
    return lambda name="w", sweep="s": Claims(database, sweep, f"{name}:1:x")


def drain(claims: Claims, result: JobResult = DONE) -> list[str]:
    order = []
    while claim := claims.take(CPU):
        order.append(claim.job.id)
        assert claims.hand_in(claim, result, "")
    return order


def end_lease(database: Database, id: str) -> None:
    with database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == id).values(lease_until=0.0))


def test_jobs_are_taken_in_order_once_what_they_need_has_finished(orders, worker):
    orders.submit([job("late", "early", "other"), job("early"), job("other")])
    claims = worker()
    assert drain(claims) == ["early", "other", "late"]
    rows = orders.news()
    assert [row.id for row in rows] == ["early", "other", "late"]
    assert {row.state for row in rows} == {"finished"}
    orders.noted(rows, {})
    assert orders.news() == []


def test_a_job_comes_through_the_queue_as_it_was(orders, worker):
    made = Job("a", "ü", "m:f", {"x": [1, None]}, Path("/l/a"), 3.5, device="cpu", counts=False)
    orders.submit([made])
    claim = worker().take(CPU)
    assert claim is not None and claim.job == made


def test_a_worker_of_another_version_takes_nothing(orders, worker, monkeypatch):
    orders.submit([job("a")])
    monkeypatch.setattr(specs, "__version__", "9.9")
    with pytest.raises(QsweepError, match=r"planned by qsweep .*, and this is 9\.9; install that"):
        worker().take(CPU)
    monkeypatch.undo()
    assert drain(worker()) == ["a"]


def test_no_job_is_taken_twice_and_only_where_its_device_is(orders, worker):
    orders.submit([job("x", device="cuda"), job("y", device="cpu")])
    first, second = worker("a"), worker("b")
    assert first.take(CPU).job.id == "y"
    assert second.take(CPU) is None
    assert second.take(("auto", "cuda")).job.id == "x"
    assert worker(sweep="another").take(CPU) is None


def test_who_lost_a_lease_writes_nothing(database, orders, worker):
    orders.submit([job("a")])
    stale, fresh = worker("stale"), worker("fresh")
    old = stale.take(CPU)
    end_lease(database, "a")
    new = fresh.take(CPU)
    assert new.job.id == "a"
    stale.renew([old])
    assert stale.still_held([old]) == set()
    assert fresh.still_held([new]) == {new}
    assert not stale.hand_in(old, BROKEN, "stale")
    assert fresh.hand_in(new, DONE, "fresh")
    assert not fresh.hand_in(new, BROKEN, "again")
    (row,) = orders.news()
    assert row.state == "finished" and orders.log_of("a") == "fresh"


def test_a_lease_that_ended_is_renewed_if_nobody_took_it(database, orders, worker):
    orders.submit([job("a")])
    claims = worker()
    claim = claims.take(CPU)
    end_lease(database, "a")
    claims.renew([claim])
    assert worker("other").take(CPU) is None
    assert claims.hand_in(claim, DONE, "")


def test_a_job_that_loses_every_worker_fails_and_says_where(database, orders, worker):
    orders.submit([job("a")])
    for host in ("one", "two"):
        assert worker(host).take(CPU).job.id == "a"
        end_lease(database, "a")
    assert worker("three").take(CPU) is None
    (row,) = orders.news()
    assert row.state == "failed"
    assert "lost 2 times (on one, two)" in row.result


def test_what_is_given_back_is_no_attempt(database, orders, worker):
    orders.submit([job("a")])
    for _ in range(3):
        claims = worker()
        claims.give_back([claims.take(CPU)])
    assert drain(worker()) == ["a"]


def test_who_leaves_gives_back_what_it_took_unknowingly(orders, worker):
    orders.submit([job("a")])
    for _ in range(3):
        claims = worker()
        claims.take(CPU)  # and a signal comes before it is heard of
        claims.leave()
    assert drain(worker()) == ["a"]


def test_a_result_that_the_database_refuses_fails_the_job(tmp_path):
    database = Database(sqlite_url(tmp_path / "q.db"))
    orders, claims = Orders(database, "s", "head:1:x"), Claims(database, "s", "w:1:x")
    orders.take_over(60, 2)
    orders.submit([job("a"), job("b")])
    first, second = claims.take(CPU), claims.take(CPU)
    limit = sqlite3.SQLITE_LIMIT_LENGTH
    listen(database._engine, "connect", lambda it, _: it.setlimit(limit, 5000))
    database._engine.dispose()
    large = JobResult("finished", {"x": "x" * 9000})
    written = claims.hand_in(first, large, "")
    assert written.reason.startswith("its result cannot be handed in: queue=sqlite:")
    assert claims.hand_in(second, DONE, "") == DONE
    assert [row.state for row in orders.news()] == ["failed", "finished"]
    database.close()


def test_a_log_of_odd_characters_costs_no_result(postgresql):
    database = Database(postgresql)
    orders, claims = Orders(database, "odd", "head:1:x"), Claims(database, "odd", "w:1:x")
    orders.take_over(60, 2)
    orders.submit([job("a")])
    assert claims.hand_in(claims.take(CPU), DONE, "b\0d \ud800\n") == DONE
    assert orders.log_of("a") == "b?d ?\n"
    database.close()


@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [("qsweep@", "stranger:s3cret@", "stranger"), ("/postgres", "/nowhere", "nowhere")],
)
def test_a_login_that_is_refused_is_said_at_once(postgresql, right, wrong, why):
    with pytest.raises(ConfigError, match=why) as caught:
        Database(postgresql.replace(right, wrong))
    assert "s3cret" not in str(caught.value)


def test_without_a_head_failures_are_decided_by_workers(orders, worker):
    orders.submit(
        [
            job("pass", counts=False),
            job("reference"),
            job("uses pass", "pass"),
            job("uses reference", "reference", "pass"),
            job("last", "uses reference"),
        ]
    )
    orders.leave(closed=False)
    claims = worker()
    for _ in range(2):
        claims.hand_in(claims.take(CPU), BROKEN, "")
    assert claims.take(CPU) is None
    assert not claims.look_after()
    assert drain(claims) == ["uses pass"]
    assert claims.look_after()
    rows = {row.id: row for row in orders.news()}
    assert rows["uses pass"].state == "finished"
    assert "needs USES REFERENCE, which failed: needs REFERENCE, which" in rows["last"].result


def test_what_needs_an_earlier_failure_is_decided_without_a_head_too(orders, worker):
    orders.submit([job("reference"), job("first", "reference")])
    orders.leave(closed=False)
    claims = worker()
    claims.hand_in(claims.take(CPU), BROKEN, "")
    assert claims.look_after() is False  # which tells "first", and then it is over
    assert claims.look_after()
    orders.take_over(lease_s=60, attempts=2)
    orders.submit([job("reference"), job("first", "reference"), job("second", "reference")])
    orders.leave(closed=False)
    assert claims.take(CPU) is None
    claims.look_after()
    assert claims.look_after()
    rows = {row.id: row for row in orders.news()}
    assert "needs REFERENCE, which failed: broken" in rows["second"].result


def test_with_a_head_failures_are_its_to_decide(orders, worker):
    orders.submit([job("pass", counts=False), job("user", "pass")])
    claims = worker()
    claims.hand_in(claims.take(CPU), BROKEN, "")
    assert not claims.look_after()
    assert claims.take(CPU) is None
    instead = [(-2, job("half", counts=False)), (-1, job("user", "half"))]
    orders.noted(orders.news(), {}, instead)
    assert drain(claims) == ["half", "user"]
    assert not claims.look_after()
    orders.leave(closed=True)
    assert claims.look_after()


def test_the_next_head_keeps_what_is_under_way_or_unseen_and_begins_the_rest_anew(orders, worker):
    asked = [job(id) for id in ("seen", "unseen", "running", "ready", "changed", "dropped")]
    orders.submit(asked)
    claims = worker()
    taken = {c.job.id: c for c in (claims.take(CPU) for _ in range(3))}
    claims.hand_in(taken["seen"], BROKEN, "")
    orders.noted([row for row in orders.news() if row.id == "seen"], {})
    claims.hand_in(taken["unseen"], BROKEN, "")
    changed = claims.take(CPU), claims.take(CPU)
    assert [c.job.id for c in changed] == ["ready", "changed"]
    claims.give_back([changed[0]])
    anew = [job("changed", x=1) if one.id == "changed" else one for one in asked[:-1]]
    orders.submit([*anew, job("needs unseen", "unseen"), job("needs running", "running")])
    assert claims.still_held([taken["running"], changed[1]]) == {taken["running"]}
    assert {row.id: row.state for row in orders.news()} == {
        "unseen": "failed",
        "running": "running",
    }
    assert drain(claims) == ["seen", "ready", "changed"]
    claims.hand_in(taken["running"], DONE, "")
    assert drain(claims) == ["needs running"]


def test_a_preparation_alone_takes_nothing_from_others(orders, worker):
    orders.submit([job("a"), job("b"), job("c", "b")])
    claims = worker()
    claim = claims.take(CPU)
    orders.submit([job("check", counts=False)])
    assert claims.still_held([claim]) == {claim}
    assert sorted(drain(claims)) == ["b", "c", "check"]


def test_there_is_one_head_and_the_next_plans_as_it_did(database, orders):
    other = Orders(database, "s", "elsewhere:1:y")
    assert other.take_over(60, 2).head == "head:1:x"
    orders.plan_for(Capacity(7, 1 << 40))
    orders.submit([job("a")])
    assert other.take_over(60, 2, dead="head:1:x").capacity == Capacity(7, 1 << 40)
    with pytest.raises(NoLongerHead):
        orders.check()
    other.check()


def test_who_is_no_longer_the_head_changes_nothing(database, orders, worker):
    orders.submit([job("a"), job("b")])
    claims = worker()
    claims.hand_in(claims.take(CPU), DONE, "")
    rows = orders.news()
    other = Orders(database, "s", "elsewhere:1:y")
    other.take_over(60, 2, dead="head:1:x")
    other.submit([job("a"), job("b")])
    for late in (
        lambda: orders.noted(rows, {}),
        orders.withdraw,
        lambda: orders.submit([job("c")]),
    ):
        with pytest.raises(NoLongerHead, match="sweep s was taken over by another process"):
            late()
    assert not orders.leave(closed=True)
    assert [row.id for row in other.news()] == ["a"]
    assert drain(claims) == ["b"]
    assert other.leave(closed=True)


def test_only_news_of_what_was_submitted_last_is_told(orders, worker):
    orders.submit([job("a"), job("b")])
    claims = worker()
    claims.hand_in(claims.take(CPU), DONE, "")
    orders.submit([job("check", counts=False)])
    assert drain(claims) == ["check", "b"]
    rows = orders.news()
    assert [row.id for row in rows] == ["check"]
    orders.noted(rows, {})
    assert orders.news() == []
    begun: set[str] = set()
    orders.submit([job("a"), job("b"), job("c")], begun.update)
    assert begun == {"c"}
    assert {row.id for row in orders.news()} == {"a", "b"}


def test_a_worker_hears_which_other_sweeps_there_are(database, orders, worker):
    for name, closed in (("night", False), ("old", True)):
        other = Orders(database, name, f"{name}:1:y")
        other.take_over(60, 2)
        other.leave(closed=closed)
    assert worker(sweep="nigth").open_sweeps() == ["night", "s"]


def test_withdrawn_jobs_are_nobodys(orders, worker):
    orders.submit([job("a"), job("b"), job("c", "b")])
    claims = worker()
    claim = claims.take(CPU)
    assert orders.withdraw() == 3
    assert claims.still_held([claim]) == set()
    assert not claims.hand_in(claim, DONE, "")
    orders.submit([job("a")])
    assert not claims.hand_in(claim, DONE, "")  # that is another job a


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://me:s3cret@host/db", "no database for a queue"),
        ("sqlite:///:memory:", "names no file"),
        ("nonsense", "no database for a queue"),
        ("postgresql://me:s3cret@127.0.0.1:1/db", "refused|create a connection"),
        ("postgresql://me:s3cret@127.0.0.1:port/db", "port"),
    ],
)
def test_what_is_no_queue_is_one_line_without_its_password(url: str, why: str):
    with pytest.raises((ConfigError, QueueAway), match=why) as caught:
        Database(url)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_tables_of_another_version_are_said_at_once(database):
    with database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE qsweep_jobs DROP COLUMN log")
        connection.exec_driver_sql("ALTER TABLE qsweep_workers ADD COLUMN mood VARCHAR(8)")
    why = (
        r"another version of qsweep \(qsweep_jobs without log, qsweep_workers with mood\); give "
        "another database, or the version"
    )
    with pytest.raises(ConfigError, match=why):
        Database(database.url)


def test_patience_ends():
    tried = []

    def away():
        tried.append(1)
        raise QueueAway("away")

    with pytest.raises(QueueAway, match=r"away \(for"):
        patiently(away, 1.0, pause=lambda _: None if len(tried) < 4 else time.sleep(1))
    assert len(tried) == 4


def test_ten_times_the_jobs_cost_about_ten_times_the_work(tmp_path):
    def seconds(count: int) -> float:
        database = Database(sqlite_url(tmp_path / f"{count}-{time.monotonic_ns()}.db"))
        listen(database._engine, "connect", lambda it, _: it.execute("PRAGMA synchronous=OFF"))
        database._engine.dispose()  # what counts is the work, and not the disk's
        orders = Orders(database, "s", "head:1:x")
        orders.take_over(60, 2)
        claims = Claims(database, "s", "w:1:x")
        began = time.process_time()
        orders.submit([job("r"), *(job(str(n), "r") for n in range(count))])
        drained = len(drain(claims))
        while rows := orders.news():
            orders.noted(rows, {})
        assert drained == count + 1
        database.close()
        return time.process_time() - began

    small = min(seconds(60) for _ in range(2))
    assert seconds(600) < 30 * small  # a quadratic step: 100 times


def test_every_question_is_answered_by_an_index_of_its_own(tmp_path):
    database = Database(sqlite_url(tmp_path / "q.db"))
    plans: dict[str, list[str]] = {}

    def explain(_connection, cursor, statement, parameters, _context, many):
        if statement.startswith(("SELECT", "UPDATE")) and not many:
            found = cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            plans[statement] = [row[3] for row in found]

    orders, claims = Orders(database, "s", "head:1:x"), Claims(database, "s", "w:1:x")
    orders.take_over(60, 2)
    orders.submit([job("a"), job("b", "a")])
    listen(database._engine, "before_cursor_execute", explain)
    claim = claims.take(CPU)
    claims.renew([claim])
    claims.still_held([claim])
    claims.hand_in(claim, DONE, "")
    claims.look_after()
    orders.noted(orders.news(), {})
    orders.expire()
    orders.open_jobs()
    database.close()
    assert len(plans) > 10
    for statement, steps in plans.items():
        for step in steps:
            # By a whole key, or in an index of those rows alone; none goes through a sweep's jobs.
            assert step.startswith("SEARCH") and not step.endswith("qsweep_jobs_1 (sweep=?)"), (
                statement
            )
