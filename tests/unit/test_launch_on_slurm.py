"""The launcher in a Slurm job, with stand-ins of scontrol and srun: who is given back to the queue, and who is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lucavirus.guard import stage_lock
from lucavirus.launch import REPLACED, ROOT
from tests.launching import Start, alive, child_pid, counting, run


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Job 7 of the workflow; what a stand-in of scontrol says of it, which ends the launcher that gives it back."""
    says, folder = tmp_path / "says", tmp_path / "bin"
    says.write_text("JobState=RUNNING EndTime=Unknown PreemptTime=None")
    given_back = f"echo $2 >> {tmp_path}/given_back; kill -KILL $PPID"
    folder.mkdir()
    for name, text in (
        ("scontrol", f"test $1 = requeue || exec cat {says}; {given_back}"),
        ("srun", f'for script; do true; done; exec {sys.executable} "$script"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LUCAVIRUS_OWN_JOB", "1")
    return says


def given_back(tmp_path: Path) -> bool:
    file = tmp_path / "given_back"
    return file.exists() and file.read_text() == "7\n"


@pytest.mark.parametrize("own", [True, False])
def test_after_a_crash_the_workflows_job_is_given_back_but_no_users(
    start: Start, tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    if not own:
        monkeypatch.delenv("LUCAVIRUS_OWN_JOB")
    assert run(start("exit(3)"))[0] == (-signal.SIGKILL if own else 3)
    assert given_back(tmp_path) is own
    told = "failed (start 1 of 2 after a failure): Slurm job 7 is being given back to the queue, to go on by itself"
    assert (tmp_path / "log").read_text() == (f"{told}\n" if own else "")


@pytest.mark.parametrize(
    ("sent", "preempted", "goes_on"),
    [
        (signal.SIGTERM, "None", False),
        (signal.SIGINT, "None", False),
        (signal.SIGHUP, "None", False),
        (signal.SIGTERM, "2026-01-01T00:00:00", True),
        (signal.SIGUSR1, "None", True),
    ],
)
def test_srun_gets_the_one_signal_it_survives_and_the_job_goes_on_unless_someone_ended_it(
    start: Start, tmp_path: Path, job: Path, sent: int, preempted: str, goes_on: bool
) -> None:
    job.write_text(f"JobState=RUNNING EndTime=Unknown PreemptTime={preempted}")
    process = start(counting(tmp_path), "srun", "torchrun")
    child_pid(tmp_path)
    process.send_signal(sent)
    assert run(process)[0] == (-signal.SIGKILL if goes_on else 5)
    assert (tmp_path / "got").read_text() == str(int(signal.SIGUSR1))
    assert given_back(tmp_path) is goes_on


@pytest.mark.parametrize("failures", [0, 2])
def test_a_training_that_has_not_ended_at_the_time_limit_is_given_back_or_ended(
    start: Start, tmp_path: Path, job: Path, failures: int
) -> None:
    job.unlink()
    os.mkfifo(job)
    counted = {"job": "7", "checkpoint": [], "crashes": failures}
    (tmp_path / "log.restarts").write_text(json.dumps(counted))
    threading.Thread(target=job.write_text, args=("Restarts=0",)).start()  # the first question: which start is this
    process = start(counting(tmp_path), "--guard", str(tmp_path / "work"), "python")
    child = child_pid(tmp_path)
    with job.open("w") as answer:  # who asks waits for it, until the child is there
        job.unlink()
        job.write_text("JobState=RUNNING Restarts=0 EndTime=2020-01-01T00:00:00 PreemptTime=None")
        answer.write(job.read_text())
    status, screen = run(process)
    if failures:
        assert status == 1 and (tmp_path / "got").read_text() == str(int(signal.SIGTERM)) and not alive(child)
    else:
        assert status == -signal.SIGKILL
        assert screen.startswith("the time limit came before all was saved (start 1 of 2 after a failure): Slurm job 7")
    assert given_back(tmp_path) == (not failures)


def test_no_other_stage_is_ended_before_its_time_limit(start: Start, tmp_path: Path, job: Path) -> None:
    job.write_text("JobState=RUNNING EndTime=2020-01-01T00:00:00 PreemptTime=None")
    assert run(start("exit(0)"))[0] == 0


def test_a_stage_ends_for_a_later_start_and_leaves_the_job_to_it(tmp_path: Path, job: Path) -> None:
    """Slurm, which may not reach the lost node any more, is not asked: it would say that the job is being preempted."""
    job.write_text("JobState=RUNNING EndTime=Unknown PreemptTime=2026-01-01T00:00:00")
    text = (
        "from pathlib import Path\n"
        "from lucavirus import guard, launch\n"
        "guard._LOOK_SECONDS = 0.1\n"
        f"exit(launch.launch(['python', '-c', {counting(tmp_path)!r}], Path({str(tmp_path / 'log')!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE)
    child_pid(tmp_path)
    with stage_lock(tmp_path / "log").open("a") as lock:
        lock.write("\nanother waits")
    assert run(process) == (5, f"{REPLACED}\n")
    assert (tmp_path / "got").read_text() == "15" and not given_back(tmp_path)


def test_a_stage_that_has_saved_tells_snakemake_so_whatever_torchruns_status(start: Start, tmp_path: Path) -> None:
    text = "import os; open(os.environ['LUCAVIRUS_ERROR_FILE'], 'a').write('preempted: saved\\n'); exit({})"
    assert run(start(text.format(1))) == (75, "preempted: saved\n")
    assert run(start(text.format(0)))[0] == 0


def test_a_job_that_is_given_back_leaves_no_report_behind(start: Start, tmp_path: Path, job: Path) -> None:
    job.write_text("JobState=RUNNING Restarts=4 EndTime=Unknown PreemptTime=None")
    text = "import os; from lucavirus.errors import SAVED, TIME_LIMIT, report\n"
    text += "report(f'{SAVED}: saved {TIME_LIMIT}'); print(os.environ['LUCAVIRUS_ERROR_FILE'], flush=True); exit(1)"
    _, screen = run(start(text))
    assert screen.startswith(f"{tmp_path}/log.errors4\n") and given_back(tmp_path)
    assert list(tmp_path.glob("log.errors*")) == []
