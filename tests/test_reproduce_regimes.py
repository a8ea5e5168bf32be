"""Regimes, the settings that stand beside the paper's: where they lie among the others, and tables with two of them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from reproduce_helpers import published_alone, write_run
from rich.console import Console

from experiments.reproduce import regimes
from experiments.reproduce.fields import merged
from experiments.reproduce.manifest import ROOT, load_manifest, read_manifest
from experiments.reproduce.plan import Options, make_plan
from experiments.reproduce.regimes import load_regimes
from experiments.reproduce.report import terminal_table, write_report
from experiments.reproduce.results import published, values
from fedmoe.errors import UserError
from fedmoe.report.tables import show

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
