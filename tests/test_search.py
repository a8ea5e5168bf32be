"""``search``: trials that Optuna proposes, each a run of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from fedmoe.cli import main
from fedmoe.errors import UserError
from fedmoe.search.space import Choice, Range, Space, read_space
from fedmoe.search.study import Tried, best_of, search

SWEEPS = Path(__file__).parents[1] / "configs" / "sweeps"
RATES = {"optim.prompt_lr": Range(0.001, 0.2, log=True), "prompt.length": Range(2, 16, integer=True)}


def test_a_sweep_file_is_a_space() -> None:
    rates = read_space(SWEEPS / "learning_rates.yaml")
    assert rates.method == "bayes"
    assert rates.parameters["optim.prompt_lr"] == Range(0.0002, 0.2, log=True)
    grid = read_space(SWEEPS / "prompt_length.yaml").grid()
    assert len(grid) == 15
    assert grid[:4] == [{"prompt.length": n, "seed": s} for n, s in ((2, 0), (2, 1), (2, 2), (4, 0))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1", "has no parameters"),
        ("parameters: {seed: 1}", "parameters.seed is 1; valid is a mapping"),
        ("parameters: {seed: {values: []}}", "parameters.seed.values is"),
        ("parameters: {seed: {min: 2, max: 1}}", "neither values nor numbers min < max"),
        ("parameters: {a: {min: 0, max: 1, distribution: log_uniform_values}}", "a number above 0"),
        ("parameters: {a: {min: 1, max: 2, distribution: uniforn}}", "did you mean 'uniform'"),
        ("method: annealing\nparameters: {a: {value: 1}}", "method is 'annealing'; valid is one of grid"),
        ("method: grid\nparameters: {a: {min: 1, max: 2}}", "which no grid has"),
        ("parameters: [", "is no YAML"),
    ],
)
def test_a_wrong_space_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_space(path)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(method: str, tmp_path: Path) -> None:
    space, seen = Space(method, RATES), []

    def objective(trial: Tried) -> float:
        return 50 + 100 * trial.settings["optim.prompt_lr"] - trial.settings["prompt.length"]

    def stopped(trial: Tried) -> float:
        seen.append(trial.number)
        if trial.number == 12:
            raise KeyboardInterrupt
        return objective(trial)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = search(space, 16, 3, whole, objective, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        search(space, 16, 3, parts, stopped, lambda line: None)
    assert seen == list(range(13))
    assert search(space, 16, 3, parts, objective, lambda line: None) == expected
    assert len({trial.settings["optim.prompt_lr"] for trial in expected}) == 16
    assert all(0.001 <= t.settings["optim.prompt_lr"] <= 0.2 for t in expected)


def test_a_grid_is_tried_in_its_order_and_once(tmp_path: Path) -> None:
    space = Space("grid", {"a": Choice((1, 2)), "b": Choice(("x", None))})
    found = search(space, 99, 0, tmp_path, lambda trial: 7.0, lambda line: None)
    assert [t.settings for t in found] == [{"a": a, "b": b} for a in (1, 2) for b in ("x", None)]
    best = best_of(found)
    assert best is not None
    assert best.number == 0  # the earlier of equals


def test_trials_are_runs_and_the_best_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("method: grid\nparameters: {optim.prompt_lr: {values: [0.0001, 0.1]}}")
    shared = ["--config=fedmoe:smoke", "--method=PromptFL", "--federation.validation=0.2"]
    shared += [f"--features.cache_dir={tmp_path / 'features'}"]
    args = ["search", str(space), *shared, f"--output.dir={tmp_path}", "--output.name=found"]
    assert main([*args, "--trials=1"]) == 0
    first = (tmp_path / "found" / "trial0" / "rounds.jsonl").read_bytes()
    assert main([*args, "--trials=5"]) == 0
    assert (tmp_path / "found" / "trial0" / "rounds.jsonl").read_bytes() == first
    assert not (tmp_path / "found" / "trial2").exists()
    scores = []
    for number, rate in enumerate((0.0001, 0.1)):
        alone = [f"--output.dir={tmp_path}", f"--output.name=alone{number}", f"--optim.prompt_lr={rate}"]
        assert main(["fit", *shared, *alone]) == 0
        rounds = [
            json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
            for folder in (tmp_path / "found" / f"trial{number}", tmp_path / f"alone{number}")
        ]
        assert rounds[0]["validation"] == rounds[1]["validation"]
        scores.append(rounds[1]["validation"]["mean"])
    assert scores[0] != scores[1]
    best = yaml.safe_load((tmp_path / "found" / "best.yaml").read_text())
    assert best["optim"]["prompt_lr"] == (0.0001, 0.1)[scores[1] > scores[0]]
    assert best["output"]["name"] is None
    capsys.readouterr()
    assert main([*args, "--federation.rounds=1"]) == 2
    assert "holds a search with other settings" in capsys.readouterr().err


def test_a_search_without_validation_or_with_an_unknown_setting_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("parameters: {optim.promt_lr: {min: 0.1, max: 0.2}}")
    args = ["search", str(space), "--config=fedmoe:smoke", f"--output.dir={tmp_path}", "--output.name=found"]
    assert main(args) == 2
    assert "federation.validation is 0, but search chooses by validation accuracy" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()
    assert main([*args, "--federation.validation=0.2"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not (tmp_path / "found" / "trial0").exists()


def test_without_optuna_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("parameters: {optim.prompt_lr: {min: 0.1, max: 0.2}}")
    monkeypatch.setitem(sys.modules, "optuna", None)  # an import of it fails
    args = ["search", str(space), "--config=fedmoe:smoke", "--federation.validation=0.2", f"--output.dir={tmp_path}"]
    assert main(args) == 2
    assert (
        "Error: search needs Optuna, which is not installed; valid is pip install fedmoe[search]."
        in capsys.readouterr().err
    )
