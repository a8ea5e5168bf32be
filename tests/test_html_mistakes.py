"""Pages that cannot be written: of what is no run, over records, to a folder, with experts that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_helpers import write_run

from fedmoe.errors import UserError
from fedmoe.report.html import write_page


def test_what_is_no_run_is_said_as_in_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "quickstart")
    with pytest.raises(UserError, match=r"quickstrt does not exist; valid is a run folder .*quickstart"):
        write_page(tmp_path / "quickstrt", tmp_path / "page.html")
    with pytest.raises(UserError, match="is a folder of runs; valid is one of them"):
        write_page(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_never_replaces_records(tmp_path: Path) -> None:
    records = write_run(tmp_path / "mine") / "rounds.jsonl"
    before = records.read_bytes()
    with pytest.raises(UserError, match=r"rounds\.jsonl is no name for a page; valid is one that ends in \.html\."):
        write_page(tmp_path / "mine", records)
    assert records.read_bytes() == before


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    with pytest.raises(UserError, match=r"page\.html cannot be written: .+; valid is a file in a folder"):
        write_page(run, run / "rounds.jsonl" / "page.html")
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UserError, match=r"page\.html cannot be written: .+; valid is a file in a folder"):
        write_page(run, tmp_path / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "page.html"]


def test_experts_that_the_run_does_not_have(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    text = (run / "rounds.jsonl").read_text()
    (run / "rounds.jsonl").write_text(text.replace('"experts": {"0": [1, 2]}', '"experts": {"0": [1, 4]}'))
    with pytest.raises(UserError, match=r"round 2, names client 4 in an assignment .* has 4 clients, from 0\."):
        write_page(run, tmp_path / "page.html")
