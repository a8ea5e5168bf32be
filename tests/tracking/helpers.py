"""What every test of tracking shares: the numbers that a run must be tracked as, and something done after a round."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmoe.federation.callbacks import Callback, FederationView
from fedmoe.runs.records import RoundRecord
from fedmoe.tracking.names import METRICS

README = Path(__file__).parents[2] / "experiments" / "dashboard" / "README.md"
CLIENTS, ROUNDS = 5, 3
SETTINGS = {"seed": 0, "method": {"class_path": "PFedMoAP", "init_args": {"lmbda": 0.5}}, "methods": None}


def under(group: str, key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r[group][key]


def or_none(group: str, key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r[group][key] if r[group] else None


# Where each number of a round stands in its line of rounds.jsonl.
PLACES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "round": lambda r: r["round"],
    **{f"accuracy/{key}": under("accuracy", key) for key in ("mean", "std", "min", "max", "worst_decile")},
    "train/loss": lambda r: r["train_loss"],
    "train/prompt_drift": lambda r: r["prompt_drift"],
    "clients/seen_share": lambda r: r["clients_seen"] / CLIENTS,
    "clients/failed": lambda r: len(r["failed"]),
    "privacy/epsilon": lambda r: r["privacy"]["epsilon"] if r["privacy"] else None,
    "validation/accuracy/mean": lambda r: r["validation"]["mean"] if r["validation"] else None,
    "validation/accuracy/std": lambda r: r["validation"]["std"] if r["validation"] else None,
    **{f"quality/{key}": under("quality", key) for key in ("weighted", "balanced", "ece")},
    **{f"gate/{key}": or_none("gate", key) for key in ("entropy", "entropy_p10", "top_share", "expert_contribution")},
    **{f"generalization/{key}": or_none("generalization", key) for key in ("train_accuracy", "gap")},
    **{f"accuracy_others/{key}": or_none("accuracy_others", key) for key in ("mean", "std")},
    **{
        f"attack/{key}": or_none("attack", key)
        for key in ("honest_accuracy", "attackers_accuracy", "success", "expert_share")
    },
    "attention/local": lambda r: r["attention"]["local"] if r["attention"] else None,
    **{f"seconds/{key}": under("seconds", key) for key in ("train", "evaluate", "other")},
    **{f"bytes/{key}": under("bytes", key) for key in ("down", "up", "evaluate_down")},
}


def log_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_ENTITY", "me")


class At(Callback):
    """Does something once, after a round."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.number, self.action = number, action

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        if record.round == self.number:
            self.action()


def stop() -> None:
    raise KeyboardInterrupt


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def numbers_of(folder: Path) -> list[dict[str, float]]:
    """What each round must be tracked as."""
    rows = [{name: place(record) for name, place in PLACES.items()} for record in rounds_of(folder)]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def csv_of(folder: Path) -> list[dict[str, float]]:
    with open(folder / "rounds.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def complete(folder: Path) -> bool:
    """Whether the run folder has every round once, in both files."""
    return [r["round"] for r in rounds_of(folder)] == list(range(ROUNDS + 1)) and csv_of(folder) == numbers_of(folder)


def scalars(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in METRICS}


def children(name: str, parent: int | None = None) -> list[int]:
    """Processes that this one, or another, has started under a name."""
    found, parent = [], parent or os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(stat.parent.name), stat.read_text()
        except OSError:
            continue
        if f"({name}" in rest and int(rest.rpartition(")")[2].split()[1]) == parent:
            found.append(pid)
    return found
