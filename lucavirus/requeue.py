"""How a stage's processes ended, and whether the Slurm job that they ran in starts again by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from lucavirus import slurm
from lucavirus.checkpoint import checkpoints
from lucavirus.errors import SAVED, TIME_LIMIT, UserError
from lucavirus.files import replace_json

# Starts after crashes in a row, without a newer checkpoint in between: for nodes that fail (the launcher's own starts
# again by Slurm's will, uncounted), not for bugs.
CRASHES = 2
# Slurm ends a job that was given back within seconds; its answer may be later than that.
_GIVEN_BACK_SECONDS = 300
# What the launcher itself needs before the time limit, when the training has not saved and ended by then.
_LAST_SECONDS, _ASK_AGAIN_SECONDS = 30.0, 60.0


class Ending(Enum):
    """How the processes ended."""

    DONE = "done"
    REFUSED = "a mistake of the user, which another start would meet again"
    TIME_LIMIT = "saved at the scheduler's warning before the time limit"
    TIME_IS_OVER = "had not saved and ended when the time limit came"
    ASKED = "ended because somebody asked for it"
    CRASHED = "failed, as programs and nodes do"


def ending(status: int, message: str, *, told: bool) -> Ending:
    """The ending by exit status and reported message; `told` when the launcher itself got a signal to end."""
    if status == 0:
        return Ending.DONE
    if message.startswith(SAVED):
        return Ending.TIME_LIMIT if TIME_LIMIT in message and not told else Ending.ASKED
    if message:
        return Ending.REFUSED
    return Ending.ASKED if told else Ending.CRASHED


class Requeue:
    """Decides about a Slurm job's next start; crashes are counted in a file, which is given with its first name.

    `work` is the folder of a training's checkpoints: a newer one there makes the count begin anew. `start` is which
    start of the job this is (slurm.restarts).
    """

    def __init__(self, file: Path, work: Path | None, job: str, start: str = "0") -> None:
        self.file, self.work, self.job, self.start = file, work, job, start

    def follow_up(self, end: Ending, say: Callable[[str], None]) -> None:
        """Give the job back to the queue where it has to go on; Slurm ends this process then.

        Does nothing where a later start of the job runs already.
        """
        if self.job and end is not Ending.DONE and self._later_start_runs():
            return
        if not self.job or end in (Ending.DONE, Ending.REFUSED):
            self.file.unlink(missing_ok=True)
        if not self.job or end is Ending.REFUSED:
            return
        try:
            reason = self._reason(end)
            if reason:
                say(f"{reason}: Slurm job {self.job} is being given back to the queue, to go on by itself")
                if slurm.requeue(self.job, self.start):
                    time.sleep(_GIVEN_BACK_SECONDS)  # Slurm ends this process
        except UserError as error:
            say(f"error: the job could not be given back to the queue: {error}")
            if end is Ending.TIME_LIMIT:
                say("all is saved: the same command goes on")

    def _later_start_runs(self) -> bool:
        try:
            return slurm.later_start_runs(self.job, self.start)
        except UserError:  # asked again before the job is given back
            return False

    def _reason(self, end: Ending) -> str:
        if end is Ending.DONE:
            lost = self._snakemake_takes_this_for_a_failure()
            return "a more urgent job takes the nodes, and Snakemake takes this for a failure" if lost else ""
        if end is Ending.TIME_LIMIT:
            return "the time limit is near, all is saved"
        # Processes that did not listen to signals yet, or no more, have crashed of it.
        if end in (Ending.ASKED, Ending.CRASHED) and slurm.being_preempted(self.job):
            return "a more urgent job takes the nodes"
        if end is Ending.ASKED:
            return ""
        crashes = self._count_crash()
        what = "the time limit came before all was saved" if end is Ending.TIME_IS_OVER else "failed"
        return f"{what} (start {crashes} of {CRASHES} after a failure)" if crashes <= CRASHES else ""

    def _snakemake_takes_this_for_a_failure(self) -> bool:
        """True where it was told of a preemption: then it deletes what is made meanwhile. A training's is not told."""
        try:
            return self.work is None and slurm.being_preempted(self.job, patience=0)
        except UserError:  # no answer: most stages end in peace
            return False

    def _count_crash(self) -> int:
        newest = [path.name for path in checkpoints(self.work / "checkpoints")[:1]] if self.work else []
        now = {"job": self.job, "checkpoint": newest}
        before = json.loads(self.file.read_text()) if self.file.exists() else {}
        same = {key: before.get(key) for key in now} == now
        crashes = 1 + (before["crashes"] if same else 0)
        replace_json(self.file, {**now, "crashes": crashes})
        return int(crashes)


class TimeLimit:
    """The end of a Slurm job, which its operator may put off while it runs; never without job."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.ask_at = time.time() if job else float("inf")

    def is_over(self) -> bool:
        """True when the job is about to be ended, and there is just time to give it back to the queue."""
        now = time.time()
        if now < self.ask_at:
            return False
        try:
            last_call = slurm.end_time(self.job) - _LAST_SECONDS
        except UserError:  # the controller is away: the training goes on, and we ask again
            last_call = now + _ASK_AGAIN_SECONDS
        self.ask_at = max(last_call, now + 1)
        return now >= last_call
