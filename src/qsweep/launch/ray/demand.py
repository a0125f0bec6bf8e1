"""What a job asks of a cluster, and how many such jobs its nodes have room for. Pure."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# The label by which Ray knows each node.
NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class Node:
    """A node of a cluster and what it has in all, free or not. ``memory`` is in bytes."""

    id: str
    host: str
    cpus: float = 0
    gpus: float = 0
    memory: float = 0
    others: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(facts: Mapping[str, Any]) -> "Node":
        """From an entry of ``ray.nodes()``."""
        has = facts["Resources"]
        return Node(
            facts["NodeID"],
            facts["NodeManagerHostname"],
            has.get("CPU", 0),
            has.get("GPU", 0),
            has.get("memory", 0),
            {name: value for name, value in has.items() if name not in ("CPU", "GPU", "memory")},
            facts.get("Labels") or {},
        )


@dataclass(frozen=True)
class Wish:
    """What the options say of every job; ``auto`` is worked out from the nodes."""

    n_jobs: int | Literal["auto"] = "auto"
    num_cpus: float | Literal["auto"] = "auto"
    num_gpus: float | Literal["auto"] = "auto"
    memory: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Demand:
    """What one job takes from its node while it runs. ``memory`` is in bytes."""

    cpus: float
    gpus: float = 0
    memory: float = 0
    others: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """The job's share of the cores, at least one."""
        return max(int(self.cpus), 1)

    def options(self) -> dict[str, Any]:
        """The same as Ray spells it."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory:
            options["memory"] = self.memory
        if self.others:
            options["resources"] = dict(self.others)
        if self.labels:
            options["label_selector"] = dict(self.labels)
        return options


def demand_of(device: str, wish: Wish, nodes: Sequence[Node]) -> Demand:
    """What a job on ``device`` takes from a node; see :class:`~qsweep.launch.job.Job`."""
    allowed = [node for node in nodes if has_labels(node, wish.labels)]
    gpus = _gpus(device, wish, allowed)
    return Demand(
        _cpus(gpus, wish, allowed), gpus, wish.memory or 0, dict(wish.resources), dict(wish.labels)
    )


def room_on(node: Node, demand: Demand) -> int:
    """How many jobs a node that does nothing else has room for."""
    if not has_labels(node, demand.labels):
        return 0
    pairs = [(node.cpus, demand.cpus), (node.gpus, demand.gpus), (node.memory, demand.memory)]
    pairs += [(node.others.get(name, 0), amount) for name, amount in demand.others.items()]
    # A hair more, since three times a third is less than one.
    return min((int(has / takes + 1e-6) for has, takes in pairs if takes), default=0)


def why_nowhere(
    device: str, demand: Demand, nodes: Sequence[Node], refused: Mapping[str, str]
) -> str | None:
    """Why no node can run a job, None if one can.

    ``refused`` are the nodes that must not be used, by id, and why not.
    """
    if ":" in device:
        return f"device={device}: a Ray cluster chooses each job's GPU itself; use device=cuda"
    able = [node for node in nodes if room_on(node, demand)]
    if any(node.id not in refused for node in able):
        return None
    if able:
        return f"no node of the Ray cluster can run it: {refused[able[0].id]}"
    if demand.gpus and not any(node.gpus for node in nodes):
        return f"device={device}: no node of the Ray cluster has a GPU"
    return f"no node of the Ray cluster has {_in_words(demand)}"


def has_labels(node: Node, wanted: Mapping[str, str]) -> bool:
    """Whether a node is one that Ray's ``label_selector`` selects.

    >>> here = Node("1", "a", labels={"zone": "b"})
    >>> [has_labels(here, {"zone": text}) for text in ("b", "!b", "in(a,b)", "!in(a,b)")]
    [True, False, True, False]
    """
    for name, text in wanted.items():
        found = re.fullmatch(r"(!?)(?:in\((.*)\)|(.*))", text)
        assert found is not None
        values = (found[3] if found[2] is None else found[2]).split(",")
        if (node.labels.get(name) in {value.strip() for value in values}) is bool(found[1]):
            return False
    return True


def all_but(labels: Mapping[str, str], refused: Collection[str]) -> dict[str, str]:
    """Labels that select the same nodes, less those with the ids ``refused``."""
    if not refused:
        return dict(labels)
    return {**labels, NODE_LABEL: f"!in({','.join(sorted(refused))})"}


def _gpus(device: str, wish: Wish, nodes: Sequence[Node]) -> float:
    most = max((node.gpus for node in nodes), default=0)
    if device == "cpu" or (device == "auto" and not most and wish.num_gpus == "auto"):
        return 0
    if device == "all":
        return max(int(most), 1)
    if wish.num_gpus != "auto":
        return wish.num_gpus
    total = sum(node.gpus for node in nodes)
    if wish.n_jobs == "auto" or wish.n_jobs <= total:
        return 1
    return 1 / math.ceil(wish.n_jobs / max(total, 1))  # they share GPUs, as on one machine


def _cpus(gpus: float, wish: Wish, nodes: Sequence[Node]) -> float:
    """Each job's share of the cores of its node: what it would have on that machine alone."""
    if wish.num_cpus != "auto":
        return wish.num_cpus
    of_use = [node for node in nodes if node.cpus >= 1 and node.gpus >= gpus]
    if not of_use:
        return 1
    if wish.n_jobs != "auto":
        total = sum(node.cpus for node in of_use)
        share = min(total / wish.n_jobs, max(node.cpus for node in of_use))
    else:
        # Beside jobs on GPUs, one on the CPU must not wait for a whole node.
        share = min(node.cpus * min((gpus or 1) / max(node.gpus, 1), 1) for node in of_use)
    return max(int(share), 1)


def _in_words(demand: Demand) -> str:
    words = [f"{demand.cpus:g} CPUs"]
    if demand.gpus:
        words.append(f"{demand.gpus:g} GPUs")
    if demand.memory:
        words.append(f"{demand.memory / 1e9:g} GB of memory")
    words += [f"{amount:g} of {name}" for name, amount in demand.others.items()]
    words += [f"label {name}={value}" for name, value in demand.labels.items()]
    return ", ".join(words)
