"""A real Slurm on this host's loopback: munge, a controller and two nodes, in a folder of its own.

The nodes differ by name and port alone: the slurmd of Debian is built for several on one host.
Everything is quick where a cluster's administrator would be patient, so that a lost node, a
preemption or a kill is a matter of seconds. There is no accounting, and no cgroup is touched.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

import psutil
import pytest

from helpers.machine import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("n1", "n2")
_UP_S = 20.0
_SETTINGS = """\
ClusterName=qsweep
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=4
KillWait=5
MinJobAge=60
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
"""
# Of two partitions over the same nodes, the second takes them from the first.
_PARTITIONS = """\
PartitionName=main Nodes={nodes} Default=YES MaxTime=60 PriorityTier=1
PartitionName=urgent Nodes={nodes} MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=closed Nodes={nodes} MaxTime=60 State=DOWN
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000\n"
)


@dataclass
class Slurm:
    """The daemons, and what tests do to them. ``partition`` is of two nodes with two CPUs each."""

    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What makes Slurm's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start everything.

        Raises:
            RuntimeError: it is not up in time; the text says what is not.
        """
        host = socket.gethostname().partition(".")[0]
        names = ",".join(NODES)
        settings = _SETTINGS + "".join(
            _NODE.format(name=name, host=host, port=free_port()) for name in NODES
        )
        text = (settings + _PARTITIONS.replace("{nodes}", names)).format(
            host=host, user=getuser(), folder=self.folder, port=free_port()
        )
        (self.folder / "slurm.conf").write_text(text)
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        own = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munged.pid"}
        own |= {"seed-file": "munge.seed", "log-file": "munged.log"}
        options = [f"--{name}={self.folder / file}" for name, file in own.items()]
        end = time.monotonic() + _UP_S
        # Forced, or it would refuse a folder that only its owner may enter, as pytest's are.
        self._start("munged", "--foreground", "--force", *options)
        _wait_for("munged", (self.folder / "munge.sock").exists, end)
        self._start("slurmctld", "-D")
        _wait_for("slurmctld", lambda: "UP" in self.said("scontrol", "ping"), end)
        for name in NODES:
            self.start_node(name)
        for name in NODES:
            _wait_for(name, lambda name=name: self.state(name) == "idle", end)

    def start_node(self, name: str) -> None:
        """Start a node, or bring it back."""
        self._start("slurmd", "-D", "-N", name, key=name)

    def kill_node(self, name: str) -> None:
        """A node loses power: its daemon and all that runs on it are gone in an instant."""
        self.daemons.pop(name).kill()
        log = str(self.folder / f"{name}.log")
        for step in psutil.process_iter(["name", "cmdline"]):
            with contextlib.suppress(psutil.Error):
                if not "".join(step.info["cmdline"] or []).startswith("slurmstepd"):
                    continue
                if log in {file.path for file in step.open_files()}:
                    for process in (step, *step.children(recursive=True)):
                        with contextlib.suppress(psutil.Error):
                            process.kill()

    def state(self, node: str) -> str:
        """A node's state: ``idle``, ``mixed``, ``allocated``, ``down``."""
        return self.said("sinfo", "-h", "-N", "-n", node, "-p", "main", "-o", "%T").strip("*\n ")

    def jobs(self, *options: str) -> list[list[str]]:
        """Id, state, reason and node of each job; of each task where it is an array."""
        lines = self.said("squeue", "-h", "-r", *options, "-o", "%i|%T|%r|%N").splitlines()
        return [line.split("|") for line in lines]

    def said(self, *command: str) -> str:
        """What one of Slurm's commands printed; nothing where it failed."""
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    def close(self) -> None:
        """End every job, then every daemon."""
        if "slurmctld" in self.daemons:
            self.said("scancel", "--user", getuser())
        for name in NODES:
            if name in self.daemons:
                self.kill_node(name)
        for name in ("slurmctld", "munged"):
            if daemon := self.daemons.get(name):
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(5)
                except subprocess.TimeoutExpired:
                    daemon.kill()
        for daemon in self.daemons.values():
            daemon.wait()

    def _start(self, program: str, *options: str, key: str = "") -> None:
        with (self.folder / f"{key or program}.out").open("ab") as output:
            self.daemons[key or program] = subprocess.Popen(
                [program, *options],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm with the nodes ``n1`` and ``n2``, and the partitions ``main``, ``urgent``, ``closed``."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"Slurm is not installed: there is no {', '.join(missing)}")
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    before = os.environ.get("PATH")
    os.environ["PATH"] = path
    try:
        try:
            slurm.start()
        except (RuntimeError, OSError) as error:
            pytest.skip(f"Slurm does not start here: {error}")
        yield slurm
    finally:
        slurm.close()
        if before is not None:
            os.environ["PATH"] = before


@pytest.fixture
def slurm(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The cluster, with both nodes up and no job, for this test's process and what it starts."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    for name in NODES:
        if name not in cluster.daemons:
            cluster.start_node(name)
    yield cluster
    cluster.said("scancel", "--user", getuser())


def until(true, seconds: float = 30.0, what: str = "it"):
    """Wait for something to become true; what that is."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"{what} did not come about in {seconds:g} s"
        time.sleep(0.1)
    return value


def _wait_for(what: str, true, end: float) -> None:
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} is not up in {_UP_S:g} s")
        time.sleep(0.1)
