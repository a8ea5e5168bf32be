"""configs/regimes/release.yaml: every setting is one that fit takes, and runs with all of them go through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cifar_helpers import write_cifar
from conftest import tiny_config
from test_domains import write_tree

from fedmoe import methods
from fedmoe.cli import experiment_parser, main
from fedmoe.cli.settings import as_plain
from fedmoe.config import flatten
from fedmoe.data.sets.office_caltech import OfficeCaltech10
from fedmoe.io import read_jsonl

CONFIGS = Path(__file__).parents[1] / "configs"
RELEASE: dict[str, Any] = yaml.safe_load((CONFIGS / "regimes/release.yaml").read_text())
DATA = sorted(RELEASE["data"])


def over(first: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those of the others over them."""
    result = dict(first)
    for other in others:
        for key, value in other.items():
            old = result.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            result[key] = over(old, value) if both else value  # type: ignore[arg-type]
    return result


def settings_of(data: str, method: str) -> dict[str, Any]:
    """The regime's settings of a method on a data set, with the classes they belong to."""
    named = {"method": {"class_path": method}, **yaml.safe_load((CONFIGS / f"data/{data}.yaml").read_text())}
    return over(named, RELEASE["settings"], RELEASE["data"][data], RELEASE["methods"].get(method, {}))


def test_the_regime_names_what_exists() -> None:
    assert set(RELEASE) == {"settings", "methods", "data"}
    assert set(RELEASE["methods"]) <= set(methods.__all__)
    assert {f"{name}.yaml" for name in DATA} <= {path.name for path in (CONFIGS / "data").glob("*.yaml")}
    manifests = [
        yaml.safe_load(path.read_text()) for path in CONFIGS.parent.glob("experiments/table[1-4]/manifest.yaml")
    ]
    assert {name for manifest in manifests for name in manifest["data"]} == set(DATA)  # no data set is left out


@pytest.mark.parametrize("method", ["PFedMoAP", "FedProx", "CoOp"])
@pytest.mark.parametrize("data", DATA)
def test_fit_takes_every_setting(data: str, method: str, tmp_path: Path) -> None:
    settings = settings_of(data, method)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    parser = experiment_parser()
    parsed = parser.parse_args([f"--config={tmp_path / 'settings.yaml'}"])
    parser.instantiate(parsed)
    found = flatten(json.loads(json.dumps(as_plain(parsed), default=str)))
    for key, value in flatten(settings).items():
        if key.endswith("class_path"):
            assert str(found[key]).rpartition(".")[2] == value
        else:
            assert found[key] == value, key


def test_every_option_is_another_value_than_the_papers(tmp_path: Path) -> None:
    """So that each of them is told apart; the rate and the smallest size are the paper's, too."""
    for data in DATA:
        settings = settings_of(data, "PFedMoAP")
        bare = {key: {"class_path": settings[key]["class_path"]} for key in ("data", "method")}
        if "partition" in settings:
            bare["partition"] = {"class_path": settings["partition"]["class_path"]}
        (tmp_path / "bare.yaml").write_text(yaml.safe_dump(bare))
        parsed = experiment_parser().parse_args([f"--config={tmp_path / 'bare.yaml'}"])
        plain = flatten(json.loads(json.dumps(as_plain(parsed), default=str)))
        own = flatten(over(RELEASE["settings"], RELEASE["data"][data], RELEASE["methods"]["PFedMoAP"]))
        equal = {key for key, value in own.items() if plain[key] == value and not key.endswith("class_path")}
        assert equal == {"optim.prompt_lr"} | ({"partition.init_args.min_size"} if data == "cifar10" else set())


RUNS = [("cifar10", "PFedMoAP"), ("cifar100", "FedProx"), ("office_caltech10", "PFedMoAP")]


@pytest.mark.parametrize(("data", "method"), RUNS)
def test_a_run_in_the_releases_regime(
    data: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files of the real layouts to the summary, with a tiny CLIP of random weights, all in 16 bits on a CPU."""
    if data == "office_caltech10":
        write_tree(tmp_path / "data", OfficeCaltech10, (3, 2))
    else:
        from fedmoe.data import CIFAR10, CIFAR100

        write_cifar(tmp_path / "data", {"cifar10": CIFAR10, "cifar100": CIFAR100}[data], each=100)
    (tmp_path / "clip.json").write_text(json.dumps(tiny_config("vit")))
    clients, partition = 3, {}
    if data == "office_caltech10":
        clients, partition = 4, {"partition": {"class_path": "OneDomainPerClient"}}
    small = {
        "clip": {"model_config": str(tmp_path / "clip.json"), "pretrained": None},
        "prompt": {"length": 4},
        "data": {"init_args": {"root": str(tmp_path / "data"), "subset": {"train": 120}}},
        **partition,
        "federation": {"clients": clients, "rounds": 2, "local_epochs": 2},
        "features": {"cache_dir": str(tmp_path / "cache")},
        "runtime": {"threads": 1, "accelerator": "cpu"},
        "output": {"dir": str(tmp_path / "runs"), "name": "run"},
    }
    if method == "PFedMoAP":
        small["method"] = {"init_args": {"num_experts": 2, "gating_dim": 16, "heads": 2}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(over(settings_of(data, method), small)))
    assert main(["fit", "--config", str(tmp_path / "settings.yaml")]) == 0, capsys.readouterr().err
    rounds = read_jsonl(tmp_path / "runs/run/rounds.jsonl")
    assert [record["round"] for record in rounds] == [0, 1, 2] and not any(record["failed"] for record in rounds)
    prompt = 4 * 32 * 2  # bytes of 4 vectors of 32 numbers of 16 bits
    assert rounds[1]["bytes"]["up"] == clients * 2 * prompt  # each prompt and its momentum
    assert rounds[1]["bytes"]["down"] == (2 * clients - 1) * prompt  # the first client finds no momentum
