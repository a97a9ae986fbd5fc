"""One node's part of a training that srun has started on several: one torchrun with a process for each GPU it got."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from lucavirus.launch import THREAD_VARIABLES, TORCHRUN

# How long torchrun waits for ranks that were asked to end; the scheduler kills them earlier where it has its own limit.
SHUTDOWN_SECONDS = 900


def node_command(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """torchrun's command on this node and the variables it needs beside; `environment` is that of an srun task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--master-addr", required=True, help="host of the first node")
    parser.add_argument("--master-port", required=True, help="free port there")
    parser.add_argument("--nproc-per-node", type=int, required=True, help="processes, where the job got no GPU")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the stage's script and its arguments")
    given = parser.parse_args(arguments)
    processes = int(environment.get("SLURM_GPUS_ON_NODE") or 0) or given.nproc_per_node
    threads = str(max(1, int(environment.get("SLURM_CPUS_PER_TASK", processes)) // processes))
    command = [
        sys.executable, *TORCHRUN, f"--shutdown-timeout={SHUTDOWN_SECONDS}",
        f"--nnodes={environment['SLURM_NNODES']}", f"--node-rank={environment['SLURM_NODEID']}",
        f"--master-addr={given.master_addr}", f"--master-port={given.master_port}",
        f"--nproc-per-node={processes}", *given.script,
    ]  # fmt: skip
    return command, dict.fromkeys(THREAD_VARIABLES, threads)


def main() -> None:
    """Become torchrun: the first process of a Slurm step is the one that gets its signals."""
    command, variables = node_command(sys.argv[1:], os.environ)
    os.execve(sys.executable, command, {**os.environ, **variables})


if __name__ == "__main__":
    main()
