"""The controls of tables and figures: pFedMoAP but for one thing, below the published rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from reproduce_helpers import NAMES, write_run

from experiments.reproduce.manifest import load_manifest
from experiments.reproduce.plan import Options, make_plan
from experiments.reproduce.report import write_report


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
