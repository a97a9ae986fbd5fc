"""Stopped with 2 ranks, gone on with 1, then 3: the same batches, and the loss curve of the uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.slow


def test_other_numbers_of_ranks_go_on_with_the_same_run(tmp_path: Path) -> None:
    settings = tiny.make_project(tmp_path, loss_logging_steps=1)
    tiny.train(settings, "whole", ranks=2)
    updates = tiny.history(settings, "whole")[-1]["update"]
    for ranks, stop in ((2, updates // 4), (1, updates // 2), (3, None)):
        tiny.change_run(settings, stop_after={"updates": stop, "minutes": None})
        tiny.train(settings, "elastic", ranks=ranks)
    whole, elastic = (
        {e["update"]: e for e in tiny.history(settings, name) if e["event"] == "train"} for name in ("whole", "elastic")
    )
    # All but the last update of an epoch, whose remainder may not reach the next multiple of the accumulation.
    assert whole.keys() == elastic.keys() and len(whole) >= updates - 2
    for update, event in whole.items():
        other = elastic[update]
        assert (event["sequences"], event["tokens"], event["lr"]) == (other["sequences"], other["tokens"], other["lr"])
        near = any(0 <= update - change < 20 for change in (0, updates // 4, updates // 2))
        assert other["loss"] == pytest.approx(event["loss"], rel=1e-5 if near else 1e-3)
