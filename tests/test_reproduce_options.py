"""Options of the command that reproduces a table: smaller tables, weights and features, and what make passes on."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from reproduce_helpers import published_alone

from experiments.reproduce.manifest import ROOT, load_manifest
from experiments.reproduce.plan import Options, make_plan
from fedmoe.errors import UserError


def test_options_scale_a_table_down(tmp_path: Path) -> None:
    scale = Options(tmp_path, Path("/data"), seeds=2, rounds=3, clients=12)
    plan = make_plan(published_alone("table3"), scale)
    assert len(plan.runs) == 5 * 2
    run = next(run for run in plan.runs if run.name == "pfedmoap-domainnet-seed1")
    assert run.settings["data.init_args.root"] == "/data"
    assert run.settings["federation.clients"] == 12
    assert run.settings["partition.init_args.clients_per_domain"] == 2
    assert run.settings["federation.rounds"] == run.rounds == 3
    assert "--seed=1" in run.arguments
    assert run.settings["method.init_args.num_experts"] == 11
    assert plan.notes == ("pFedMoAP: 11 non-local experts in place of 19, as there are 12 clients.",)


def test_weights_precision_and_features_reach_every_run(tmp_path: Path) -> None:
    for name in ("RN50.pt", "RN50x4.pt", "vit-b-16.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    for table, file in (("table2", "RN50.pt"), ("table4", "vit-b-16.safetensors")):
        options = Options(tmp_path, seeds=1, weights=tmp_path, settings={"clip.precision": "float16"})
        for run in make_plan(load_manifest(table), options).runs:
            own = run.settings
            assert (own["clip.weights"], own["clip.precision"]) == (str(tmp_path / file), "float16")
            assert own["clip.quick_gelu"] is True  # a copy of OpenAI's weights does not say so
    with pytest.raises(UserError, match="comes with the package"):
        make_plan(load_manifest("table2", "embedded"), Options(tmp_path, weights=tmp_path))
    (tmp_path / "RN50-openai.pt").touch()
    with pytest.raises(UserError, match=r"holds 2 weights files of RN50 \(of RN50-openai.pt, RN50.pt\)"):
        make_plan(load_manifest("table2"), Options(tmp_path, weights=tmp_path))
    with pytest.raises(UserError, match="which does not exist; valid is a weights file"):
        make_plan(load_manifest("table2"), Options(tmp_path, weights=tmp_path / "none"))


def test_options_of_make_are_those_of_the_command(tmp_path: Path) -> None:
    """What make prints for all of them is a command line that names the runs' settings."""
    words = {"DATA": tmp_path, "REGIME": "paper", "SEEDS": 1, "ROUNDS": 2, "CLIENTS": 20, "JOBS": 1, "OUT": tmp_path}
    words |= {"WEIGHTS": tmp_path / "RN50.pt", "PRECISION": "bfloat16", "FEATURES_CACHE": tmp_path / "cache"}
    words |= {"FEATURES_WORKERS": 3, "FEATURES_BATCH": 32, "WANDB": "offline", "CONTROLS": "no"}
    (tmp_path / "RN50.pt").touch()
    command = ["make", "--dry-run", "--assume-old=setup", "reproduce-table2", *(f"{k}={v}" for k, v in words.items())]
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}  # `make test` runs this, too
    made = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout
    start = made.index("-m experiments.reproduce")
    arguments = shlex.split(made[start:].replace("\\\n", " "))[2:]
    screen = subprocess.run([sys.executable, "-m", "experiments.reproduce", *arguments, "--dry-run"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    [line] = [line for line in screen.splitlines() if "pfedmoap.yaml" in line and "cifar100.yaml" in line]
    for setting in (f"--clip.weights={tmp_path / 'RN50.pt'}", "--clip.precision=bfloat16", "--features.workers=3",
                    f"--features.cache_dir={tmp_path / 'cache'}", "--features.batch_size=32"):  # fmt: skip
        assert setting in shlex.split(line)


def test_clients_that_do_not_fit_the_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--clients is 10, but DomainNet has 6 domains"):
        make_plan(load_manifest("table3"), Options(tmp_path, clients=10))


def test_with_fewer_clients_a_point_that_needs_more_is_left_out_and_a_default_is_lowered(tmp_path: Path) -> None:
    plan = make_plan(published_alone("figure5"), Options(tmp_path, seeds=1, clients=10))
    assert {cell.x: cell.state for cell in plan.cells} == {
        5: "run", 10: "run", 15: "left out", 20: "left out", 25: "left out", 30: "left out", 35: "left out",
        40: "left out",
    }  # fmt: skip
    plan = make_plan(published_alone("table2"), Options(tmp_path, seeds=1, clients=5))
    run = next(run for run in plan.runs if run.name == "pfedmoap-cifar10-seed0")
    assert run.settings["method.init_args.num_experts"] == 4
    assert plan.notes == ("pFedMoAP: 4 non-local experts in place of 9, as there are 5 clients.",)
