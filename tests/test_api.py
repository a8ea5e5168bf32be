"""``import fedmoe``: the same run as on the command line, with objects for settings, read back as frames."""

from __future__ import annotations

import csv
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

import fedmoe
import fedmoe.methods
from fedmoe.api.plain import plain_settings
from fedmoe.cli import main
from fedmoe.config import FederationConfig, OptimConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.methods import Method, PFedMoAP, PromptFL


class _Kept(PromptFL):
    """A method of a user's own that keeps its argument under its name."""

    def __init__(self, strength: float = 0.5) -> None:
        self.strength = strength


class _Forgetful(PromptFL):
    """A method that does not say what it was built with."""

    def __init__(self, strength: float = 0.5) -> None:
        self._half = strength / 2


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> fedmoe.Result:
    folder = tmp_path_factory.mktemp("python")
    return fedmoe.run(
        PFedMoAP(num_experts=2),
        Digits(subset=SubsetConfig(train=120, test=90)),
        config="fedmoe:smoke",
        partition=Dirichlet(0.3),
        optim=OptimConfig(prompt_lr=np.float32(0.25)),  # type: ignore[arg-type]
        federation={"clients": 4},
        features__cache_dir=folder / "features",
        output={"dir": str(folder), "name": "run"},
        quiet=True,
    )


def test_the_run_is_that_of_the_command_line(result: fedmoe.Result) -> None:
    other = result.folder.with_name("other")
    args = ["--config=fedmoe:smoke", "--method.num_experts=2", "--partition.alpha=0.3", "--optim.prompt_lr=0.25"]
    args += ["--federation.clients=4", "--data.subset.train=120", "--data.subset.test=90"]
    args += [f"--features.cache_dir={result.folder.parent / 'features'}", f"--output.dir={other.parent}"]
    assert main(["fit", *args, "--output.name=other", "--quiet"]) == 0
    assert {p.name for p in result.folder.rglob("*")} == {p.name for p in other.rglob("*")}
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (result.folder, other)]
    assert [each["output"].pop("name") for each in settings] == ["run", "other"]
    assert settings[0] == settings[1]
    rounds = [
        [{**json.loads(line), "seconds": None} for line in (folder / "rounds.jsonl").read_text().splitlines()]
        for folder in (result.folder, other)
    ]
    assert rounds[0] == rounds[1]


def test_frames_have_what_the_files_have(result: fedmoe.Result) -> None:
    assert (result.finished, list(result.rounds.index)) == (True, [0, 1, 2])
    with (result.folder / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ["round", *result.rounds.columns] == list(rows[0])
    for row, (_, found) in zip(rows, result.rounds.iterrows(), strict=True):
        expected = [float(row[name]) if row[name] else np.nan for name in result.rounds.columns]
        np.testing.assert_allclose(found.to_numpy(), expected)
    lines = [json.loads(line) for line in (result.folder / "clients.jsonl").read_text().splitlines()]
    assert len(result.clients) == len(lines) == 12
    for line in lines:
        found = result.clients.loc[(line["round"], line["client"])]
        assert (found["correct"], found["total"]) == (line["correct"], line["total"])
        if line["gate"] is not None:
            assert found["gate/entropy"] == line["gate"]["entropy"]
    summary = json.loads((result.folder / "summary.json").read_text())
    ((index, row),) = result.summary.iterrows()
    assert index == str(result.folder)
    assert (row["method"], row["label"], row["seed"], row["rounds"]) == ("PFedMoAP", "pFedMoAP", 0, 2)
    assert row["accuracy/mean"] == result.accuracy == summary["accuracy"]["mean"]
    assert (row["bytes/down"], row["bytes/up"]) == (summary["bytes_down"], summary["bytes_up"])
    assert isinstance(result.plot(), Figure)
    assert repr(result).startswith(f"<Result pFedMoAP: {summary['accuracy']['mean']:.2f} % after round 2, in ")


def test_a_folder_is_loaded_and_one_that_is_none_refused(result: fedmoe.Result, tmp_path: Path) -> None:
    again = fedmoe.load(str(result.folder))
    assert again.rounds.equals(result.rounds) and again.clients.equals(result.clients)
    with pytest.raises(fedmoe.UserError, match="does not exist; valid is a run folder"):
        fedmoe.load(tmp_path / "nothing")
    (tmp_path / "comparison.json").write_text('{"labels": []}')
    with pytest.raises(fedmoe.UserError, match="is a comparison of several runs"):
        fedmoe.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rounds": 3}, "^rounds is not a known setting; did you mean 'federation.rounds'?"),
        ({"federation": {"round": 3}}, "^federation.round is not a known setting; did you mean 'federation.rounds'?"),
        ({"federation__rounds": "many"}, "^federation.rounds is 'many'; valid is an integer"),
        ({"method": "PFedMoap"}, "did you mean 'PFedMoAP'?"),
        ({"method": PFedMoAP(num_experts=50)}, "method.num_experts is 50"),
        ({"method": _Forgetful(0.1)}, "method is a _Forgetful that does not say what strength it was built with"),
        ({"seed": object()}, "seed is of the type object, which no config.yaml can hold"),
        ({"methods": ["PromptFL"]}, "methods is set; fedmoe.run trains one method"),
        ({"config": "fedmoe:quickstart"}, "methods is set; fedmoe.run trains one method"),
        ({"config": "fedmoe:quickstrt"}, "did you mean 'fedmoe:quickstart'?"),
        ({"resume": "runs/x"}, "resume is of the command line"),
    ],
)
def test_mistakes_are_one_sentence(settings: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(fedmoe.UserError, match=sentence):
        fedmoe.run(**{"config": "fedmoe:smoke", "output__dir": str(tmp_path / "runs"), **settings})
    assert not (tmp_path / "runs").exists()


def test_objects_become_what_files_hold() -> None:
    plain = plain_settings({"method": _Kept(0.25), "federation": FederationConfig(rounds=7), "optim__prompt_lr": 0.5})
    assert plain["method"] == {"class_path": f"{__name__}._Kept", "init_args": {"strength": 0.25}}
    assert (plain["federation"]["rounds"], plain["optim.prompt_lr"]) == (7, 0.5)
    assert plain_settings({"method": PromptFL})["method"] == "PromptFL"


def test_every_method_keeps_its_arguments() -> None:
    classes = [getattr(fedmoe.methods, name) for name in fedmoe.methods.__all__ if name != "Method"]
    for cls in classes:
        defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
        assert issubclass(cls, Method)
        assert plain_settings({"method": cls()})["method"] == {"class_path": cls.__name__, "init_args": defaults}


def test_importing_fedmoe_imports_nothing_heavy() -> None:
    code = "import fedmoe, sys; fedmoe.run; fedmoe.load; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "lightning", "pandas", "numpy", "matplotlib", "jsonargparse", "rich", "wandb", "open_clip"}
    assert heavy & set(done.stdout.split()) == set()
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        _ = fedmoe.fit
