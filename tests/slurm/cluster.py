"""A small real Slurm on this one machine: munged, slurmctld and four slurmd on loopback, each node with 8 fake GPUs.

Needs root and Debian's packages slurm-wlm and munge. The configuration must lie in /etc/slurm, because the job step
plugin of Snakemake removes SLURM_CONF; a Slurm that is not ours is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = "lucavirus-tests"
NODES, GPUS, CPUS, MEMORY_MB = 4, 8, 32, 8000
PORT = 26917
ETC = Path("/etc/slurm")
# Where Debian keeps daemons, which is not on every PATH.
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

CONFIGURATION = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is requeued waits for its old credential to expire: 2 minutes by default.
AuthInfo=cred_expire=5,socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{tracking}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=30
SlurmdTimeout=10
SlurmctldTimeout=30
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=3,sched_interval=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[26921-{last_port}] CPUs={cpus} Boards=1 \
SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory} Gres=gpu:h100:{gpus} State=UNKNOWN
PartitionName=cpu Nodes=node[1-{nodes}] MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=node[1-{nodes}] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[1-{nodes}] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why no cluster can be made here; empty where one can."""
    absent = [name for name in ("munged", "slurmctld", "slurmd", "srun") if shutil.which(name, path=SBIN) is None]
    if absent:
        return f"needs Debian's packages slurm-wlm and munge: {', '.join(absent)} not found"
    if os.geteuid():
        return "needs root, to start slurmd"
    there = ETC / "slurm.conf"
    if there.exists() and f"ClusterName={NAME}" not in there.read_text():
        return f"{there} is of another Slurm, which is left alone"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            return f"port {PORT} is taken: these tests run here already"
    return ""


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)


def command(*words: str) -> str:
    """What a Slurm command says; an error where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PATH": SBIN})
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def _succeeds(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False, env={**os.environ, "PATH": SBIN}).returncode == 0


class Cluster:
    """The daemons, and what a test may do to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self) -> None:
        """Start all daemons and wait until a step has run on each node."""
        self._write_configuration()
        self._start_munge()
        self.start_controller()
        for number in range(1, NODES + 1):
            self.start_node(f"node{number}")
        idle = [f"node{number} idle" for number in range(1, NODES + 1)]
        _wait(lambda: command("sinfo", "-hNo", "%N %T", "-p", "gpu").splitlines() == idle, 60, "the nodes are not idle")
        command("srun", f"-N{NODES}", "--ntasks-per-node=1", f"--gres=gpu:{GPUS}", "true")

    def stop(self) -> None:
        """End all jobs, then all daemons, by their pid files."""
        if _succeeds("scontrol", "ping"):
            command("scancel", "--user=root")
            with contextlib.suppress(TimeoutError):
                _wait(lambda: not command("squeue", "-h"), 40, "jobs do not end")
        for file in (*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid", self.folder / "munged.pid"):
            _end(file, signal.SIGTERM)
        for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
            (ETC / name).unlink(missing_ok=True)

    def start_controller(self) -> None:
        """Start slurmctld; it goes on from its saved state."""
        command("slurmctld")
        _wait(lambda: _succeeds("scontrol", "ping"), 30, "slurmctld does not answer")

    def stop_controller(self) -> None:
        """Kill slurmctld."""
        _end(self.folder / "slurmctld.pid", signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        command("slurmd", "-N", name)

    def lose_node(self, name: str) -> None:
        """What happens when a node's power goes: its slurmd and all processes of its steps are gone at once."""
        _end(self.folder / f"slurmd-{name}.pid", signal.SIGKILL)
        for pid in processes_of(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _write_configuration(self) -> None:
        (self.folder / "state").mkdir()
        for number in range(GPUS):  # a character device that opens: another name of /dev/null
            os.mknod(self.folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        for number in range(1, NODES + 1):
            (self.folder / f"spool-node{number}").mkdir()
        (ETC / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n")
        devices = f"File={self.folder}/gpu[0-{GPUS - 1}]"
        (ETC / "gres.conf").write_text(f"AutoDetect=off\nNodeName=node[1-{NODES}] Name=gpu Type=h100 {devices}\n")
        values = {
            "name": NAME, "port": PORT, "host": socket.gethostname().split(".")[0], "folder": self.folder,
            "tracking": _tracking(), "nodes": NODES, "last_port": 26920 + NODES, "cpus": CPUS, "memory": MEMORY_MB,
            "gpus": GPUS,
        }  # fmt: skip
        (ETC / "slurm.conf").write_text(CONFIGURATION.format(**values))

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")]
        command("munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket", *files)


def _tracking() -> str:
    """The v1 freezer where it can be written: like real clusters, it signals only the first process of a step."""
    probe = Path(f"/sys/fs/cgroup/freezer/{NAME}-probe")
    try:
        probe.mkdir()
    except OSError:
        return "linuxproc"
    probe.rmdir()
    return "cgroup"


def _end(pid_file: Path, number: signal.Signals) -> None:
    """Send a signal to the process of a pid file and wait until it is gone."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, number)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return
    _wait(lambda: not Path(f"/proc/{pid}").exists(), 20, f"{pid_file} does not end")


def processes_of(node: str) -> list[int]:
    """Processes of the jobs on a node, their slurmstepd included."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (process / "cmdline").read_bytes()
            inside = f"SLURMD_NODENAME={node}\0".encode() in (process / "environ").read_bytes()
            if inside and not name.startswith(b"slurmd"):
                found.append(int(process.name))
    return sorted(found)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster for a while; one at a time on a machine, because they share port and configuration.

    Raises BlockingIOError when another run of these tests has one.
    """
    ETC.mkdir(exist_ok=True)
    with open(ETC / f"{NAME}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cluster = Cluster(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
