"""Which samples a training has gone through, up to a checkpoint.

The order is a function of (data, seed, epoch) and the position one number, so a checkpoint holds the ledger without a
list: here it is written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lucavirus.config import Run
from lucavirus.dataset import fingerprints, open_splits
from lucavirus.errors import UserError
from lucavirus.plan import Plan
from lucavirus.state import read_fingerprint, read_state

_HINT = "give a folder work/{project}/{run}/checkpoints/step-N, and results/{project} with the data of its training"


def gone_through(checkpoint: Path, data: Path, epoch: int | None = None) -> Iterator[tuple[int, int, str]]:
    """Yield (epoch, update, sample id) of every sample up to a checkpoint, in order; epochs from 0, updates from 1.

    `data` is the project's results folder. Raises UserError for a folder that is no checkpoint, and for data sets that
    are not those of the training.
    """
    try:
        fingerprint, state = read_fingerprint(checkpoint), read_state(checkpoint)
        run = Run.model_validate({key: value for key, value in fingerprint.items() if key in Run.model_fields})
        trained_on = fingerprint["sequences and labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"is no checkpoint ({error})", where=str(checkpoint), hint=_HINT) from error
    splits = open_splits(data, run, ())
    if fingerprints(splits) != trained_on:
        raise UserError("the data sets are not those that the checkpoint was trained on", where=str(data), hint=_HINT)
    train, *_ = splits
    plan = Plan.of(run, len(train))
    for update in range(state.first, state.update):
        at = plan.position(update)
        if epoch in (None, at.epoch):
            for index in plan.update_samples(update).tolist():
                yield at.epoch, update + 1, train.name(index)
