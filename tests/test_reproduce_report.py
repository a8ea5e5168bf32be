"""What is reported of a table or figure: means over seeds beside the published numbers, on the screen and in files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reproduce_helpers import published_alone, write_run

from experiments.reproduce.plan import Options, Plan, make_plan
from experiments.reproduce.report import latex, write_report
from experiments.reproduce.results import values
from fedmoe.runs.records import Attention, RoundRecord


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
