"""Every sweep file, expanded as W&B's agent does it, down to the command line and the objects it stands for."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from fedmoe.cli import build_parser
from fedmoe.cli.parser import CommandParser
from fedmoe.tracking.names import METRICS

ROOT = Path(__file__).parents[1]
SWEEPS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))}
RUNS = {"experts": 24, "gating_dim": 90, "lambda": 90, "learning_rates": 4, "prompt_length": 15, "table2": 30}
FEATURES = 1024  # RN50's feature width


@pytest.fixture(scope="module")
def parser() -> CommandParser:
    return build_parser("fit")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def choices(parameter: dict[str, Any]) -> list[Any]:
    """All values of a listed parameter; of a range, both ends."""
    if "values" in parameter:
        return list(parameter["values"])
    assert parameter["distribution"] == "log_uniform_values" and 0 < parameter["min"] < parameter["max"]
    return [parameter["min"], parameter["max"]]


def commands(sweep: dict[str, Any]) -> list[list[str]]:
    """The command lines of all runs: what wandb.wandb_agent.Agent._command_run puts together and starts."""
    found = []
    for values in itertools.product(*map(choices, sweep["parameters"].values())):
        args = {name: {"value": value} for name, value in zip(sweep["parameters"], values, strict=True)}
        parts = create_sweep_command_args({"args": args})
        parts |= {"interpreter": ["python"], "program": [sweep["program"]], "env": ["/usr/bin/env"]}
        line: list[str] = []
        for word in create_sweep_command(list(sweep["command"])):
            macro = word.startswith("${") and word.endswith("}")
            line += parts[word[2:-1]] if macro else [word]
        found.append(line)
    return found


def test_every_sweep_is_here() -> None:
    assert {name: len(commands(sweep)) for name, sweep in SWEEPS.items()} == RUNS


@pytest.mark.parametrize("name", SWEEPS)
def test_every_command_line_is_understood(name: str, parser: CommandParser) -> None:
    seen = []
    for line in commands(SWEEPS[name]):
        assert line[:5] == ["/usr/bin/env", "python", "-m", "fedmoe.cli", "fit"]
        config = parser.parse_args(line[5:])
        assert config.tracking.wandb == "online" and config.methods is None
        assert config.federation.validation == (0.0 if name == "table2" else 0.2)  # what the metric needs
        assert config.output.name is None and config.output.dir == f"runs/sweeps/{name}"
        seen.append(config.as_dict() | {"config": None})
    assert all(a != b for a, b in itertools.combinations(seen, 2))  # no two runs are the same


@pytest.mark.parametrize("name", SWEEPS)
def test_every_setting_arrives_and_fits(name: str, parser: CommandParser) -> None:
    """Each value in its place in the settings, and a method that accepts the federation; one run for each value."""
    sweep = SWEEPS[name]
    for key, parameter in sweep["parameters"].items():
        for value in choices(parameter):
            line = next(line for line in commands(sweep) if f"--{key}={value}" in line)
            config = parser.parse_args(line[5:])
            found = config[key]
            if key in ("data", "method"):
                found = found.class_path.rpartition(".")[2]
            assert found == value and type(found) is type(value)
            built = parser.instantiate(config)
            built.method.check(built.method.schedule(built.federation), FEATURES)


@pytest.mark.parametrize("name", SWEEPS)
def test_metric_and_early_termination(name: str, parser: CommandParser) -> None:
    sweep = SWEEPS[name]
    # A search never sees the test split; table2's grid is the table itself and chooses nothing.
    metric = "accuracy/mean" if name == "table2" else "validation/accuracy/mean"
    assert sweep["name"] == name and sweep["metric"] == {"name": metric, "goal": "maximize"}
    assert sweep["metric"]["name"] in METRICS
    stopping = sweep.get("early_terminate")
    if sweep["method"] == "grid":
        assert stopping is None  # a table needs the last round of every run
        return
    assert sweep["method"] == "bayes" and stopping["type"] == "hyperband"
    federation = parser.parse_args(commands(sweep)[0][5:]).federation
    evaluations = 1 + math.ceil(federation.rounds / federation.evaluate_every)  # the first before training
    assert stopping["min_iter"] * stopping["eta"] < evaluations  # it looks at least twice before a run's end
