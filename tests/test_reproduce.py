"""Manifests against the paper's numbers and fedmoe's own settings; the reports; the runs as processes."""

from __future__ import annotations

import json
import os
import pickletools
import re
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
from experiments.reproduce.cifar_files import COARSE_LABELS, write_cifar
from experiments.reproduce.manifest import ROOT, load_manifest, names, read_manifest
from experiments.reproduce.plan import Options, Plan, Run, flat, make_plan
from experiments.reproduce.progress import Estimate, Running
from experiments.reproduce.report import latex, write_report
from experiments.reproduce.results import Column, columns, published, published_value, values
from experiments.reproduce.runner import run_all
from fedmoe.data import CIFAR10, CIFAR100
from fedmoe.errors import UserError
from fedmoe.readers.array_pickle import load_arrays
from fedmoe.runs.records import Attention, RoundRecord

TABLES = [1, 2, 3, 4, 6, 7, 8, 9]
NAMES = [f"table{n}" for n in TABLES] + [f"figure{n}" for n in (3, 4, 5, 6)] + ["experts_matter"]


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
    plan = make_plan(load_manifest("table2"), Options(tmp_path, seeds=1))
    of = {cell.row.key: cell.runs[0].settings for cell in plan.cells}
    gate = {key: of["pfedmoap"][f"method.init_args.{key}"] for key in ("heads", "gating_dim", "lmbda")}
    assert gate == {
        "heads": training["gating_heads"],
        "gating_dim": training["gating_dim"],
        "lmbda": training["lambda"],
    }
    assert of["coop"]["method.init_args.epochs"] == training["coop_epochs"]
    assert of["promptfl"]["prompt.length"] == training["prompt_length"]


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
        assert not plan.pending()  # a misspelt method or setting would be
        assert plan.runs and len({run.name for run in plan.runs}) == len(plan.runs)
        if preset is None:
            assert not [cell for cell in plan.cells if cell.state == "left out"]
        if plan.runs and manifest.data[1:]:
            row = next(cell.row for cell in plan.cells if cell.runs)
            others = make_plan(replace(manifest, data=manifest.data[1:], rows=(row,)), Options(tmp_path, seeds=1))
            assert len(others.runs) == len(manifest.data[1:]) * len(manifest.axis.values if manifest.axis else (0,))


def test_options_scale_a_table_down(tmp_path: Path) -> None:
    plan = make_plan(load_manifest("table3"), Options(tmp_path, Path("/data"), seeds=2, rounds=3, clients=12))
    assert len(plan.runs) == 5 * 2
    run = next(run for run in plan.runs if run.name == "pfedmoap-domainnet-seed1")
    assert run.settings["data.init_args.root"] == "/data"
    assert run.settings["federation.clients"] == 12
    assert run.settings["partition.init_args.clients_per_domain"] == 2
    assert run.settings["federation.rounds"] == run.rounds == 3
    assert "--seed=1" in run.arguments
    assert run.settings["method.init_args.num_experts"] == 11
    assert plan.notes == ("pFedMoAP: 11 non-local experts in place of 19, as there are 12 clients.",)


def test_clients_that_do_not_fit_the_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--clients is 10, but DomainNet has 6 domains"):
        make_plan(load_manifest("table3"), Options(tmp_path, clients=10))


def test_with_fewer_clients_a_point_that_needs_more_is_left_out_and_a_default_is_lowered(tmp_path: Path) -> None:
    plan = make_plan(load_manifest("figure5"), Options(tmp_path, seeds=1, clients=10))
    assert {cell.x: cell.state for cell in plan.cells} == {
        5: "run", 10: "run", 15: "left out", 20: "left out", 25: "left out", 30: "left out", 35: "left out",
        40: "left out",
    }  # fmt: skip
    plan = make_plan(load_manifest("table2"), Options(tmp_path, seeds=1, clients=5))
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
    plan = make_plan(load_manifest("table2"), Options(tmp_path_factory.mktemp("table2")))
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
    plan = make_plan(load_manifest("table4"), Options(tmp_path, seeds=1))
    write_run(plan.runs[1], 30.0, {"amazon": 10.0, "caltech": 20.0, "dslr": 50.0, "webcam": 40.0})
    found = {v.column.key: v.mean for v in values(plan) if v.row.key == "coop"}
    assert found == {"amazon": 10.0, "caltech": 20.0, "dslr": 50.0, "webcam": 40.0, "average": 30.0}
    manifest = load_manifest("table1", "embedded")
    settings = {"method": {"class_path": "NotThere"}}
    waiting = replace(manifest, rows=(*manifest.rows[:1], replace(manifest.rows[1], configs=(), settings=settings)))
    plan = make_plan(waiting, Options(tmp_path / "pending", seeds=1))
    assert plan.pending() == {"CoOp": "the method NotThere does not exist yet"}
    text = write_report(plan).read_text(encoding="utf-8")
    assert "| CoOp | pending |" in text and "Pending: CoOp (the method NotThere does not exist yet)." in text


def test_curves_and_attention_are_reported(tmp_path: Path) -> None:
    plan = make_plan(load_manifest("figure5", "embedded"), Options(tmp_path / "curves", seeds=2))
    for run in plan.runs:
        if "num_experts5-" in run.name:
            write_run(run, 60.0 + 2 * run.seed)
    text = write_report(plan).read_text(encoding="utf-8")
    assert "| pFedMoAP | missing | 61.00 ± 1.41 | missing | missing | missing |" in text
    plan = make_plan(load_manifest("figure6", "embedded"), Options(tmp_path / "attention", seeds=2))
    for run, shift in zip(plan.runs, (0.0, 0.1), strict=True):
        write_run(run, 60.0)
        attention = Attention(local=0.3 + shift, experts=[0.5 - shift, 0.2])
        cost: dict[str, Any] = {
            "seconds": {"train": 1.0, "evaluate": 0.0, "other": 0.0},
            "bytes": {"down": 0, "up": 0, "evaluate_down": 0},
        }
        rounds = [RoundRecord(round=0, **cost), RoundRecord(round=30, attention=attention.to_json(), **cost)]
        lines = "".join(json.dumps(record.to_json()) + "\n" for record in rounds)
        (run.folder / "rounds.jsonl").write_text(lines, encoding="utf-8")
    text = write_report(plan).read_text(encoding="utf-8")
    # 0.3 and 0.4: mean 0.35, sample deviation 0.1 / sqrt(2)
    assert "| local | 0.3500 | 0.0707 |" in text
    assert "| 1 | 0.4500 | 0.0707 |" in text and "| 2 | 0.2000 | 0.0000 |" in text


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
    command += ["--clients=5", f"--out={tmp_path / 'out'}"]
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
    manifest = load_manifest("table2", "tiny-cifar")
    rows = tuple(row for row in manifest.rows if row.key == "pfedmoap")
    settings = {**manifest.settings, "features": {"cache_dir": str(tmp_path / "cache")}}
    plan = make_plan(replace(manifest, rows=rows, data=manifest.data[:1], settings=settings), Options(tmp_path / "out"))
    plan.check_data()
    outcome = run_all(plan.runs, 1, Console(), "tiny", plan.options.out)
    assert (outcome.finished, outcome.failed) == (1, [])
    [value] = values(plan)
    assert value.mean is not None and 0 <= value.mean <= 100
    assert value.published is None  # random weights compare with nothing
    config = yaml.safe_load((plan.runs[0].folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["clip"]["architecture"] == "RN50" and config["clip"]["pretrained"] is None
