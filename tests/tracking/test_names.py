"""The names under which numbers are tracked, their meaning, and the settings of tracking."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fedmoe.config import TrackingConfig
from fedmoe.errors import UserError
from fedmoe.tracking.names import DOMAIN, FINAL, MEDIA, METRICS, final_row, round_row
from fedmoe.tracking.wandb_tracker import sweep_run_id
from tracking.helpers import PLACES, README


def test_names_are_documented_with_their_meaning() -> None:
    documented = dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", README.read_text(), re.MULTILINE))
    assert documented == {**METRICS, **MEDIA, **FINAL}
    assert f"`{DOMAIN}`" in README.read_text()
    assert set(PLACES) == set(METRICS)


def test_round_and_summary_by_hand() -> None:
    spread = {"mean": 80.0, "std": 5.0, "min": 70.0, "max": 90.0, "worst_decile": 71.0}
    seconds, sent = {"train": 2.0, "evaluate": 1.0, "other": 0.5}, {"down": 30, "up": 20, "evaluate_down": 10}
    record = {"round": 4, "accuracy": spread, "accuracy_per_domain": {"real": 81.0, "sketch": 79.0}}
    record |= {"train_loss": 0.5, "seconds": seconds, "bytes": sent, "clients_seen": 3, "prompt_drift": 0.1}
    record |= {"attention": {"local": 0.4, "experts": [0.5, 0.1]}}
    row = round_row(record, num_clients=12)
    assert row["clients/seen_share"] == 0.25 and row["attention/local"] == 0.4 and row["bytes/up"] == 20
    assert row["accuracy_domain/real"] == 81.0 and row["accuracy_domain/sketch"] == 79.0
    without = {**record, "round": 5, "accuracy": None, "accuracy_per_domain": {}, "attention": None}
    assert round_row(without, 12)["accuracy/mean"] is None and round_row(without, 12)["attention/local"] is None
    assert final_row([record, without]) == {
        "final/accuracy_mean": 80.0,
        "final/accuracy_std": 5.0,
        "final/accuracy_worst_decile": 71.0,
        "final/rounds": 5,
        "final/seconds": 7.0,
        "final/bytes_down": 60,
        "final/bytes_up": 40,
        "final/bytes_evaluate_down": 20,
    }


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"wandb": "on"}, "wandb"), ({"detail_every": 0}, "detail_every"), ({"timeout": 0}, "timeout")],
)
def test_wrong_settings(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^tracking\.{key} is .*; valid is .*\.$"):
        TrackingConfig(**settings)


def test_sweep_run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert sweep_run_id() is None  # the agent sets both
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert sweep_run_id() == "abc"
