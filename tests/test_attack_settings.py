"""Attacks and defences as settings, in Python and on the command line, and the mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmoe.api.plain import plain_settings
from fedmoe.attacks import NearestCopies
from fedmoe.cli import main
from fedmoe.cli.settings import as_experiment, experiment_parser
from fedmoe.config import FeatureConfig
from fedmoe.defences import Median, OutlierTest
from fedmoe.report import report as print_report
from fedmoe.runs.records import read_rounds


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


def test_attacks_and_defences_are_settings_in_python_too() -> None:
    given = {"attack": NearestCopies(clients=(1,)), "aggregation": Median(), "screening": OutlierTest}
    plain = plain_settings(given)
    everything = {"share": 0.2, "clients": [1], "from_round": 1, "epochs": None, "step": 0.1}
    assert plain["attack"] == {"class_path": "NearestCopies", "init_args": everything}
    assert plain["screening"] == "OutlierTest"
    experiment, _ = as_experiment(experiment_parser().parse_args([], plain))
    assert (experiment.attack, experiment.aggregation) == (given["attack"], Median())
    assert experiment.screening == OutlierTest()


def arguments(tmp_path: Path, cache: FeatureConfig, *more: str) -> list[str]:
    small = ["--federation.clients=4", "--federation.rounds=2", "--federation.local_epochs=1", "--method.num_experts=2"]
    where = [f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={cache.cache_dir}"]
    return ["fit", "--config=configs/embedded.yaml", *small, *where, *more]


def test_a_run_records_the_attack(tmp_path: Path, cache: FeatureConfig, capsys) -> None:
    more = ["--attack=Backdoor", "--attack.clients=[2]", "--attack.epochs=4", "--aggregation=TrimmedMean"]
    assert main([*arguments(tmp_path, cache, *more), "--screening=OutlierTest", "--screening.measure=norm"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["attackers"] == [2]
    rounds = read_rounds(tmp_path / "run")
    assert summary["attack"] == rounds[-1].attack
    header, *lines = (tmp_path / "run/rounds.csv").read_text().splitlines()
    column = header.split(",").index("attack/success")
    assert [float(line.split(",")[column]) for line in lines] == [r.attack["success"] for r in rounds if r.attack]
    assert "attack's" in capsys.readouterr().out
    from rich.console import Console

    print_report(tmp_path / "run", Console(quiet=True))
    assert main(arguments(tmp_path, cache, *more)) == 2  # without the screening it is another run
    assert "screening" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--attack=LabelFlop"], "attack is 'LabelFlop'; valid is ModelReplacement, Backdoor, "),
        (["--attack=Backdoor", "--attack.target=10"], "attack.target is 10; valid is 0 to 9, the data's classes."),
        (["--attack=LabelFlip", "--attack.clients=[0,4]"], "attack.clients is [0, 4]; valid is clients of 0 to 3, "),
        (["--attack=LabelFlip", "--attack.share=1.0"], "attack.share is 1.0; valid is a number above 0 and below 1."),
        (["--attack=Backdoor", "--views.kind=online"], "attack is Backdoor, which needs features of images with the"),
        (
            ["--attack=LabelFlip", "--federation.participation=0.5", "--aggregation=Krum"],
            "aggregation.attackers is 1; valid is no Krum with cohorts of fewer than 3.",
        ),
        (
            ["--method=CoOp", "--aggregation=Median"],
            "aggregation is Median, but CoOp averages nothing that it could protect; valid is null, or a method with "
            "shared parameters.",
        ),
        (
            ["--method=PromptFL", "--serving=Noise"],
            "serving is Noise, but PromptFL hands no client's values to others; valid is null, or a method with a pool",
        ),
        (
            ["--method=PromptFL", "--screening=OutlierTest"],
            "screening is OutlierTest, but PromptFL hands no client's values to others; valid is null, or a method "
            "with a pool of prompts, such as PFedMoAP.",
        ),
        (["--method=FedAMP", "--screening=Reputation"], "screening is Reputation, but FedAMP has no gate over experts"),
        (
            ["--federation.share_momentum=true", "--aggregation=Median"],
            "aggregation is Median, but federation.share_momentum is true, which hands on what no defence sees; valid "
            "is false.",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, cache: FeatureConfig, capsys, more: list[str], sentence: str
) -> None:
    given = [arg for arg in arguments(tmp_path, cache) if "num_experts" not in arg or "--method" not in str(more)]
    assert main([*given, *more]) == 2
    said = capsys.readouterr().err
    assert " ".join(said.split()).startswith(f"Error: {sentence}")
    assert not (tmp_path / "run").exists()
