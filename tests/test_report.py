"""The tables of a run and of a comparison, on the screen and in files: Markdown, JSON and LaTeX."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from report_helpers import OTHER, cells, printed, tables, write_comparison, write_run
from rich.console import Console

from fedmoe.report import plan_comparison, report
from fedmoe.report.run import read_run
from fedmoe.report.tables import Cell, Table, run_table, show, to_markdown


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
