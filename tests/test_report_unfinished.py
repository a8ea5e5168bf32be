"""Reports of runs that are interrupted, cut by a crash, or unusual in other ways, such as one client or no round."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_helpers import HUNDRED, OTHER, RUN, band, cells, printed, tables, write_comparison, write_run

from fedmoe.report.accuracy import accuracy_over_rounds
from fedmoe.report.comparison import read_comparison
from fedmoe.report.run import read_run
from fedmoe.report.tables import comparison_table, run_table


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
