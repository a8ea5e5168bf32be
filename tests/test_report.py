"""Reports of run folders that are written by hand; every expected number is worked out by hand.

The four clients of ``RUN`` have 10 test images each, and two domains. Their accuracy in percent:

    round 0    20 40 60 80    mean 50, deviations -30 -10 10 30, variance 500, std 22.36
    round 2    50 70 90 90    mean 75, deviations -25  -5 15 15, variance 275, std 16.58; photo 60, sketch 90
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from matplotlib.patches import Rectangle
from PIL import Image
from rich.console import Console

from fedmoe.errors import UserError
from fedmoe.io import append_jsonl
from fedmoe.report import plan_comparison, report
from fedmoe.report.accuracy import accuracy_over_rounds, client_accuracies, compare_over_rounds
from fedmoe.report.comparison import display_labels, read_comparison
from fedmoe.report.html import write_page
from fedmoe.report.outside import csv_cell, latex
from fedmoe.report.partition_view import partition_text
from fedmoe.report.plot_style import METHOD_COLOURS, colours, save
from fedmoe.report.plots import expert_attention, label_distribution
from fedmoe.report.run import read_run
from fedmoe.report.tables import Cell, Table, comparison_table, run_table, show, to_markdown
from fedmoe.runs.records import RoundRecord, read_rounds
from fedmoe.tracking.names import round_row

# Round -> right answers of each client out of 10; mean, std, worst decile; mean of each domain
Evaluations = Mapping[int, tuple[Sequence[int], Sequence[float], Sequence[float]]]
RUN: Evaluations = {
    0: ((2, 4, 6, 8), (50.0, 500**0.5, 20.0), (30.0, 70.0)),
    2: ((5, 7, 9, 9), (75.0, 275**0.5, 50.0), (60.0, 90.0)),
}
OTHER: Evaluations = {  # 60 60 80 80: mean 70, deviations of 10 each; 70 70 50 90: variance (0 + 0 + 400 + 400) / 4
    0: ((6, 6, 8, 8), (70.0, 10.0, 60.0), (60.0, 80.0)),
    2: ((7, 7, 5, 9), (70.0, 200**0.5, 50.0), (70.0, 70.0)),
}
DOMAINS = ("photo", "photo", "sketch", "sketch")


def write_run(
    folder: Path,
    evaluations: Evaluations = RUN,
    *,
    method: str = "PFedMoAP",
    label: str = "pFedMoAP",
    arguments: dict[str, Any] | None = None,
    finished: bool = True,
    domains: bool = True,
    last: int | None = None,
    class_path: str | None = None,
) -> Path:
    """A run folder of rounds 0 to ``last``, of which those in ``evaluations`` are evaluated."""
    number = len(next(iter(evaluations.values()))[0])
    names = DOMAINS if domains else (None,) * number
    rounds, clients = [], []
    for r in range((max(evaluations) if last is None else last) + 1):
        right, (mean, std, worst), per_domain = evaluations.get(r, ((), (0.0, 0.0, 0.0), ()))
        accuracy = {"mean": mean, "std": std, "min": 10.0 * min(right, default=0), "max": 10.0 * max(right, default=0)}
        evaluated = r in evaluations
        record = {"round": r, "cohort": [0] if r else [], "evaluated": evaluated, "accuracy": None}
        record["accuracy"] = {**accuracy, "worst_decile": worst} if evaluated else None
        record["accuracy_per_domain"] = dict(zip(("photo", "sketch"), per_domain, strict=True)) if per_domain else {}
        record["accuracy_per_domain"] = record["accuracy_per_domain"] if domains else {}
        record["train_loss"] = 1.0 / r if r else None
        record["seconds"] = {"train": 2.0 * (r > 0), "evaluate": 0.5 * evaluated, "other": 0.25}
        record["bytes"] = {"down": 1000 + 2000 * r if r else 0, "up": 1000 * (r > 0), "evaluate_down": 1000 * r}
        record |= {"clients_seen": min(r, 1), "prompt_drift": None, "experts": {"0": [1, 2]} if r else {}}
        record["attention"] = {"local": 0.5, "experts": [0.3, 0.2]} if r else None
        rounds.append(record)
        for i, n in enumerate(right):
            result = {"round": r, "client": i, "domain": names[i], "accuracy": 10.0 * n, "correct": n, "total": 10}
            clients.append({**result, "train_examples": 3})
    folder.mkdir(parents=True)
    for name, lines in (("rounds", rounds), ("clients", clients)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = {"counts_train": [[1, 2]] * number, "counts_test": [[5, 5]] * number}
    partition = {"class_names": ["cat", "dog"], **counts, "domains": list(names) if domains else None}
    (folder / "partition.json").write_text(json.dumps(partition))
    settings = {"class_path": class_path or f"fedmoe.methods.{method}", "init_args": arguments or {}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 7, "method": settings}, sort_keys=False))
    if finished:
        summary = {"method": method, "label": label, "seed": 7, "rounds": rounds[-1]["round"], "versions": {}}
        (folder / "summary.json").write_text(json.dumps({**summary, "failed_clients": []}))
    return folder


def write_comparison(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    plan_comparison(folder, names)
    return folder


def printed(path: Path, width: int = 80, terminal: bool = False) -> list[str]:
    """The lines that a report of ``path`` prints."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    report(path, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def tables(path: Path, width: int = 80) -> list[str]:
    """The same without the plots, which take longer."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    comparison = (path / "comparison.json").exists()
    show(comparison_table(read_comparison(path)) if comparison else run_table(read_run(path)), console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def cells(lines: Sequence[str], first: str) -> list[str]:
    """The cells of the printed row that starts with ``first``."""
    row = next(line for line in lines if line.strip().startswith(first))
    return re.split(r"\s{2,}", row.strip())


# Tables


def test_table_of_a_run(tmp_path: Path) -> None:
    lines = printed(write_run(tmp_path / "mine"))
    assert lines[0] == "pFedMoAP, seed 7"
    assert cells(lines, "0 ") == ["0", "50.00", "22.36", "20.00", "20.00", "–"]
    assert cells(lines, "2 ") == ["2", "75.00", "16.58", "50.00", "50.00", "0.5000"]
    text = "\n".join(lines)
    assert "over 4 clients" in text and "last round, not the best one" in text
    assert "round 2: photo 60.00, sketch 90.00" in text
    assert "training 4.0, evaluation 1.0, rest 0.8; sum 5.8" in text  # 2 x 2; 2 x 0.5; 3 x 0.25
    # down: (3000 + 5000) / 2; evaluations, in rounds 0 and 2: (0 + 2000) / 2
    assert "4.0 kB down, 1.0 kB up; each evaluation adds 1.0 kB down" in text
    assert {path.name for path in (tmp_path / "mine" / "plots").iterdir()} == {
        "accuracy_over_rounds.png",
        "client_accuracies.png",
        "expert_attention.png",
        "label_distribution.png",
    }


def test_long_runs_show_some_rounds_among_them_first_and_last(tmp_path: Path) -> None:
    evaluations = {r: ((1, 1), (10.0, 0.0, 10.0), ()) for r in range(101)}
    table = run_table(read_run(write_run(tmp_path / "run", evaluations, domains=False)))
    assert [row[0].text for row in table.rows] == ["0", "20", "40", "60", "80", "100"]
    assert [row[1].bold for row in table.rows] == [False] * 5 + [True]


def test_comparison_in_markdown(tmp_path: Path) -> None:
    write_run(tmp_path / "c" / "PFedMoAP")
    write_run(tmp_path / "c" / "FedProx", OTHER, method="FedProx", label="Prompt+FedProx")
    write_comparison(tmp_path / "c", ["FedProx", "PFedMoAP"])
    printed(tmp_path / "c")
    heading, table, notes = (tmp_path / "c" / "comparison.md").read_text().split("\n\n")
    assert heading == "## c"
    assert table.splitlines() == [
        "| method | mean ± std over clients | worst 10 % | photo | sketch | rounds | seconds | down/round | up/round |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| Prompt+FedProx | 70.00 ± 14.14 | **50.00** | **70.00** | 70.00 | 2 | 5.8 | 4.0 kB | 1.0 kB |",
        "| pFedMoAP | **75.00 ± 16.58** | **50.00** | 60.00 | **90.00** | 2 | 5.8 | 4.0 kB | 1.0 kB |",
    ]
    assert "- photo, sketch: mean over the clients of the domain." in notes
    assert "each evaluation adds 1.0 kB down for Prompt+FedProx, pFedMoAP" in notes
    assert "- Seed: 7." in notes and "- Number of clients: 4." in notes


def test_markdown_shows_every_character_as_it_is() -> None:
    table = Table("a*b*", ("x|y",), ((Cell("`_<z>_`\nnext", bold=True),),), ("1 | 2",))
    assert to_markdown(table).splitlines() == [
        r"## a\*b\*",
        "",
        r"| x\|y |",
        "|:---|",
        r"| **\`\_\<z>\_\` next** |",
        "",
        r"- 1 \| 2",
    ]


def test_comparison_json_keeps_the_folders_names_and_what_others_wrote(tmp_path: Path) -> None:
    write_run(tmp_path / "c" / "FedProx", OTHER, method="FedProx", label="Prompt+FedProx")
    plan_comparison(tmp_path / "c", ["FedProx", "Later"])
    path = tmp_path / "c" / "comparison.json"
    assert json.loads(path.read_text()) == {"labels": ["FedProx", "Later"], "results": []}
    path.write_text(json.dumps({"labels": ["FedProx", "Later"], "note": "mine"}))
    printed(tmp_path / "c")
    found = json.loads(path.read_text())
    assert found["labels"] == ["FedProx", "Later"] and found["note"] == "mine"
    first, second = found["results"]
    assert (first["folder"], first["label"], first["method"]) == ("FedProx", "Prompt+FedProx", "FedProx")
    assert first["accuracy"] == {"mean": 70, "std": 200**0.5, "min": 50, "max": 90, "worst_decile": 50}
    assert first["accuracy_per_domain"] == {"photo": 70, "sketch": 70} and first["problem"] is None
    assert second == {"folder": "Later", "label": "Later", "problem": "has not begun yet."}


def test_lines_are_never_broken_where_there_is_no_terminal(tmp_path: Path) -> None:
    write_run(tmp_path / "c" / "a", label="a method with a very long name")
    write_comparison(tmp_path / "c", ["a"])
    for lines in (tables(tmp_path / "c", width=40), tables(tmp_path / "c" / "a", width=20)):
        assert sum("std is the population's over clients." in line for line in lines) == 1
    row = ["a method with a very long name", "75.00 ± 16.58", "50.00", "60.00", "90.00", "2", "5.8", "4.0 kB", "1.0 kB"]
    assert cells(tables(tmp_path / "c", width=40), "a method") == row


def test_a_narrow_terminal_gets_the_columns_in_parts() -> None:
    columns = ("method", "mean ± std", "worst 10 %", "clipart", "infograph", "painting", "up/round")
    row = ("[bold]pFedMoAP", "75.00 ± 16.58", "50.00", "11.11", "22.22", "33.33", "4.0 kB")
    table = Table("t", columns, (tuple(map(Cell, row)),), ())
    for width in (12, 40, 60, 200):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        show(table, console)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        rows = [re.split(r"\s{2,}", line.strip()) for line in lines if "pFedMoAP" in line]
        assert [cell for row in rows for cell in row[1:]] == list(row[1:])
        assert all(cell[0] == row[0] for cell in rows)
        assert width == 12 or max(map(len, lines)) <= width
        assert len(rows) == {12: 6, 40: 4, 60: 2, 200: 1}[width]


# Labels


def run_with(folder: Path, label: str, **arguments: Any) -> Any:
    return read_run(write_run(folder, label=label, arguments=arguments))


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        ({"A": ("pFedMoAP", {"k": 5}), "B": ("CoOp", {})}, ["pFedMoAP", "CoOp"]),
        ({"M-1": ("M", {"k": 5, "g": 8}), "M-2": ("M", {"k": 9, "g": 8})}, ["M (k=5)", "M (k=9)"]),
        (
            {"M-1": ("M", {"k": 5, "g": {"h": None}}), "M-2": ("M", {"k": 5, "g": {"h": 2}})},
            ["M (g.h=none)", "M (g.h=2)"],
        ),
        (
            {"M-1": ("M", {"k": 1, "g": 1}), "M-2": ("M", {"k": 1, "g": 2}), "M-3": ("M", {"k": 2, "g": 1})},
            ["M (k=1, g=1)", "M (k=1, g=2)", "M (k=2, g=1)"],
        ),
        ({"M-1": ("M", {"k": 5}), "M-2": ("M", {"k": 5})}, ["M #1", "M #2"]),
        ({"M-1": ("M", dict(a=1, b=1, c=1, d=1)), "M-2": ("M", dict(a=2, b=2, c=2, d=2))}, ["M #1", "M #2"]),
        (
            {"M-1": ("M", {"t": "a photo of a dog, x"}), "M-2": ("M", {"t": "a photo of a dog, y, long"})},
            ["M (t=a photo of a dog, x)", "M (t=a photo of a dog, y…)"],
        ),
        (
            {"M-1": ("M", {"t": "a photo of a dog at noon"}), "M-2": ("M", {"t": "a photo of a dog at night"})},
            ["M #1", "M #2"],
        ),
        ({"first": ("M", {}), "second": ("M", {}), "C": ("CoOp", {})}, ["M (first)", "M (second)", "CoOp"]),
        ({"a": ("M", {"k": 1}), "b": ("M", {"k": 2}), "c": ("M (k=1)", {})}, ["M (a)", "M (b)", "M (k=1) (c)"]),
    ],
)
def test_labels_tell_runs_apart(runs: dict[str, tuple[str, dict]], labels: list[str], tmp_path: Path) -> None:
    found = {folder: run_with(tmp_path / folder, label, **arguments) for folder, (label, arguments) in runs.items()}
    assert list(display_labels(found).values()) == labels


def test_the_seed_tells_runs_apart_and_a_missing_run_has_its_folders_name(tmp_path: Path) -> None:
    write_run(tmp_path / "s7")
    write_run(tmp_path / "s8")
    (tmp_path / "s8" / "config.yaml").write_text("seed: 8\nmethod: {class_path: fedmoe.methods.PFedMoAP}\n")
    runs = {"s7": read_run(tmp_path / "s7"), "s8": read_run(tmp_path / "s8"), "s9": None}
    assert list(display_labels(runs).values()) == ["pFedMoAP (seed=7)", "pFedMoAP (seed=8)", "s9"]


@pytest.mark.parametrize(
    ("class_path", "label", "method"),
    [
        ("fedmoe.methods.FedProx", "Prompt+FedProx", "FedProx"),
        ("fedmoe.methods.ZeroShot", "Zero-shot CLIP", "ZeroShot"),
        ("my_package_that_is_not_there.FedProx", "FedProx", "FedProx"),
        (None, "folder", "folder"),
    ],
)
def test_an_unfinished_run_takes_its_label_from_its_settings(
    class_path: str | None, label: str, method: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "folder", finished=False, class_path=class_path)
    if class_path is None:
        (folder / "config.yaml").unlink()
    run = read_run(folder)
    assert (run.label, run.method, run.seed) == (label, method, 7 if class_path else None)


# Interrupted and unusual runs


def test_a_comparison_in_the_middle_of_its_work(tmp_path: Path) -> None:
    write_run(tmp_path / "c" / "CoOp", OTHER, method="CoOp", label="CoOp")
    write_run(tmp_path / "c" / "PromptFL", {0: RUN[0]}, method="PromptFL", finished=False)
    (tmp_path / "c" / "FedProx").mkdir()
    (tmp_path / "c" / "FedProx" / "config.yaml").write_text("seed: 7\n")
    write_run(tmp_path / "c" / "Broken")
    (tmp_path / "c" / "Broken" / "partition.json").write_text("{")
    write_comparison(tmp_path / "c", ["CoOp", "PromptFL", "FedProx", "PFedMoAP", "Broken"])
    lines = printed(tmp_path / "c")
    text = "\n".join(lines)
    assert cells(lines, "CoOp")[:2] == ["CoOp", "70.00 ± 14.14"]
    assert cells(lines, "PromptFL")[:6] == ["PromptFL", "50.00 ± 22.36", "20.00", "30.00", "70.00", "0, unfinished"]
    assert cells(lines, "FedProx") == ["FedProx", "no round yet", *"–––––––"]
    assert cells(lines, "PFedMoAP")[:2] == ["PFedMoAP", "missing"]
    assert cells(lines, "Broken")[:2] == ["Broken", "unreadable"]
    assert "PromptFL: unfinished, round 0 is the last on record" in text
    assert re.search(r"Broken: \S*partition\.json is damaged or cut", text)
    assert not any(cell.bold for row in comparison_table(read_comparison(tmp_path / "c")).rows for cell in row)
    assert (tmp_path / "c" / "plots" / "accuracy_over_rounds.png").exists()


def test_a_comparison_before_its_first_round(tmp_path: Path) -> None:
    lines = printed(write_comparison(tmp_path / "c", ["CoOp", "PFedMoAP"]))
    assert cells(lines, "CoOp")[:2] == ["CoOp", "missing"]
    assert not (tmp_path / "c" / "plots").exists() and (tmp_path / "c" / "comparison.md").exists()


def test_lines_cut_by_a_crash_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", finished=False)
    for name in ("rounds.jsonl", "clients.jsonl"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    run = read_run(folder)
    assert [r.round for r in run.rounds] == [0, 1] and not run.finished and run.last is run.rounds[0]
    lines = tables(folder)
    assert cells(lines, "0 ")[1] == "50.00" and not any(line.strip().startswith("2 ") for line in lines)
    assert sum("is cut and left out" in line for line in lines) == 2


def test_a_round_done_again_replaces_the_first_and_a_run_that_goes_on_is_unfinished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", last=2)
    again = json.loads((folder / "rounds.jsonl").read_text().splitlines()[2])
    again["train_loss"] = 0.125
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n" + json.dumps({**again, "round": 3, "accuracy": None}) + "\n")
    run = read_run(folder)
    assert [(r.round, r.train_loss) for r in run.rounds[2:]] == [(2, 0.125), (3, 0.125)]
    assert not run.finished and run.last is run.rounds[2]
    assert "round 3 is the last on record; the accuracy is that of round 2" in run_table(run).notes[-1]


def test_clients_without_test_examples_and_incomplete_rounds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    lines[4] |= {"accuracy": None, "correct": 0, "total": 0}  # client 0 in round 2
    (folder / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    run = read_run(folder)
    assert run.client_accuracies(0) is None
    np.testing.assert_array_equal(run.client_accuracies(2), [70, 90, 90])
    assert run.notes == ("clients.jsonl has 3 of 4 clients in round 0",)
    low, high = band(accuracy_over_rounds(run))  # no percentiles in round 0: mean ± std in all rounds
    np.testing.assert_allclose([low, high], [[50 - 500**0.5, 75 - 275**0.5], [50 + 500**0.5, 75 + 275**0.5]])


ONE = {0: ((3,), (30.0, 0.0, 30.0), ()), 1: ((7,), (70.0, 0.0, 70.0), ())}
HUNDRED = {0: ([i // 10 for i in range(100)], (45.0, 825**0.5, 0.0), ())}  # std: (100 - 1) / 12 of tens, squared


@pytest.mark.parametrize(
    ("evaluations", "last"),
    [({0: RUN[0]}, 0), (ONE, 1), (HUNDRED, 3)],
    ids=["no round", "one client", "100 clients, evaluated once"],
)
def test_every_plot_of_unusual_runs(evaluations: dict, last: int, tmp_path: Path) -> None:
    domains = len(evaluations[0][0]) == 4
    for name in ("PFedMoAP", "CoOp"):
        folder = write_run(tmp_path / "c" / name, evaluations, last=last, domains=domains, method=name, label=name)
        text = (folder / "rounds.jsonl").read_text()
        (folder / "rounds.jsonl").write_text(re.sub(r'"attention": \{.*?\}', '"attention": null', text))
    write_comparison(tmp_path / "c", ["PFedMoAP", "CoOp"])
    printed(tmp_path / "c")
    printed(tmp_path / "c" / "CoOp")
    usual = {"accuracy_over_rounds.png", "client_accuracies.png", "label_distribution.png"}
    for plots in (tmp_path / "c" / "plots", tmp_path / "c" / "CoOp" / "plots"):
        assert {path.name for path in plots.iterdir()} == usual  # no expert_attention without attention
        for path in plots.iterdir():
            with Image.open(path) as image:
                image.load()
                assert image.format == "PNG" and image.width == 1600


# Plots


def band(figure: Any) -> np.ndarray:
    """Lower and upper edge of the band over rounds, [2, rounds]."""
    vertices = figure.axes[0].collections[0].get_paths()[0].vertices
    edges = [vertices[vertices[:, 0] == x, 1] for x in np.unique(vertices[:, 0])]
    return np.array([[e.min() for e in edges], [e.max() for e in edges]])


def test_curve_and_band_of_a_run(tmp_path: Path) -> None:
    figure = accuracy_over_rounds(read_run(write_run(tmp_path / "run")))
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[0, 50], [2, 75]])
    # 20 40 60 80: 0.3 of the way from the first to the second, and from the fourth to the third; 50 70 90 90 likewise
    np.testing.assert_allclose(band(figure), [[26, 56], [74, 90]])


def test_attention_is_that_of_the_last_round(tmp_path: Path) -> None:
    figure = expert_attention(read_run(write_run(tmp_path / "run")))
    assert [bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)] == [0.5, 0.3, 0.2]
    assert np.asarray(figure.axes[0].lines[0].get_ydata())[0] == pytest.approx(1 / 3)


def test_a_dot_for_each_client_and_none_on_another(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", HUNDRED, domains=False))
    figure = client_accuracies({"run": run})
    figure.draw_without_rendering()
    dots = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_array_equal(np.sort(dots[:, 0]), np.repeat(np.arange(0, 100, 10), 10))
    places = figure.axes[0].transData.transform(dots) * 72 / figure.dpi  # points
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 99 * np.eye(100)
    assert distance.min() > 2.0  # dots are 3 points wide; ten on one value may touch, not hide each other


@pytest.mark.parametrize(
    "names",
    [
        ["pFedMoAP", "Zero-shot CLIP", "Prompt+FedProx", "PromptFL", "CoOp"],
        ["W" * 60, "pFedMoAP (num_experts=10, gating_dim=128)", "M (assignment=nearest)"],
        [f"pFedMoAP (num_experts={i})" for i in range(12)],
    ],
    ids=["usual", "long", "many"],
)
@pytest.mark.parametrize("finished", [True, False])
def test_no_text_runs_into_a_panel_or_out_of_the_picture(names: list[str], finished: bool, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", finished=finished))
    figure = compare_over_rounds(dict.fromkeys(names, run))
    figure.draw_without_rendering()
    left, middle, right = figure.axes
    boxes = [text.get_window_extent() for text in middle.texts]
    assert len(boxes) == len(names)
    assert all(left.bbox.x1 < box.x0 and box.x1 < right.bbox.x0 for box in boxes)
    assert all(a.y0 > b.y1 for a, b in pairwise(boxes))  # from the top down, none over another
    assert all(
        right.bbox.x1 < t.get_window_extent().x0 and t.get_window_extent().x1 < figure.bbox.x1 for t in right.texts
    )
    assert left.bbox.width > 0.3 * figure.bbox.width


def test_runs_without_rounds_are_dashed_and_a_run_stopped_in_round_0_is_a_dot(tmp_path: Path) -> None:
    runs = {
        "pFedMoAP": read_run(write_run(tmp_path / "a")),
        "Zero-shot CLIP": read_run(write_run(tmp_path / "b", {0: OTHER[0]}, method="ZeroShot")),
        "PromptFL": read_run(write_run(tmp_path / "c", {0: RUN[0]}, method="PromptFL", finished=False)),
    }
    left = compare_over_rounds(runs).axes[0]
    lines = {tuple(map(tuple, np.asarray(line.get_xydata()))): line for line in left.lines}
    assert lines[((0, 50), (2, 75))].get_linestyle() == "-"
    assert lines[((0, 70), (2, 70))].get_linestyle() == "--"
    assert lines[((0, 50),)].get_marker() == "o"


def test_a_method_has_its_colour_in_every_plot(tmp_path: Path) -> None:
    make: Callable[[str, str], Any] = lambda folder, method: read_run(write_run(tmp_path / folder, method=method))  # noqa: E731
    ours, prox, mine = make("a", "PFedMoAP"), make("b", "FedProx"), make("c", "MyMethod")
    assert colours({"x": ours}) == {"x": METHOD_COLOURS["PFedMoAP"]}
    found = colours({"x": mine, "y": prox, "z": ours})
    assert list(found) == ["x", "y", "z"] and len(set(found.values())) == 3
    assert (found["y"], found["z"]) == (METHOD_COLOURS["FedProx"], METHOD_COLOURS["PFedMoAP"])
    assert found["x"] == colours({"alone": mine})["alone"] and found["x"] not in METHOD_COLOURS.values()
    shades = colours({"a": ours, "p": prox, "b": ours, "c": ours})
    assert len(set(shades.values())) == 4 and shades["p"] == METHOD_COLOURS["FedProx"]


def test_dollar_signs_in_names_are_no_formulas(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", label=r"$\frac{ and $")
    text = (folder / "partition.json").read_text()
    (folder / "partition.json").write_text(text.replace('"cat"', r'"$\\alpha{ or $"'))
    printed(folder)
    assert (folder / "plots" / "label_distribution.png").exists()


def test_names_that_no_font_can_draw_are_no_reason_to_fail(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", label="a\ud800\x00\n\x1b[2J")
    text = (folder / "partition.json").read_text()
    (folder / "partition.json").write_text(text.replace('"cat"', r'"\ud800\u0000"'))
    printed(folder)
    assert (folder / "plots" / "label_distribution.png").exists()
    figure = accuracy_over_rounds(read_run(folder))
    assert figure.heading == r"a\ud800\x00 \x1b[2J: accuracy over rounds"


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF-")])
def test_files_of_both_kinds_are_the_same_every_time(suffix: str, magic: bytes, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    files = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for file in files:
        save(label_distribution(run.labels, test=True), file)
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].read_bytes().startswith(magic)
    assert b"Date" not in files[0].read_bytes()


def test_plots_are_written_as_pdf_on_request(tmp_path: Path) -> None:
    run = write_run(tmp_path / "c" / "run")
    for path in (run, write_comparison(tmp_path / "c", ["run"])):
        report(path, Console(file=io.StringIO()), pdf=True)
        kinds = [{file.stem for file in (path / "plots").iterdir() if file.suffix == kind} for kind in (".png", ".pdf")]
        assert kinds[0] == kinds[1] and len(kinds[0]) >= 3


def test_the_picture_of_a_partition_has_test_examples_too(tmp_path: Path) -> None:
    labels = read_run(write_run(tmp_path / "run")).labels  # on each client 1 cat, 2 dogs; for tests 5 of both
    train_only, both = label_distribution(labels), label_distribution(labels, test=True)
    assert len(train_only.axes) == 2 and len(both.axes) == 3
    heights = [[bar.get_height() for bar in bars] for bars in both.axes[2].containers]
    assert heights == [[3] * 4, [10] * 4]
    upper, lower = ([len(np.asarray(patch.get_path().codes)) // 5 for patch in axes.patches] for axes in both.axes[:2])
    assert upper == [4, 4] and lower == [8]  # squares of each colour
    assert both.caption == "12 training and 40 test examples, 4 clients, 2 classes"


# Text from outside

HOSTILE = [
    "![t](http://example.org/x.png)",
    "[t](http://example.org)",
    "<http://example.org> www.example.org https://example.org a@example.org",
    "<img src=x onerror=y>",
    "**b** __b__ *e* _e_ ~~s~~ `c`",
    "a | b\n| c |\n\n# h",
    "# h",
    "- one",
    "1. one",
    "> quote",
    "&lt; &amp; \\\\* \\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_text_from_outside_as_it_is(text: str) -> None:
    table = Table(text, ("head", text), ((Cell(text), Cell(text, bold=True)),), (text,))
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(to_markdown(table))
    assert set(re.findall(r"<(\w+)", html)) == {"h2", "table", "thead", "tbody", "tr", "th", "td", "strong", "ul", "li"}
    shown = [unescape(found).strip() for found in re.findall(r"<(?:h2|th|td|li)[^>]*>(.*?)</(?:h2|th|td|li)>", html)]
    line = " ".join(text.split())
    assert shown == [line, "head", line, line, f"<strong>{line}</strong>", line]


def test_latex_and_csv_show_text_from_outside_as_it_is() -> None:
    assert latex(r"\input{x} ~^<>| ±") == (
        r"\textbackslash{}input\{x\} \textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{} $\pm$"
    )
    assert latex("a\n\x1b[2Jb") == r"a \textbackslash{}x1b[2Jb"
    formulas = ["=1+1", "+a", "-a", "@a", "\t=1", "\r=1", " =1"]
    assert [str(csv_cell(text))[0] for text in formulas] == ["'"] * len(formulas)
    assert [csv_cell(value) for value in ("-1.5", "+2", "1e-3", "a=b", -1.5, None)] == [
        *("-1.5", "+2", "1e-3", "a=b", -1.5),
        None,
    ]


def test_no_control_sequence_from_a_file_reaches_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;title\x07\x1b]52;c;YQ==\x07[bold]x[/b]\u202e"
    run = write_run(tmp_path / "c" / "A", label=hostile)
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    rounds[1]["failed"] = {"0": hostile}
    rounds = [record | {"accuracy_per_domain": {hostile: 1.0}} for record in rounds]
    (run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds))
    write_comparison(tmp_path / "c", ["A"])
    shown = r"\x1b]0;title\x07\x1b]52;c;YQ==\x07[bold]x[/b]\u202e"
    for path in (tmp_path / "c", run):
        for lines in (printed(path, width=400), printed(path, width=400, terminal=True)):
            assert all(line.isprintable() for line in lines) and capfd.readouterr() == ("", "")
            assert any("client" in line and f"(round 1: {shown})" in line for line in lines)
    text = (tmp_path / "c" / "comparison.md").read_text()
    assert all(line.isprintable() for line in text.splitlines())
    text = partition_text({"class_names": [hostile, "[/b]"], "counts_train": [[1, 2]], "counts_test": [[1, 1]]})
    assert shown in text and "[/b]" in text and all(line.isprintable() for line in text.splitlines())


def test_links_in_a_received_folder_lead_nowhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "c" / "A")
    write_comparison(tmp_path / "c", ["A"])
    target = tmp_path / "elsewhere"
    target.mkdir()
    for file in ("label_distribution.png", "page.html"):
        (target / file).write_text("mine")
    for folder in (run, tmp_path / "c"):
        (folder / "plots").symlink_to(target)
        with pytest.raises(UserError, match=r"plots is a symbolic link; valid is a folder or file of the run's own\.$"):
            printed(folder)
        with pytest.raises(UserError, match="plots is a symbolic link"):
            write_page(folder, folder / "plots" / "page.html")
        (folder / "plots").unlink()
    for name in ("comparison.md", "comparison.json"):
        path = tmp_path / "c" / name
        before = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        (target / name).write_bytes(before)
        path.symlink_to(target / name)
        with pytest.raises(UserError, match=f"{name} is a symbolic link"):
            printed(tmp_path / "c")
        path.unlink()
        path.write_bytes(before)
    assert (target / "label_distribution.png").read_text() == (target / "page.html").read_text() == "mine"
    (tmp_path / "way").symlink_to(tmp_path / "c")  # a link of the user's own, outside of the folder
    printed(tmp_path / "way")
    write_page(tmp_path / "way", tmp_path / "way" / "page.html")
    assert (tmp_path / "c" / "page.html").exists()


# Wrong input


def replace(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


MALFORMED: list[tuple[str, Callable[[str], str], list[str]]] = [
    ("rounds.jsonl", lambda text: "", ["rounds.jsonl holds no finished round yet"]),
    ("rounds.jsonl", lambda text: "{}\n" + text, ["rounds.jsonl, line 1, has no key"]),
    ("rounds.jsonl", lambda text: "\n" + text, ["rounds.jsonl is damaged, its line 1 is not valid JSON"]),
    ("rounds.jsonl", lambda text: "[]\n" + text, ["line 1, holds a list; valid is an object"]),
    ("rounds.jsonl", replace('"cohort": [0]', '"cohort": [0.5]'), ["line 2, has 0.5 under key 'cohort'", "an integer"]),
    ("rounds.jsonl", replace('"mean"', '"meen"'), ["key 'accuracy', has no key 'mean'", "did you mean 'meen'?"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": "50"'), ["has \"50\" under key 'mean'", "valid is a number"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": NaN'), ["line 1 is not valid JSON: NaN is not allowed"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": 1e999'), ["Infinity under key 'mean'; valid is a number"]),
    ("rounds.jsonl", replace('"mean": 50.0', f'"mean": 1{"0" * 400}'), ["under key 'mean'; valid is a number"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": 101'), ["line 1, has accuracy", "valid is 0 to 100 percent"]),
    (
        "rounds.jsonl",
        replace('{"0": [1, 2]}', '{"x": [1, 2]}'),
        ["key 'experts', has a key that is not a client's number"],
    ),
    ("clients.jsonl", replace('"client": 3', '"client": 4'), ["names client 4", "4 clients, from 0"]),
    ("clients.jsonl", replace('"accuracy": 20.0', '"accuracy": 21.0'), ["has accuracy 21.0; 2 of 10 right is 20.0"]),
    ("clients.jsonl", replace('"correct": 2', '"correct": 11'), ["11 of 10 right; valid is 0 to 10"]),
    ("clients.jsonl", replace('"domain": "photo"', '"domain": 3'), ["line 1, has 3 under key 'domain'", "a string"]),
    ("partition.json", lambda text: text[:-5], ["partition.json is damaged or cut, it is not valid JSON"]),
    (
        "partition.json",
        replace("[1, 2]", "[1, 2, 3]"),
        ["wrong counts under 'counts_train'", "2 counts for each client"],
    ),
    ("partition.json", replace("[1, 2]", "[1, -2]"), ["wrong counts under 'counts_train'"]),
    ("partition.json", replace("[[1, 2], ", "["), ["has [3, 4, 4] clients in its lists"]),
    ("partition.json", replace('["cat", "dog"]', "[]"), ["wrong counts under 'counts_train'"]),
    ("summary.json", lambda text: "null", ["summary.json holds nothing; valid is an object"]),
    ("summary.json", replace('"label"', '"lable"'), ["summary.json has no key 'label'; did you mean 'lable'?"]),
    ("summary.json", lambda text: "\xff", ["summary.json is damaged or cut"]),
    ("config.yaml", lambda text: "a: [", ["config.yaml is damaged, it is not valid YAML"]),
    ("config.yaml", lambda text: "!!python/object/apply:os.getcwd []", ["config.yaml is damaged"]),
    ("config.yaml", lambda text: "seed: 7", ["config.yaml has no key 'method'"]),
    ("config.yaml", replace("class_path", "class"), ["key 'method', has no key 'class_path'"]),
]


@pytest.mark.parametrize(("name", "change", "words"), MALFORMED, ids=[f"{m[0]}-{i}" for i, m in enumerate(MALFORMED)])
def test_a_malformed_file_is_answered_by_one_sentence(
    name: str, change: Callable[[str], str], words: list[str], tmp_path: Path
) -> None:
    path = write_run(tmp_path / "run") / name
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    with pytest.raises(UserError) as caught:
        printed(tmp_path / "run")
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and sentence[-1] in ".?" and "?." not in sentence
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run" / "plots").exists()  # nothing half-written


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl", "partition.json"])
@pytest.mark.parametrize(("folder", "reason"), [(False, "is missing."), (True, "cannot be read: Is a directory.")])
def test_a_missing_or_unreadable_file(name: str, folder: bool, reason: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / name
    path.unlink()
    if folder:
        path.mkdir()
    with pytest.raises(UserError, match=f"{name} {reason}$"):
        printed(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "most"), [("rounds.jsonl", 256), ("clients.jsonl", 256), ("partition.json", 64), ("config.yaml", 64)]
)
def test_a_file_that_is_too_large_is_not_read(name: str, most: int, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / name
    os.truncate(path, 30 * 2**30)  # sparse: takes no room, and would take 30 GiB of memory
    with pytest.raises(UserError, match=rf"{name} is larger than {most} MiB; valid is at most that\.$"):
        printed(tmp_path / "run")


def test_records_have_the_fields_that_are_written_and_older_files_lack() -> None:
    record = RoundRecord(round=1, cohort=[0])
    record.failed["2"] = "no memory"
    record.metrics["cosine"] = 0.5
    assert record.to_json()["failed"] == {"2": "no memory"} and record.to_json()["metrics"] == {"cosine": 0.5}
    assert RoundRecord(round=1).to_json()["failed"] == {}  # not shared
    with pytest.raises(ValueError, match="finite"):
        RoundRecord(round=1, train_loss=float("nan"))
    with pytest.raises(ValueError, match="integer"):
        RoundRecord(round="1")  # type: ignore[arg-type]


def test_a_metric_of_the_methods_own_is_read_back(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    before = read_rounds(folder)
    assert [r.metrics for r in before] == [{}, {}, {}]  # written before there were any
    (folder / "rounds.jsonl").unlink()
    before[2].metrics["cosine"] = 0.5
    append_jsonl(folder / "rounds.jsonl", *(record.to_json() | {"unknown": 1} for record in before))
    assert [r.metrics for r in read_run(folder).rounds] == [{}, {}, {"cosine": 0.5}]
    assert round_row(before[2].to_json(), 4)["method/cosine"] == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds a list; valid is an object"),
        ("{}", "has no key 'labels'"),
        ('{"labels": [1]}', "has 1 under key 'labels'; valid is a string"),
        ('{"labels": ["a", "a"]}', "has 'a' under key 'labels'; valid are different folder names"),
        ('{"labels": ["../a"]}', "has '../a' under key 'labels'"),
        ('{"labels": [".."]}', "has '..' under key 'labels'"),
        ('{"labels": [""]}', "has '' under key 'labels'"),
    ],
)
def test_a_malformed_comparison(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        printed(tmp_path)


def test_a_path_that_is_no_run_is_answered_with_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "other"):
        write_run(Path("runs") / name)
    Path("notes.txt").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    cases = {
        "runs/quikstart": "runs/quikstart does not exist; valid is a run folder (with rounds.jsonl) or a comparison "
        "folder (with comparison.json); did you mean 'runs/quickstart'?",
        "quickstrat": "did you mean 'runs/quickstart'?",
        "notes.txt": "notes.txt is neither a run folder (with rounds.jsonl) nor a comparison folder (with "
        "comparison.json).",
        "begun": "begun is a run that has finished no round yet; there is nothing to report.",
    }
    for path, sentence in cases.items():
        with pytest.raises(UserError) as caught:
            report(Path(path), Console(file=io.StringIO()))
        assert str(caught.value).endswith(sentence), path


def test_a_folder_of_runs_is_reported_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name)
    out = io.StringIO()
    report(tmp_path, Console(file=out, width=200), pdf=True, svg=True, latex=True)
    assert f"table: {tmp_path / 'comparison.md'}" in out.getvalue()
    assert not (tmp_path / "comparison.json").exists()  # it does not become a comparison by being looked at
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    kinds = ("png", "pdf", "svg")
    assert plots >= {f"{name}.{kind}" for name in ("accuracy_over_rounds", "client_accuracies") for kind in kinds}
    assert (tmp_path / "plots/accuracy_over_rounds.svg").read_text().startswith("<?xml")
    assert (tmp_path / "plots/accuracy_over_rounds.pdf").read_bytes().startswith(b"%PDF")
    tex = (tmp_path / "comparison.tex").read_text()
    rows = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("| ")]
    assert tex.count(" & ") == sum(row.count(" | ") for row in rows)  # as many cells as the Markdown has
    assert "\\midrule" in tex


def test_a_run_is_reported_as_latex_on_request(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    printed(folder)
    assert not (folder / "table.tex").exists()
    report(folder, Console(file=io.StringIO()), latex=True)
    assert "\\begin{tabular}" in (folder / "table.tex").read_text()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "c" / "run")
    write_comparison(tmp_path / "c", ["run"])
    for path in (folder, tmp_path / "c"):
        (path / "plots").write_text("in the way")
        with pytest.raises(
            UserError, match=r"plots cannot be written: .*; valid is a run folder that can be written to\.$"
        ):
            printed(path)


def test_clients_without_test_examples_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "partition.json"
    partition = json.loads(path.read_text())
    partition["counts_test"][1] = [0, 0]
    path.write_text(json.dumps(partition))
    lines = (run / "clients.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        if record["client"] == 1:
            record |= {"accuracy": None, "correct": 0, "total": 0}
    (run / "clients.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    notes = run_table(read_run(run)).notes
    assert "Without test examples, left out of accuracies: client 1." in notes
