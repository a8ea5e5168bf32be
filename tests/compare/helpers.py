"""What every test of compare shares: its runs, how one is changed, what lies in their files, a mistake's sentence."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from fedmoe.cli import main

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
METHODS = {"a": ["--method=PromptFL"], "b": ["--method=PFedMoAP", "--method.num_experts=2"]}

# Two methods, three seeds each: all runs on their own, in folders of any name.
SMALL = [
    f"--config={ROOT / 'configs/embedded.yaml'}",
    *("--data.subset.train=60", "--data.subset.test=60", "--federation.clients=7", "--partition.min_size=2"),
    *("--federation.local_epochs=1", "--federation.rounds=2", "--federation.validation=0.25"),
]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def change(run: Path, target: Path, **changes: object) -> Path:
    """A copy of a run with other settings, by dotted name."""
    shutil.copytree(run, target)
    config = yaml.safe_load((target / "config.yaml").read_text())
    for key, value in changes.items():
        *above, name = key.split("__")
        place = config
        for part in above:
            place = place[part]
        place[name] = value
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


def sentence(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("Error: ")
    return err
