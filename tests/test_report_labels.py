"""The labels in a report, which tell its runs apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_helpers import write_run

from fedmoe.report.comparison import display_labels
from fedmoe.report.run import read_run


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
