"""Protocols: all methods in each, and a leaderboard whose numbers are those of the runs' own files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import scipy.stats

from experiments.benchmark import protocols, rates
from experiments.benchmark.__main__ import main
from experiments.benchmark.controls import gains
from experiments.benchmark.leaderboard import Entry, rank
from experiments.benchmark.page import against_controls
from experiments.benchmark.protocols import load_protocol, names
from experiments.benchmark.scores import SCORES, Result, check_scores
from experiments.reproduce.pending import method_of
from experiments.reproduce.plan import Options, make_plan
from fedmoe import methods
from fedmoe.data import DataSet
from fedmoe.errors import UserError

BASE = (19, 51, 24, 50, 51, 51, 199, 98, 50)  # Pets, Flowers, DTD, Caltech, Food, UCF, SUN, Cars, Aircraft


@pytest.mark.parametrize("name", names())
def test_every_method_is_in_every_protocol(name):
    assert [row.marked for row in load_protocol(name).controls] == [
        "pFedMoAP, local expert alone (control)",
        "pFedMoAP, noise as experts (control)",
    ]
    found = [method_of(row) for row in load_protocol(name).rows]
    assert len(found) == len(set(found))
    assert set(found) == set(methods.__all__) - {"Method"}


@pytest.mark.parametrize("name", names())
def test_the_settings_of_a_protocol_are_valid(name, tmp_path):
    for preset in (None, *load_protocol(name).presets):
        manifest = load_protocol(name, preset)
        check_scores(manifest.scores)
        rows = tuple(row for row in manifest.rows if method_of(row) in ("ZeroShot", "PFedMoAP"))
        plan = make_plan(replace(manifest, rows=rows, controls=()), Options(tmp_path))
        assert plan.runs and not plan.pending()
        assert all(cell.state == "run" for cell in plan.cells)


def test_base_classes_are_the_first_half_rounded_up():
    """The sizes that FedPGP and FedMGP print: ceil(C / 2) of 37, 102, 47, 100, 101, 101, 397, 196 and 100 classes."""
    found = {}
    for entry in load_protocol("base-to-novel").data:
        cls = next(c for c in _subclasses(DataSet) if c.name == entry.key)
        found[entry.key] = (entry.settings["data"]["init_args"]["subset"]["classes"], cls.published.classes)
    assert sorted(base for base, _ in found.values()) == sorted(BASE)
    assert all(base == (classes + 1) // 2 for base, classes in found.values())


def _subclasses(cls):
    for found in cls.__subclasses__():
        if "name" in vars(found):
            yield found
        yield from _subclasses(found)


def test_mistakes_are_one_sentence(capsys):
    assert main(["base-to-nvel"]) == 2
    assert "did you mean 'base-to-novel'" in capsys.readouterr().err
    with pytest.raises(UserError, match="scores has 'acuracy'; valid is accuracy, others"):
        check_scores(("acuracy",))
    assert all(score.formula for score in SCORES.values())


def test_a_leaderboard(tmp_path, monkeypatch, capsys):
    """Two methods, one that refuses its settings, one round, through the training and the evaluation of the command."""
    rows = [row for row in protocols._all() if method_of(row) in ("PromptFL", "FedAMP")]
    refusing = {"method": {"init_args": {"alpha": 0.9}}}  # at most sigma / (clients - 1) = 0.25
    rows = [replace(row, settings=refusing) if method_of(row) == "FedAMP" else row for row in rows]
    monkeypatch.setattr(protocols, "_all", lambda: rows)
    monkeypatch.setattr(protocols, "CONTROLS", {})
    args = ["base-to-novel", "--preset=embedded", "--seeds=1", "--rounds=1", f"--out={tmp_path}"]
    assert main(args) == 0, capsys.readouterr()
    expected: dict[tuple[str, str], list[float]] = {}
    composites: dict[str, list[float]] = {}
    for path in (tmp_path / "runs").iterdir():
        classes = json.loads((path / "evaluation.json").read_text())["classes"]
        local, base, novel = (classes[key]["mean"] for key in ("local", "base", "novel"))
        both = 2 * base * novel / (base + novel)
        lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
        sent = sum(line["bytes"]["down"] + line["bytes"]["up"] for line in lines[1:]) / 1e6
        three = 3 / (1 / local + 1 / base + 1 / novel)
        within = lines[-1]["accuracy"]["mean"]  # neither sends more than PromptFL
        row, data, _ = path.name.split("-")
        expected[data, row] = [(local + both) / 2, local, base, novel, both, three, within, sent]
        composites.setdefault(row, []).append((local + both) / 2)
    with (tmp_path / "base-to-novel.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(expected) == 4
    keys = {"PromptFL": "promptfl", "Zero-shot CLIP": "zero_shot_clip"}
    for line in found:
        columns = ["combined", "local", "base", "novel", "harmonic_mean", "harmonic_mean_with_local", "within_bytes"]
        numbers = [float(line[key]) for key in (*columns, "megabytes")]
        assert numbers == pytest.approx(expected[line["data"], keys[line["method"]]])
    means = {row: sum(values) / len(values) for row, values in composites.items()}
    page = (tmp_path / "base-to-novel.md").read_text()
    best = max(keys, key=lambda label: means[keys[label]])
    assert f"| 1 | {best} | {means[keys[best]]:.2f} |" in page
    assert "| – | Prompt+FedAMP | not applicable |" in page
    assert (
        "- Prompt+FedAMP is not applicable: method.alpha is 0.9; with method.sigma = 1 and federation.clients" in page
    )
    assert "\npython -m experiments.benchmark base-to-novel --preset=embedded --seeds=1 --rounds=1\n" in page
    assert "| PromptFL | FedMGP | 71.19 | 71.70 | 71.46 |" in page  # FedMGP's table 1, beside ours
    assert str(tmp_path) not in page  # no folder of the machine
    assert (tmp_path / "base-to-novel.png").stat().st_size > 10_000
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob("rounds.jsonl"))]
    assert main(args) == 0  # nothing runs again
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob("rounds.jsonl"))]


def test_a_rate_is_chosen_by_validation_on_other_seeds(tmp_path, capsys):
    args = ["domains", "--preset=embedded", "--rounds=1", "--methods", "promptfl", "--rates", "0.002", "0.1"]
    assert rates.main([*args, f"--out={tmp_path}"]) == 0
    found = {}
    for rate in ("0.002", "0.1"):
        runs = tmp_path / f"domains-{rate}" / "runs"
        assert sorted(path.name for path in runs.iterdir()) == [f"promptfl-digits-seed{seed}" for seed in (101, 102)]
        lines = [(path / "rounds.jsonl").read_text().splitlines()[-1] for path in runs.iterdir()]
        found[rate] = sum(json.loads(line)["validation"]["mean"] for line in lines) / 2
    printed = capsys.readouterr().out
    assert all(f"rate {rate}: validation accuracy {mean:.2f} %" in printed for rate, mean in found.items())
    assert f"best: {max(found, key=lambda rate: found[rate])}" in printed


def test_one_model_for_all_clients_is_no_sample_of_clients():
    """Seven clients: the least p is 2 / 2^7, once corrected for one test only; equal differences are not tested."""

    def entry(label: str, numbers: list[float]) -> Entry:
        run: Any = SimpleNamespace(seed=0)
        record: Any = None
        return Entry(label, {("digits", None): [Result(run, record, {}, dict(enumerate(numbers)))]}, True)

    personal = [50.0 + 3 * client for client in range(7)]
    lines = rank([entry("a", [90.0] * 7), entry("b", [80.0] * 7), entry("c", personal)])
    assert [line.p for line in lines] == [None, None, pytest.approx(2 / 2**7)]
    assert [line.difference for line in lines] == [None, pytest.approx(10), pytest.approx(31)]


def test_a_method_is_tested_against_its_own_controls():
    """Eight clients, of whom two are worse than alone, by 1 and 1.5, and six better, by 2 to 7; as good as with noise.
    p is that of scipy's exact test, the mean difference (2 + ... + 7 - 1 - 1.5) / 8."""

    def entry(label: str, numbers: list[float], control: bool = False) -> Entry:
        run: Any = SimpleNamespace(seed=0)
        record: Any = None
        return Entry(label, {("digits", None): [Result(run, record, {}, dict(enumerate(numbers)))]}, True, control)

    gained = [-1.0, -1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    own = [50.0 + client for client in range(8)]
    alone = [value - gain for value, gain in zip(own, gained, strict=True)]
    entries = [
        entry("A", own),
        entry("A, alone (control)", alone, control=True),
        entry("A, noise (control)", own, control=True),
        entry("B", [90.0] * 8),
    ]
    found = gains(entries)
    assert [(gain.method.label, gain.control.label) for gain in found] == [
        ("A", "A, alone (control)"),
        ("A", "A, noise (control)"),
    ]
    p = scipy.stats.wilcoxon(gained, method="exact").pvalue
    assert found[0].test is not None and found[0].test.difference == pytest.approx(24.5 / 8)
    assert (found[0].p, found[1].p) == (pytest.approx(2 * p), 1)  # Holm's correction for two
    page = against_controls(entries)
    assert any(line.startswith("| A | A, alone (control) | \\+3.06 |") for line in page)
    assert against_controls(entries[::3]) == []
