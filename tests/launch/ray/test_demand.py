"""What a job takes from which node, without any."""

import pytest

from qsweep.base.errors import ConfigError
from qsweep.launch import Launcher
from qsweep.launch.ray import RayLauncher
from qsweep.launch.ray.demand import (
    Demand,
    Node,
    Wish,
    all_but,
    demand_of,
    has_labels,
    room_on,
    why_nowhere,
)

HEAD = Node("0", "head")  # as KubeRay's, which is to run nothing
BIG = Node("1", "big", cpus=64, gpus=8, memory=512e9, labels={"zone": "a"})
HALF = Node("2", "half", cpus=16, gpus=4, memory=64e9, labels={"zone": "b"})
PLAIN = Node("3", "plain", cpus=32, memory=128e9, others={"disk": 2})


@pytest.mark.parametrize(
    ("device", "wish", "nodes", "cpus", "gpus"),
    [
        # A GPU's share of its node's cores, of that which has least.
        ("auto", Wish(), [HEAD, BIG], 8, 1),
        ("cuda", Wish(), [HEAD, BIG, HALF], 4, 1),
        ("auto", Wish(), [HEAD, PLAIN], 32, 0),
        ("cpu", Wish(), [PLAIN], 32, 0),
        # Beside jobs on GPUs.
        ("cpu", Wish(), [BIG], 8, 0),
        ("all", Wish(), [BIG, HALF], 64, 8),
        # More jobs than GPUs share them, fewer have more cores.
        ("auto", Wish(n_jobs=16), [BIG], 4, 0.5),
        ("auto", Wish(n_jobs=17), [BIG], 3, 1 / 3),
        ("auto", Wish(n_jobs=4), [BIG], 16, 1),
        ("auto", Wish(n_jobs=3), [PLAIN], 10, 0),
        # One job cannot have the cores of two nodes.
        ("auto", Wish(n_jobs=1), [PLAIN, Node("4", "b", cpus=8)], 32, 0),
        ("auto", Wish(num_cpus=2, num_gpus=0.25), [BIG], 2, 0.25),
        ("cpu", Wish(num_gpus=1), [BIG], 8, 0),
        # A cluster that grows from nothing is taken at its word.
        ("auto", Wish(num_gpus=1), [HEAD], 1, 1),
        ("auto", Wish(), [HEAD], 1, 0),
    ],
)
def test_a_jobs_share_is_what_it_would_have_on_its_machine_alone(device, wish, nodes, cpus, gpus):
    demand = demand_of(device, wish, nodes)
    assert (demand.cpus, demand.gpus) == (cpus, pytest.approx(gpus))
    assert demand.threads == cpus


def test_room_is_what_runs_out_first():
    assert room_on(BIG, Demand(8, 1)) == 8
    assert room_on(BIG, Demand(1, 1 / 3)) == 24
    assert room_on(BIG, Demand(16, 1)) == 4
    assert room_on(BIG, Demand(1, 1, memory=200e9)) == 2
    assert room_on(PLAIN, Demand(1, others={"disk": 1})) == 2
    assert room_on(BIG, Demand(1, others={"disk": 1})) == 0
    assert room_on(HEAD, Demand(1)) == 0
    assert room_on(PLAIN, Demand(1, 1)) == 0
    assert room_on(BIG, Demand(1, labels={"zone": "b"})) == 0


def test_labels_select_as_ray_does():
    assert has_labels(BIG, {"zone": "a"}) and not has_labels(BIG, {"zone": "b"})
    assert has_labels(BIG, {"zone": "!b"}) and not has_labels(BIG, {"zone": "!a"})
    assert has_labels(BIG, {"zone": "in(a, b)"}) and not has_labels(BIG, {"zone": "!in(a,b)"})
    assert has_labels(PLAIN, {"zone": "!a"}) and not has_labels(PLAIN, {"zone": "a"})
    assert all_but({"zone": "a"}, {}) == {"zone": "a"}
    assert all_but({"zone": "a"}, {"2": "", "1": ""}) == {
        "zone": "a",
        "ray.io/node-id": "!in(1,2)",
    }


def test_what_no_node_can_run_is_told_in_one_line():
    gpu, plain = Demand(1, 1), Demand(64)
    assert why_nowhere("auto", gpu, [BIG], {}) is None
    assert why_nowhere("cuda", gpu, [PLAIN], {}) == (
        "device=cuda: no node of the Ray cluster has a GPU"
    )
    assert why_nowhere("cuda:1", gpu, [BIG], {}) == (
        "device=cuda:1: a Ray cluster chooses each job's GPU itself; use device=cuda"
    )
    assert why_nowhere("cpu", plain, [PLAIN], {}) == "no node of the Ray cluster has 64 CPUs"
    odd = Demand(1, 2, 9e9, {"disk": 1}, {"zone": "b"})
    assert why_nowhere("auto", odd, [BIG], {}) == (
        "no node of the Ray cluster has 1 CPUs, 2 GPUs, 9 GB of memory, 1 of disk, label zone=b"
    )
    refused = {"1": "node big is not used: qsweep 1 there, 2 here"}
    assert why_nowhere("auto", gpu, [BIG, HALF], refused) is None
    assert why_nowhere("auto", gpu, [BIG], refused) == (
        "no node of the Ray cluster can run it: node big is not used: qsweep 1 there, 2 here"
    )


def test_demands_are_spelled_as_ray_wants_them():
    assert Demand(2).options() == {"num_cpus": 2, "num_gpus": 0}
    assert Demand(2, 0.5, 9e9, {"disk": 1}, {"zone": "b"}).options() == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": 9e9,
        "resources": {"disk": 1},
        "label_selector": {"zone": "b"},
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"max_attempts": 0}, "launch.max_attempts=0"),
        ({"num_cpus": 0}, "launch.num_cpus=0"),
        ({"memory_gb": -1.0}, "launch.memory_gb=-1.0"),
        ({"num_gpus": 1.5}, "launch.num_gpus=1.5"),
        ({"num_gpus": -1}, "launch.num_gpus=-1"),
        ({"address": ""}, "launch.address=: auto, HOST:PORT"),
        ({"address": "10.0.0.5"}, "launch.address=10.0.0.5: auto, HOST:PORT"),
        ({"address": "ray://head"}, "launch.address=ray://head: auto, HOST:PORT"),
        ({"address": "http://head:8265"}, "launch.address=http://head:8265: auto"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        RayLauncher(**options)


@pytest.mark.parametrize(
    "address", [None, "auto", "10.0.0.5:6379", "[::1]:6379", "ray://head.example.org:10001"]
)
def test_an_address_is_one_of_a_few_forms(address):
    assert RayLauncher(address=address).address == address


@pytest.mark.parametrize("num_gpus", [0, 0.5, 1, 2, 4.0])
def test_a_job_may_take_a_share_of_a_gpu_or_several_whole_ones(num_gpus):
    assert RayLauncher(num_gpus=num_gpus).num_gpus == num_gpus


def test_it_is_a_launcher_and_costs_nothing_until_it_is_used():
    with RayLauncher() as launcher:
        assert isinstance(launcher, Launcher)
        assert launcher.run([]) == {}
        assert launcher._driver.pid is None
