"""Records of rounds: their fields, and what is read back of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_helpers import write_run

from fedmoe.io import append_jsonl
from fedmoe.report.run import read_run
from fedmoe.runs.records import RoundRecord, read_rounds
from fedmoe.tracking.names import round_row


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
