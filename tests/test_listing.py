"""``fedmoe runs``: what lies below a folder, in whatever state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from report_helpers import write_run

from fedmoe.cli import main
from fedmoe.errors import UserError
from fedmoe.report.listing import find_runs, runs_table
from fedmoe.report.tables import Table


def with_data(folder: Path, data: str, seconds: int) -> None:
    """Give a run folder a data set and a time of its last change."""
    path = folder / "config.yaml"
    settings = yaml.safe_load(path.read_text()) if path.exists() else {"method": {"class_path": "PFedMoAP"}, "seed": 0}
    path.write_text(yaml.safe_dump({**settings, "data": {"class_path": f"fedmoe.data.{data}"}}))
    for file in folder.iterdir():
        os.utime(file, (seconds, seconds))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A finished run, one in a comparison that was interrupted, one without a round, and one that is damaged."""
    root = tmp_path / "runs"
    better = {0: ((9, 8), (85.0, 5.0, 80.0), ())}
    write_run(root / "a")
    with_data(root / "a", "Digits", 3_000_000)
    write_run(root / "both" / "CoOp", better, method="CoOp", label="CoOp", domains=False, finished=False)
    with_data(root / "both" / "CoOp", "CIFAR10", 4_000_000)
    (root / "begun").mkdir()
    with_data(root / "begun", "Digits", 1_000_000)
    write_run(root / "torn")
    (root / "torn" / "partition.json").write_text("{")
    with_data(root / "torn", "Digits", 2_000_000)
    (root / "link").symlink_to(root / "a")
    return root


def column(table: Table, name: str) -> list[str]:
    place = table.columns.index(name)
    return [row[place].text for row in table.rows]


def test_every_run_is_listed_with_its_state(root: Path) -> None:
    table = runs_table(find_runs(root))
    assert column(table, "folder") == ["a", "begun", "both/CoOp", "torn"]
    assert column(table, "state") == ["finished", "empty", "unfinished", "unreadable"]
    assert column(table, "data") == ["Digits", "Digits", "CIFAR10", "Digits"]
    assert column(table, "accuracy")[2] == "85.00 ± 5.00"
    assert table.notes[0].startswith("4 of 4 runs.")
    assert table.notes[1].startswith("torn: ") and "partition.json" in table.notes[1]


@pytest.mark.parametrize(
    ("sort", "folders"),
    [
        ("accuracy", ["both/CoOp", "a", "begun", "torn"]),  # 85 before that of RUN; then those that have none
        ("changed", ["both/CoOp", "a", "torn", "begun"]),
        ("data", ["both/CoOp", "a", "begun", "torn"]),
    ],
)
def test_the_order(root: Path, sort: str, folders: list[str]) -> None:
    assert column(runs_table(find_runs(root), sort), "folder") == folders


def test_filters(root: Path) -> None:
    found = find_runs(root)
    assert column(runs_table(found, only={"data": "digits", "state": "finished"}), "folder") == ["a"]
    assert column(runs_table(found, only={"method": "CoOp"}), "folder") == ["both/CoOp"]
    none = runs_table(found, only={"method": "FedPer"})
    assert (none.rows, none.notes[0].startswith("0 of 4 runs.")) == ((), True)


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["runs", "--state=finished"]) == 0
    out = capsys.readouterr().out
    assert "1 of 4 runs." in out and "PFedMoAP" in out
    assert main(["runs", "--dir=nowhere"]) == 2
    assert "nowhere cannot be read: No such file or directory" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="cannot be read"):
        find_runs(root / "nowhere")
