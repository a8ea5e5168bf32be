"""The runs of a table as processes: the time left, failures, interruptions, and a table from end to end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from reproduce_helpers import published_alone
from rich.console import Console

from experiments.reproduce.manifest import ROOT, load_manifest, read_manifest
from experiments.reproduce.plan import Options, Plan, make_plan
from experiments.reproduce.progress import Estimate, Running
from experiments.reproduce.report import write_report
from experiments.reproduce.results import values
from experiments.reproduce.runner import run_all


def test_time_left_counts_starts_and_work(tmp_path: Path) -> None:
    plan = make_plan(load_manifest("table2", "embedded"), Options(tmp_path, seeds=1))
    runs = [run for run in plan.runs if run.name.startswith(("promptfl", "prompt_fedprox", "pfedmoap"))]
    estimate = Estimate(runs, jobs=1)
    assert estimate.left([], 0.0) is None
    estimate.ended(Running(runs[0], start=0.0, before=0, ready=10.0), now=40.0, ok=True)  # 10 s to start, 30 s of work
    assert estimate.left([], 40.0) == pytest.approx(2 * 40)
    assert estimate.done() == pytest.approx(1 / 3)


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
