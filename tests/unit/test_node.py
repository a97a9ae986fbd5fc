"""One node's torchrun, and where those of a job meet."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any

import pytest

from lucavirus import slurm
from lucavirus.launch import TORCHRUN
from lucavirus.node import main, node_command
from lucavirus.slurm import FIRST_PORT, PORTS, meeting_point


def test_a_port_that_is_taken_is_passed_over() -> None:
    _, port = meeting_point("12345")
    assert FIRST_PORT <= port < FIRST_PORT + PORTS
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", port))
        assert meeting_point("12345")[1] == port + 1
    assert meeting_point("12345")[1] == port != meeting_point("12346")[1]


def test_a_port_is_found_where_the_kernel_has_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = socket.AF_INET, *arguments: Any, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments, **more)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    _, port = meeting_point("12345")
    with real(socket.AF_INET) as other:
        other.bind(("", port))
        assert meeting_point("12345")[1] == port + 1


def test_a_node_starts_a_process_for_each_gpu_it_got() -> None:
    words = ["--master-addr", "n1", "--master-port", "20007", "--nproc-per-node", "3", "train.py", "--settings", "s"]
    step = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_CPUS_PER_TASK": "24"}
    command, variables = node_command(words, step | {"SLURM_GPUS_ON_NODE": "4"})
    assert command[-3:] == ["train.py", "--settings", "s"]
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=n1", "--master-port=20007", "--nproc-per-node=4"} <= set(
        command
    )
    assert variables["OMP_NUM_THREADS"] == "6"
    for none in ({}, {"SLURM_GPUS_ON_NODE": "0"}):
        assert "--nproc-per-node=3" in node_command(words, step | none)[0]
    few = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "2"}
    assert node_command(words, step | few)[1]["OMP_NUM_THREADS"] == "1"


def test_a_node_becomes_a_torchrun_that_passes_signals_on(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.extend(given))
    monkeypatch.setattr(sys, "argv", ["node", "--master-addr=n1", "--master-port=1", "--nproc-per-node=2", "train.py"])
    for name, value in {"NNODES": "2", "NODEID": "0", "CPUS_PER_TASK": "6", "GPUS_ON_NODE": ""}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    main()
    program, command, variables = became
    assert command[: len(TORCHRUN) + 1] == [program, *TORCHRUN]
    assert (variables["OMP_NUM_THREADS"], variables["SLURM_NNODES"]) == ("3", "2")


def test_srun_starts_our_program_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    host, port = meeting_point("12345")
    meeting = ["--master-addr", host, "--master-port", str(port)]
    command = slurm.across_nodes(["srun", "--wait=60", "torchrun", "--nproc-per-node=2", "train.py"], "python3")
    assert command == [
        *("srun", "--wait=60", "python3", "-m", "lucavirus.node"), *meeting, "--nproc-per-node=2", "train.py"
    ]  # fmt: skip
