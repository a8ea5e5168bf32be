"""Manifests against the paper's numbers and fedmoe's own settings; the reports; the runs as processes."""

from __future__ import annotations

import io
import json
import os
import pickletools
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import fedmoe.data
from experiments.reproduce import regimes
from experiments.reproduce.cifar_files import COARSE_LABELS, write_cifar
from experiments.reproduce.fields import merged
from experiments.reproduce.manifest import ROOT, Manifest, load_manifest, names, read_manifest
from experiments.reproduce.plan import Options, Plan, Run, flat, make_plan
from experiments.reproduce.progress import Estimate, Running
from experiments.reproduce.regimes import load_regimes
from experiments.reproduce.report import latex, terminal_table, write_report
from experiments.reproduce.results import Column, columns, published, published_value, values
from experiments.reproduce.runner import run_all
from fedmoe.data import CIFAR10, CIFAR100
from fedmoe.errors import UserError
from fedmoe.readers.array_pickle import load_arrays
from fedmoe.report.tables import show
from fedmoe.runs.records import Attention, RoundRecord

TABLES = [1, 2, 3, 4, 6, 7, 8, 9]
NAMES = [f"table{n}" for n in TABLES] + [f"figure{n}" for n in (3, 4, 5, 6)] + ["zero-shot", "experts_matter"]


def published_alone(name: str, preset: str | None = None) -> Manifest:
    """A manifest without controls."""
    return replace(load_manifest(name, preset), controls=())


def published_rows(section: Mapping) -> dict[str, list]:
    """The rows of a section by name, "group.row" where it has groups."""
    rows: dict[str, list] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            rows |= {f"{key}.{name}": row for name, row in value.items()}
        elif key != "columns":
            rows[key] = value
    return rows


def test_every_table_and_figure_has_a_manifest_and_a_readme() -> None:
    assert set(names()) == set(NAMES)
    for name in NAMES:
        text = (ROOT / "experiments" / name / "README.md").read_text(encoding="utf-8")
        assert f"make reproduce-{name} " in text
        assert "## Our numbers" in text


@pytest.mark.parametrize("number", TABLES)
def test_published_numbers_have_the_shape_of_their_table(number: int) -> None:
    section = published()[f"table{number}"]
    rows = published_rows(section)
    assert len(rows) >= 4
    for row in rows.values():
        assert len(row) == len(section["columns"])
        for mean, std in row:
            assert 0 < mean < 100 and 0 <= std < 20


@pytest.mark.parametrize("number", TABLES)
def test_a_table_asks_for_exactly_the_published_rows_and_columns(number: int) -> None:
    manifest = load_manifest(f"table{number}")
    section = published()[f"table{number}"]
    assert manifest.published == f"table{number}"
    assert {row.published for row in manifest.rows} == set(published_rows(section))
    assert [column.key for column in columns(manifest)] == section["columns"]
    for row in manifest.rows:
        for column, expected in zip(columns(manifest), published_rows(section)[row.published], strict=True):
            found = published_value(manifest, row, column)
            assert found is not None and [found.mean, found.std] == expected


@pytest.mark.parametrize(
    ("table", "row", "column", "mean", "std"),
    [  # read off the paper
        ("table1", "pfedmoap_lambda_0.5", "oxford_pets", 99.06, 0.09),
        ("table2", "pfedmoap", "cifar100", 53.42, 0.22),
        ("table3", "promptfl", "average", 24.48, 12.52),
        ("table4", "zero_shot_clip", "webcam", 6.20, 3.84),
        ("table6", "pfedmoap_epsilon_25", "dtd", 89.11, 0.28),
        ("table6", "pfedmoap_without_dp", "dtd", 89.13, 0.54),
        ("table6", "prompt_fedprox_without_dp", "flowers102", 66.40, 0.29),
        ("table7", "linear_projection_10_experts", "dtd", 30.42, 7.14),
        ("table8", "experts_30", "sketch", 37.01, 1.08),
        ("table9", "dim_1024", "flowers102", 98.11, 0.33),
    ],
)
def test_a_published_number_is_found_by_row_and_column(
    table: str, row: str, column: str, mean: float, std: float
) -> None:
    manifest = load_manifest(table)
    found = published_value(manifest, next(r for r in manifest.rows if r.key == row), Column(column, "", ""))
    assert found is not None and (found.mean, found.std) == (mean, std)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_table_has_the_published_settings(number: int) -> None:
    setting, training = published()["setting"][f"table{number}"], published()["setting"]["training"]
    manifest = load_manifest(f"table{number}")
    own = flat(manifest.settings)
    assert own["clip.architecture"] == setting["backbone"] and own["clip.pretrained"] == setting["pretrained"]
    for key in ("clients", "participation", "rounds"):
        assert own[f"federation.{key}"] == setting[key]
    assert own["federation.local_epochs"] == training["local_epochs"]
    assert own["optim.prompt_lr"] == training["prompt_lr"] and own["optim.gating_lr"] == training["gating_lr"]
    assert manifest.seeds == training["seeds"]
    assert own.get("partition.init_args.alpha") == setting.get("alpha")
    assert own.get("partition.init_args.clients_per_domain") == setting.get("clients_per_domain")
    config = yaml.safe_load((ROOT / "configs" / "data" / f"{manifest.data[0].key}.yaml").read_text(encoding="utf-8"))
    assert config["data"]["init_args"].get("shots", "all") == setting.get("shots", "all")


def test_the_methods_of_the_tables_have_the_published_settings(tmp_path: Path) -> None:
    training = published()["setting"]["training"]
    plan = make_plan(published_alone("table2"), Options(tmp_path, seeds=1))
    of = {cell.row.key: cell.runs[0].settings for cell in plan.cells}
    gate = {key: of["pfedmoap"][f"method.init_args.{key}"] for key in ("heads", "gating_dim", "lmbda")}
    assert gate == {
        "heads": training["gating_heads"],
        "gating_dim": training["gating_dim"],
        "lmbda": training["lambda"],
    }
    assert of["coop"]["method.init_args.epochs"] == training["coop_epochs"]
    assert of["promptfl"]["prompt.length"] == training["prompt_length"]


def test_without_privacy_is_the_setting_of_table_1(tmp_path: Path) -> None:
    plans = {name: make_plan(published_alone(name), Options(tmp_path, seeds=1)) for name in ("table1", "table6")}
    of = {name: {run.name: run.settings for run in plan.runs} for name, plan in plans.items()}
    for row, same in (
        ("promptfl", "promptfl"),
        ("prompt_fedprox", "prompt_fedprox"),
        ("pfedmoap", "pfedmoap_lambda_0.5"),
    ):
        assert of["table6"][f"{row}_without_dp-dtd-seed0"] == of["table1"][f"{same}-dtd-seed0"]


def test_the_published_sizes_are_those_of_the_data_sets() -> None:
    adapters = {c.name: c for c in vars(fedmoe.data).values() if getattr(c, "published", None) is not None}
    assert len(published()["datasets"]) == 9
    for name, (train, test, classes, *_) in published()["datasets"].items():
        facts = adapters[name].published
        assert (facts.train, facts.test, facts.classes) == (train, test, classes)


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_every_preset_is_a_valid_command(name: str, tmp_path: Path) -> None:
    presets = load_manifest(name).presets
    assert "embedded" in presets
    for preset in (None, *presets):
        manifest = load_manifest(name, preset)
        if manifest.axis is not None:  # first and last place stand for the others
            manifest = replace(manifest, axis=replace(manifest.axis, values=manifest.axis.values[:: 10**9]))
        # Every row on one data set, and one row on the others; make_plan parses each command, or raises.
        plan = make_plan(replace(manifest, data=manifest.data[:1]), Options(tmp_path, seeds=1))
        assert not plan.pending()  # a misspelt method or setting would be among them
        assert plan.runs and len({run.name for run in plan.runs}) == len(plan.runs)
        if preset is None:
            assert not [cell for cell in plan.cells if cell.state == "left out"]
        if plan.runs and manifest.data[1:]:
            row = next(cell.row for cell in plan.cells if cell.runs)
            one = replace(manifest, data=manifest.data[1:], rows=(row,), controls=())
            others = make_plan(one, Options(tmp_path, seeds=1))
            assert len(others.runs) == len(manifest.data[1:]) * len(manifest.axis.values if manifest.axis else (0,))


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("kind: table", "kind: chart"), "kind is 'chart'; valid is table, curves, attention."),
        (("seeds: 3", "seed: 3"), "seed is not known; .* did you mean 'seeds'?"),
        (("label: CoOp,", "lable: CoOp,"), "label is None; valid is a text."),
        (("      coop: {settings", "      cop: {settings"), "rows.cop is no row of the manifest"),
    ],
)
def test_a_mistake_in_a_manifest_is_named(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "table2" / "manifest.yaml").read_text(encoding="utf-8")
    assert change[0] in text
    path = tmp_path / "manifest.yaml"
    path.write_text(text.replace(change[0], change[1], 1), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_manifest(path, "tiny-cifar" if "rows" in sentence else None)


def test_an_unknown_name_or_preset_is_named() -> None:
    with pytest.raises(UserError, match=r"'table5' is no table or figure; .*did you mean"):
        load_manifest("table5")
    with pytest.raises(UserError, match="did you mean 'embedded'"):
        load_manifest("table2", "embeded")


def write_run(run: Run, mean: float, domains: Mapping[str, float] | None = None) -> None:
    """The files of a finished run that a report reads."""
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(dict(run.settings)), encoding="utf-8")
    summary = {
        "rounds": run.rounds,
        "accuracy": {"mean": mean},
        "accuracy_per_domain": domains or {},
        "seconds": {"train": 2.0, "evaluate": 1.0, "other": 0.5},
        "versions": {"fedmoe": "0.0", "torch": "9.9"},
    }
    (run.folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


@pytest.fixture(scope="module")
def table2(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Table 2 with pFedMoAP on CIFAR-10 complete, one seed of PromptFL, and a run with other settings."""
    plan = make_plan(published_alone("table2"), Options(tmp_path_factory.mktemp("table2")))
    runs = {run.name: run for run in plan.runs}
    for seed, mean in enumerate((83.0, 84.0, 85.5)):
        write_run(runs[f"pfedmoap-cifar10-seed{seed}"], mean)
    write_run(runs["promptfl-cifar10-seed1"], 70.0)
    other = runs["coop-cifar10-seed0"]
    write_run(replace(other, settings={**other.settings, "optim.prompt_lr": 1.0}), 99.0)
    write_report(plan)
    return plan


def test_values_are_means_and_sample_deviations_over_seeds(table2: Plan) -> None:
    found = {(v.row.key, v.column.key): v for v in values(table2)}
    own = found["pfedmoap", "cifar10"]
    # (83 + 84 + 85.5) / 3; deviations -7/6, -1/6, 8/6: squares sum to 114/36, over n - 1 = 2
    assert own.mean == pytest.approx(252.5 / 3)
    assert own.std == pytest.approx((114 / 36 / 2) ** 0.5)
    assert own.difference == pytest.approx(252.5 / 3 - 83.46)
    one = found["promptfl", "cifar10"]
    assert (one.mean, one.std) == (70.0, None)
    assert found["coop", "cifar10"].mean is None  # a run with other settings is not this table's


def test_the_markdown_table_compares_and_marks(table2: Plan) -> None:
    text = (table2.options.out / "table2.md").read_text(encoding="utf-8")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "**84.17 ± 1.26**<br>*83.46 ± 0.53 (+0.71)*" in lines["pFedMoAP"]
    assert "70.00 (1 of 3 seeds)<br>*73.29 ± 0.37 (−3.29)*" in lines["PromptFL"]
    assert "missing<br>*80.84 ± 0.39*" in lines["CoOp"]
    assert "**4 of 30 runs.** Seeds 0, 1, 2; ± is the sample standard deviation over seeds (n − 1)" in text
    assert "federation: clients 100, participation 0.1, rounds 120" in text
    assert "Versions: fedmoe 0.0, torch 9.9." in text


def test_csv_latex_and_picture(table2: Plan) -> None:
    out = table2.options.out
    lines = (out / "table2.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 5 * 2
    assert any(line.startswith("pfedmoap,pFedMoAP,cifar10,,done,84.1666") for line in lines)
    tex = (out / "table2.tex").read_text(encoding="utf-8")
    assert "pFedMoAP & \\textbf{84.17 $\\pm$ 1.26} & missing \\\\" in tex
    assert "\\quad paper & 83.46 $\\pm$ 0.53 (+0.71) & 53.42 $\\pm$ 0.22 \\\\" in tex
    assert (out / "table2.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert latex("50 % & a_b λ") == "50 \\% \\& a\\_b $\\lambda$"


def test_domains_are_columns_and_pending_rows_are_marked(tmp_path: Path) -> None:
    plan = make_plan(published_alone("table4"), Options(tmp_path, seeds=1))
    write_run(plan.runs[1], 30.0, {"amazon": 10.0, "caltech": 20.0, "dslr": 50.0, "webcam": 40.0})
    found = {v.column.key: v.mean for v in values(plan) if v.row.key == "coop"}
    assert found == {"amazon": 10.0, "caltech": 20.0, "dslr": 50.0, "webcam": 40.0, "average": 30.0}
    manifest = published_alone("table1", "embedded")
    settings = {"method": {"class_path": "NotThere"}}
    waiting = replace(manifest, rows=(*manifest.rows[:1], replace(manifest.rows[1], configs=(), settings=settings)))
    plan = make_plan(waiting, Options(tmp_path / "pending", seeds=1))
    assert plan.pending() == {"CoOp": "the method NotThere does not exist yet"}
    text = write_report(plan).read_text(encoding="utf-8")
    assert "| CoOp | pending |" in text and "Pending: CoOp (the method NotThere does not exist yet)." in text


def test_curves_and_attention_are_reported(tmp_path: Path) -> None:
    plan = make_plan(published_alone("figure5", "embedded"), Options(tmp_path / "curves", seeds=2))
    for run in plan.runs:
        if "num_experts5-" in run.name:
            write_run(run, 60.0 + 2 * run.seed)
    text = write_report(plan).read_text(encoding="utf-8")
    assert "| pFedMoAP | missing | 61.00 ± 1.41 | missing | missing | missing |" in text
    plan = make_plan(published_alone("figure6", "embedded"), Options(tmp_path / "attention", seeds=2))
    for run, shift in zip(plan.runs, (0.0, 0.1), strict=True):
        write_run(run, 60.0)
        attention = Attention(local=0.3 + shift, experts=[0.5 - shift, 0.2], ranked=[0.6 - shift, 0.1])
        cost: dict[str, Any] = {
            "seconds": {"train": 1.0, "evaluate": 0.0, "other": 0.0},
            "bytes": {"down": 0, "up": 0, "evaluate_down": 0},
        }
        rounds = [RoundRecord(round=0, **cost), RoundRecord(round=30, attention=attention.to_json(), **cost)]
        lines = "".join(json.dumps(record.to_json()) + "\n" for record in rounds)
        (run.folder / "rounds.jsonl").write_text(lines, encoding="utf-8")
    text = write_report(plan).read_text(encoding="utf-8")
    # 0.3 and 0.4: mean 0.35, sample deviation 0.1 / sqrt(2)
    assert "| local | 0.3500 | 0.0707 | 0.3500 | 0.0707 |" in text
    assert "| 1 | 0.4500 | 0.0707 | 0.5500 | 0.0707 |" in text
    assert "| 2 | 0.2000 | 0.0000 | 0.1000 | 0.0000 |" in text


REGIME = """
settings: {optim: {momentum: 0.5}, federation: {batch_size: 16}}
data:
  cifar100: {partition: {init_args: {alpha: 0.25}}, federation: {batch_size: 8}}
methods:
  PFedMoAP: {method: {init_args: {assignment: random, lmbda: 0.25}}}
"""


@pytest.fixture
def regime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A regime beside the paper's, by its name."""
    folder = tmp_path / "regimes"
    folder.mkdir()
    (folder / "other.yaml").write_text(REGIME, encoding="utf-8")
    monkeypatch.setattr(regimes, "REGIMES", folder)
    return "other"


def test_a_regime_lies_over_table_and_data_set_and_under_the_row(regime: str, tmp_path: Path) -> None:
    other = load_regimes("paper,other")
    manifest = published_alone("table2")
    rows = tuple(row for row in manifest.rows if row.key in ("coop", "pfedmoap"))
    own = replace(rows[1], settings={"method": {"init_args": {"lmbda": 0.75}}})
    plan = make_plan(replace(manifest, rows=(rows[0], own)), Options(tmp_path, seeds=1, rounds=2, regimes=other))
    runs = {run.name: run for run in plan.runs}
    assert set(runs) == {f"{row}-{data}{part}-seed0" for row in ("coop", "pfedmoap")
                         for data in ("cifar10", "cifar100") for part in ("", "-other")}  # fmt: skip
    one, more = runs["coop-cifar10-other-seed0"].settings, runs["coop-cifar100-other-seed0"].settings
    assert (one["optim.momentum"], one["federation.batch_size"], one["partition.init_args.alpha"]) == (0.5, 16, 0.5)
    assert (more["federation.batch_size"], more["partition.init_args.alpha"]) == (8, 0.25)
    assert more["partition.init_args.min_size"] == 10  # the table's, which the regime leaves
    gate = runs["pfedmoap-cifar10-other-seed0"].settings
    assert gate["method.init_args.assignment"] == "random" and gate["method.init_args.lmbda"] == 0.75  # the row's
    assert gate["federation.rounds"] == 2
    paper = make_plan(replace(manifest, rows=(rows[0], own)), Options(tmp_path, seeds=1, rounds=2)).runs
    assert {run.name: run.settings for run in paper} == {
        name: run.settings for name, run in runs.items() if "-other-" not in name
    }
    assert {run.data for run in plan.runs} == {"cifar10", "cifar100", "cifar10-other", "cifar100-other"}


def test_a_preset_corrects_a_regime_that_does_not_fit(regime: str, tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "table2" / "manifest.yaml").read_text(encoding="utf-8")
    own = "regimes: {release: {clip: {precision: float32}, partition: {init_args: {min_size: 2, min_test: 0}}}}"
    assert own in text
    own_of_table = "settings:\n  clip: {architecture: RN50"
    text = text.replace(own, "regimes: {other: {optim: {momentum: 0.25}}}")
    text = text.replace(
        own_of_table, f"regimes: {{other: {{optim: {{weight_decay: 0.5, momentum: 0.75}}}}}}\n{own_of_table}"
    )
    path = tmp_path / "mine" / "manifest.yaml"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    found = {}
    for preset in (None, "tiny-cifar"):
        manifest = replace(read_manifest(path, preset), controls=())
        plan = make_plan(
            manifest, Options(tmp_path / str(preset), Path("/data"), seeds=1, regimes=load_regimes("both"))
        )
        for run in plan.runs:
            if run.name.startswith("promptfl-cifar10"):
                found[preset, "-other-" in run.name] = (
                    run.settings["optim.momentum"],
                    run.settings["optim.weight_decay"],
                )
    assert found == {(None, False): (0.9, 0.0005), (None, True): (0.75, 0.5),
                     ("tiny-cifar", False): (0.9, 0.0005), ("tiny-cifar", True): (0.25, 0.5)}  # fmt: skip


def test_a_class_named_alone_keeps_its_name_under_settings() -> None:
    assert merged({"partition": "Pathological"}, {"partition": {"init_args": {"a": 1}}}) == {
        "partition": {"class_path": "Pathological", "init_args": {"a": 1}}
    }
    other = {"partition": {"class_path": "Dirichlet", "init_args": {"alpha": 1}}}
    assert merged({"partition": "Pathological"}, other) == other


@pytest.mark.parametrize(
    ("given", "file", "sentence"),
    [
        ("othr", REGIME, "--regime is 'othr'; valid is paper, other, .* did you mean 'other'"),
        ("paper,paper", REGIME, "valid is each regime once"),
        ("other", "setings: {}", "setings is not known; .* did you mean 'settings'"),
        ("other", "methods: {PFedMoA: {}}", "methods.PFedMoA is not known; .* did you mean 'PFedMoAP'"),
        ("other", "data: {cifar: {}}", "data.cifar is not known"),
        ("other", "data: {cifar10: 3}", "data.cifar10 is 3; valid is a mapping of settings"),
    ],
)
def test_a_mistake_in_a_regime_is_named(given: str, file: str, sentence: str, regime: str) -> None:
    (regimes.REGIMES / f"{regime}.yaml").write_text(file, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        load_regimes(given)


def test_a_setting_that_a_regime_misspells_is_named_with_it(regime: str, tmp_path: Path) -> None:
    (regimes.REGIMES / "other.yaml").write_text("settings: {optim: {momentun: 0.5}}", encoding="utf-8")
    with pytest.raises(UserError, match=r"table2, row zero_shot_clip, data cifar10, regime other: .*momentum"):
        make_plan(load_manifest("table2"), Options(tmp_path, seeds=1, regimes=load_regimes("both")))


def test_both_regimes_stand_beside_the_published_numbers(regime: str, tmp_path: Path) -> None:
    plan = make_plan(published_alone("table2"), Options(tmp_path, seeds=2, regimes=load_regimes("both")))
    runs = {run.name: run for run in plan.runs}
    for row, part, means in (("pfedmoap", "", (83.0, 84.0)), ("pfedmoap", "-other", (80.0, 82.0)),
                             ("coop", "", (70.0, 71.0)), ("coop", "-other", (90.0, 91.0))):  # fmt: skip
        for seed, mean in enumerate(means):
            write_run(runs[f"{row}-cifar10{part}-seed{seed}"], mean)
    path = write_report(plan)
    assert path.name == "table2-paper-other.md"
    text = path.read_text(encoding="utf-8")
    assert "Dir(0.5), 100 clients (paper and other regimes)" in text
    at = text.index("| pFedMoAP | published | 83.46 ± 0.53 | 53.42 ± 0.22 |")
    # 83 and 84: mean 83.5, 0.04 above 83.46; 80 and 82: mean 81, 2.46 below
    lines = text[at:].splitlines()
    assert lines[1] == "|  | paper regime | **83.50 ± 0.71 (+0.04)** | missing |"
    assert lines[2] == "|  | other regime | 81.00 ± 1.41 (−2.46) | missing |"
    assert "|  | other regime | **90.50 ± 0.71 (+9.66)** | missing |" in text  # CoOp, best of its own regime
    assert "The other regime, where it differs from the above: " in text
    assert "optim.momentum 0.9 → 0.5" in text and "method.assignment nearest → random" in text
    assert "federation.batch_size 32 → 16 and 32 → 8" in text
    lines = (tmp_path / "table2-paper-other.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 5 * 2 * 2 and lines[0].endswith(",regime,control")
    assert any(
        line.startswith("pfedmoap,pFedMoAP,cifar10,,done,81.0") and line.endswith(",other,False") for line in lines
    )
    tex = (tmp_path / "table2-paper-other.tex").read_text(encoding="utf-8")
    assert " & paper regime & \\textbf{83.50 $\\pm$ 0.71 (+0.04)} & missing \\\\" in tex
    assert (tmp_path / "table2-paper-other.png").stat().st_size > 10_000
    shown = Console(file=io.StringIO(), width=200)
    show(terminal_table(plan), shown)
    screen = shown.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"pFedMoAP +published +83\.46 ± 0\.53 +53\.42 ± 0\.22", screen)
    assert re.search(r"paper regime +83\.50 ± 0\.71 \(\+0\.04\) +missing", screen)
    narrow = Console(file=io.StringIO(), width=60, force_terminal=True)
    show(terminal_table(plan), narrow)  # in parts, each of which says which line is which
    assert narrow.file.getvalue().count("published") >= 2 * 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("zero-shot", "experts_matter")])
def test_every_table_and_figure_has_controls(name: str) -> None:
    """All of them are about pFedMoAP."""
    manifest = load_manifest(name)
    assert manifest.controls and manifest.all_rows == manifest.rows + manifest.controls
    assert all(row.control and row.group == "controls" for row in manifest.controls)
    assert not any(row.control for row in manifest.rows)
    if name in ("table1", "table2"):
        for one in (manifest, load_manifest(name, "embedded")):
            assert {row.key for row in one.controls} >= {
                "random_experts", "noise_experts", "global_experts", "local_expert_alone", "uniform_gate",
                "untrained_gate", "no_gate", "local_adapter",
            }  # fmt: skip


def test_a_control_is_pfedmoap_of_its_table_but_for_one_thing(tmp_path: Path) -> None:
    plan = make_plan(load_manifest("table3"), Options(tmp_path, seeds=1))
    of = {cell.row.key: cell.runs[0].settings for cell in plan.cells if cell.runs}
    own, control = of["pfedmoap"], of["random_experts"]
    assert {key for key in own if own[key] != control.get(key)} == {"method.init_args.assignment"}
    assert control["method.init_args.num_experts"] == 19


def test_controls_stand_below_the_published_rows(tmp_path: Path) -> None:
    manifest = load_manifest("table2", "embedded")
    found = tuple(row for row in manifest.controls if row.key in ("random_experts", "local_expert_alone"))
    late = replace(found[1], settings={"method": {"init_args": {"not_there": 1}}})
    plan = make_plan(replace(manifest, controls=(found[0], late)), Options(tmp_path / "table", seeds=1))
    for run in plan.runs:
        write_run(run, 90.0 if run.name.startswith("random_experts") else 80.0)
    text = write_report(plan).read_text(encoding="utf-8")
    at = text.index("| pFedMoAP |")
    assert text[at:].splitlines()[:4] == [
        "| pFedMoAP | 80.00 |",
        "| *controls* | |",
        "| Random experts | **90.00** |",
        "| Local expert alone | pending |",
    ]
    assert "Pending: Local expert alone (PFedMoAP has no setting not_there yet)." in text
    csv = (tmp_path / "table" / "table2.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in csv if line.endswith(",True")] == ["random_experts", "local_expert_alone"]
    plan = make_plan(load_manifest("figure5", "embedded"), Options(tmp_path / "curves", seeds=1))
    for run in plan.runs:
        write_run(run, 80.0)
    text = write_report(plan).read_text(encoding="utf-8")
    at = text.index("| pFedMoAP |")
    assert text[at:].splitlines()[1] == "| *controls* | | | | | |"
    assert text[at:].splitlines()[2].startswith("| Random experts | 80.00 |")


def test_a_value_that_an_option_does_not_have_yet_is_pending(tmp_path: Path) -> None:
    manifest = load_manifest("table2")
    odd = replace(manifest.rows[-1], settings={"method": {"init_args": {"assignment": "oldest"}}})
    plan = make_plan(replace(manifest, rows=(odd,), controls=()), Options(tmp_path, seeds=1))
    assert plan.pending() == {"pFedMoAP": "PFedMoAP has no assignment oldest yet"}
    assert plan.runs == []


def test_zero_shot_is_that_cell_of_every_table(regime: str, tmp_path: Path) -> None:
    both = load_regimes("both")
    plan = make_plan(load_manifest("zero-shot"), Options(tmp_path, Path("/data"), seeds=1, regimes=both))
    tables = [make_plan(published_alone(f"table{n}"), Options(tmp_path, Path("/data"), seeds=1, regimes=both))
              for n in (1, 2, 3, 4)]  # fmt: skip
    same = {run.name: run.settings for table in tables for run in table.runs if run.name.startswith("zero_shot_clip-")}
    assert {run.name: run.settings for run in plan.runs} == same and len(same) == 2 * (5 + 2 + 1 + 1)
    found = values(plan)
    expected = [pair for n in (1, 2, 3, 4) for pair in published()[f"table{n}"]["zero_shot_clip"]]
    for name in ("paper", "other"):
        beside = [v.published for v in found if v.regime == name]
        assert [[p.mean, p.std] for p in beside if p is not None] == expected  # all 19 cells, in order
    runs = {run.name: run for run in plan.runs}
    write_run(runs["zero_shot_clip-dtd-seed0"], 41.0)
    write_run(runs["zero_shot_clip-dtd-other-seed0"], 40.0)
    write_run(runs["zero_shot_clip-office_caltech10-seed0"], 90.0, {"amazon": 10.0, "dslr": 95.0})
    text = write_report(plan).read_text(encoding="utf-8")
    assert "|  |  | published | paper regime | other regime |".replace("|  |  |", "| | |") in text
    assert "| *Table 1* |" in text and "| *Table 4* |" in text
    assert "| DTD |  | 40.21 ± 0.12 | 41.00 (+0.79) | 40.00 (−0.21) |" in text
    assert "| Office-Caltech10 | amazon | 9.83 ± 1.63 | 10.00 (+0.17) | missing |" in text
    assert "|  | average | 9.40 ± 0.77 | 90.00 (+80.60) | missing |" in text
    csv = (tmp_path / "zero-shot-paper-other.csv").read_text(encoding="utf-8")
    assert "zero_shot_clip,Zero-shot CLIP,domainnet average,,missing," in csv


def test_time_left_counts_starts_and_work(tmp_path: Path) -> None:
    plan = make_plan(load_manifest("table2", "embedded"), Options(tmp_path, seeds=1))
    runs = [run for run in plan.runs if run.name.startswith(("promptfl", "prompt_fedprox", "pfedmoap"))]
    estimate = Estimate(runs, jobs=1)
    assert estimate.left([], 0.0) is None
    estimate.ended(Running(runs[0], start=0.0, before=0, ready=10.0), now=40.0, ok=True)  # 10 s to start, 30 s of work
    assert estimate.left([], 40.0) == pytest.approx(2 * 40)
    assert estimate.done() == pytest.approx(1 / 3)


def test_cifar_files_have_the_real_format(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    small, large = CIFAR10(root=str(tmp_path)), CIFAR100(root=str(tmp_path))
    assert (len(small.train), len(small.test), len(large.train), len(large.test)) == (60, 20, 400, 200)
    assert np.bincount(small.train.labels).tolist() == [6] * 10 or len(np.unique(small.train.labels)) == 10
    raw = load_arrays(tmp_path / "cifar-10-batches-py" / "data_batch_2")
    assert set(raw) == {"batch_label", "labels", "data", "filenames"}
    assert raw["data"].shape == (12, 3072) and raw["data"].dtype == np.uint8
    pixels = np.asarray(small.train.image(12))  # the first image of the second batch: red, green, blue planes
    assert pixels[3, 5].tolist() == [raw["data"][0, plane * 1024 + 3 * 32 + 5] for plane in range(3)]
    raw = load_arrays(tmp_path / "cifar-100-python" / "train")
    assert [COARSE_LABELS[label] for label in raw["fine_labels"]] == raw["coarse_labels"]
    assert sorted(np.bincount(COARSE_LABELS)) == [5] * 20  # five classes in each of the twenty groups
    codes = {op.name for op, _, _ in pickletools.genops((tmp_path / "cifar-100-python" / "meta").read_bytes())}
    assert "SHORT_BINSTRING" in codes and "BINUNICODE" not in codes  # as Python 2 wrote them


def embedded(tmp_path: Path, rows: dict) -> Plan:
    """A small plan on the digits with rows of their own."""
    manifest = {
        "title": "test", "kind": "table", "configs": ["configs/embedded.yaml"],
        "settings": {"federation": {"clients": 3, "rounds": 1, "local_epochs": 1}, "runtime": {"threads": 1}},
        "data": {"digits": {"label": "Digits"}}, "rows": rows,
    }  # fmt: skip
    path = tmp_path / "mine" / "manifest.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return make_plan(read_manifest(path), Options(tmp_path / "out", seeds=1))


@pytest.mark.slow
def test_a_failed_run_is_named_and_finished_ones_are_skipped(tmp_path: Path) -> None:
    promptfl = {"method": {"class_path": "PromptFL"}}
    diverging = {**promptfl, "optim": {"prompt_lr": 1e30}, "federation": {"on_failure": "stop"}}
    rows = {
        "zero": {"label": "zero", "settings": {"method": {"class_path": "ZeroShot"}}},
        "broken": {"label": "broken", "settings": diverging},
        "whole": {"label": "whole", "settings": promptfl},
    }
    plan = embedded(tmp_path, rows)
    console = Console(file=open(tmp_path / "screen", "w", encoding="utf-8"), width=200)  # noqa: SIM115
    outcome = run_all(plan.runs, 2, console, "mine", plan.options.out)
    assert (outcome.finished, outcome.skipped, outcome.interrupted) == (2, 0, False)
    [(failed, why)] = outcome.failed
    assert failed.name == "broken-digits-seed0"
    assert re.search(r"ended with code 2: Error: Client \d+ failed in round 1: its training loss became nan", why)
    again = run_all([run for run in plan.runs if run is not failed], 2, console, "mine", plan.options.out)
    assert (again.finished, again.skipped, again.failed) == (0, 2, [])
    log = next(run.log for run in plan.runs if run.name.startswith("whole")).read_text(encoding="utf-8")
    assert len(re.findall(r"^\$ python -m fedmoe.cli fit ", log, re.MULTILINE)) == 1
    text = write_report(plan).read_text(encoding="utf-8")
    assert "| broken | missing |" in text and "**2 of 3 runs.**" in text


@pytest.mark.slow
def test_an_interrupted_table_stops_its_runs_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.reproduce", "figure6", "--preset=embedded", "--seeds=1"]
    command += ["--no-controls", "--clients=5", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    first = [*command, "--rounds=1000"]  # too many to be through before it is stopped
    with subprocess.Popen(first, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "round 0/1000" in line or "round 1/1000" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait() == 130, rest
    assert "Stopping 1 run" in rest and "0 of 1 runs are there" in rest
    [log] = (tmp_path / "out" / "logs").iterdir()
    assert "Interrupted; the same command continues" in log.read_text(encoding="utf-8")
    [folder] = (tmp_path / "out" / "runs").iterdir()
    last = json.loads((folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[-1])["round"]
    second = [*command, f"--rounds={last + 3}"]
    done = subprocess.run(second, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on after round" in done.stdout and "1 of 1 runs are there" in done.stdout
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["round"] for record in records] == list(range(last + 4))
    assert "| pFedMoAP | local | 0." in (tmp_path / "out" / "figure6.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_real_clip_and_real_file_formats_end_to_end(tmp_path: Path) -> None:
    manifest = published_alone("table2", "tiny-cifar")
    rows = tuple(row for row in manifest.rows if row.key == "pfedmoap")
    settings = {**manifest.settings, "features": {"cache_dir": str(tmp_path / "cache")}}
    plan = make_plan(replace(manifest, rows=rows, data=manifest.data[:1], settings=settings), Options(tmp_path / "out"))
    plan.check_data()
    outcome = run_all(plan.runs, 1, Console(), "tiny", plan.options.out)
    assert (outcome.finished, outcome.failed) == (1, [])
    [value] = values(plan)
    assert value.mean is not None and 0 <= value.mean <= 100
    # The published number stands beside it, and nothing is subtracted: random weights compare with nothing.
    assert value.published is not None and value.published.mean == 83.46 and value.difference is None
    text = write_report(plan).read_text(encoding="utf-8")
    assert "**Random weights and made-up images: these numbers are no result.**" in text
    assert "<br>*83.46 ± 0.53* |" in text
    config = yaml.safe_load((plan.runs[0].folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["clip"]["architecture"] == "RN50" and config["clip"]["pretrained"] is None
