"""The benchmark of bad clients: what it runs, and its table on made-up runs, by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from experiments.robustness.__main__ import main
from experiments.robustness.plan import ATTACKS, METHODS, NEVER, Planned, plan
from experiments.robustness.results import experts_table, main_table, picture, read, to_csv
from fedmoe.cli.settings import as_experiment, experiment_parser
from fedmoe.errors import UserError


def of(method: str, attack: str, defence: str, seed: int = 0) -> Planned:
    """The planned run of these keys."""
    (found,) = [
        one
        for one in plan(2, 10)
        if (one.method.key, one.attack.key, one.defence.key, one.seed) == (method, attack, defence, seed)
    ]
    return found


def test_every_run_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    runs = plan(2, 10)
    assert len({one.name for one in runs}) == len(runs)
    drawn, seen = set(), {}
    for one in plan(1, 10):
        key = (one.method.key, one.attack.key) if one.defence.key == "none" else (one.defence.key,)
        seen[key] = one
    for one in seen.values():
        experiment, _ = as_experiment(experiment_parser().parse_args([], one.settings(tmp_path)))
        assert experiment.attack is not None
        drawn.add(experiment.attack.attackers(20, 0))
    assert len(drawn) == 1 and len(drawn.pop()) == 4  # the same attackers everywhere
    idle = [one.attack.settings["attack"]["init_args"] for one in runs if one.attack.key in ("none", "backdoor_never")]
    assert {settings["from_round"] for settings in idle} == {NEVER}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Finished runs of two seeds, but one of them, and one of another number of rounds."""

    def write(one: Planned, honest: float, rounds: int = 10, **more: float) -> None:
        (tmp_path / one.name).mkdir()
        numbers = {"honest_accuracy": honest, "attackers_accuracy": 50.0, **more}
        text = json.dumps({"rounds": rounds, "attack": numbers})
        (tmp_path / one.name / "summary.json").write_text(text)

    for seed, accuracy in ((0, 80.0), (1, 70.0)):
        write(of("promptfl", "none", "none", seed), accuracy, success=1.0)
        write(of("promptfl", "replacement_never", "none", seed), accuracy, success=3.0 + seed)
        write(of("promptfl", "replacement", "none", seed), accuracy - 20 - 10 * seed, success=90.0 + 2 * seed)
    write(of("promptfl", "replacement", "median", 1), 69.0, success=7.0)
    write(of("promptfl", "replacement", "median", 0), 69.0, rounds=9)
    write(of("pfedmoap", "none", "none", 0), 85.0, success=1.0, expert_share=20.0)
    write(of("pfedmoap", "copies", "none", 0), 84.0, success=2.0, expert_share=40.0)
    return tmp_path


def test_the_table_by_hand(folder: Path) -> None:
    rows = read(plan(2, 10), folder)
    lines = main_table(rows)
    assert lines[0].startswith("| method | attack | none | norm clipping | median |")
    # 60 and 40: mean 50, sample standard deviation 14.14; successes 90 and 92, and 3 and 4 of honest attackers.
    assert "| PromptFL | model replacement | 50.0 ± 14.1 \\| 91 (4) |  | 69.0 \\| 7 |  |  |  |  |  |" in lines
    assert "| PromptFL | none | 75.0 ± 7.1 |  |  |  |  |  |  |  |" in lines
    assert "| pFedMoAP | nearest copies | 84.0 \\| 2 (1) |  |  |  |  |  |  |  |" in lines
    assert not any("| PromptFL | backdoor" in line for line in lines)
    assert "| model replacement | -25.0 |  |  |  |  |  |" in experts_table(rows)
    assert "| nearest copies |  |  | -1.0 (40) |  |  |  |" in experts_table(rows)
    lines_of = csv.DictReader(to_csv(rows).splitlines())
    found = {(line["method"], line["attack"], line["defence"]): line for line in lines_of}
    one = found["PromptFL", "model replacement", "median"]
    assert (one["seeds"], one["change"], one["std"], one["success_without_attack"]) == ("1", "-1.00", "", "4.00")


def test_the_picture_has_a_panel_for_each_method_that_was_run(folder: Path) -> None:
    figure = picture(read(plan(2, 10), folder))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["PromptFL", "pFedMoAP"]
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"+0.0", "-25.0", "-1.0"} <= texts


def test_nothing_finished_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        read(plan(1, 10), tmp_path)
    assert main(["--dry-run", "--seeds", "1", "--methods", "pfedmoap_alone"]) == 0
    assert len(capsys.readouterr().out.split()) == len(ATTACKS) + 2
    assert [method.key for method in METHODS].count("pfedmoap_alone") == 1
