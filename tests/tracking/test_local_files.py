"""Tracking without W&B: rounds.csv and TensorBoard's files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmoe.config import TrackingConfig
from fedmoe.errors import UserError
from fedmoe.tracking.names import METRICS
from fedmoe.tracking.trackers import TensorBoardLog
from tracking.helpers import At, complete, csv_of, numbers_of, stop


def test_csv_follows_the_jsonl_through_an_interruption(fit: Callable[..., Path]) -> None:
    folder = fit(TrackingConfig(), At(1, stop))
    assert csv_of(folder) == numbers_of(folder) and len(csv_of(folder)) == 2
    (folder / "rounds.csv").write_text("torn")
    fit(TrackingConfig())
    assert complete(folder)
    assert not (folder / "wandb").exists() and not (folder / "wandb.json").exists()


def test_tensorboard_has_the_same_numbers(fit: Callable[..., Path]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(tensorboard=True, detail_every=2)
    folder = fit(config, At(1, stop))
    fit(config)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    experts = {"experts/assignment", "experts/attention"}
    assert set(events.Tags()["images"]) == {"clients/labels", "classes/confusion", *experts}
    for name in set(METRICS) - {"round"}:
        expected = {int(row["round"]): row[name] for row in numbers_of(folder) if name in row}
        if not expected:  # this run has no such number
            assert name not in events.Tags()["scalars"]
            continue
        assert {e.step: e.value for e in events.Scalars(name)} == pytest.approx(expected, rel=1e-6), name


def test_tensorboard_that_is_missing_is_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as Python does for a failed import
    with pytest.raises(UserError, match=r"pip install 'fedmoe\[tensorboard\]'"):
        TensorBoardLog(tmp_path, 10)
