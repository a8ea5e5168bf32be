"""Comparison folders: runs side by side, each under a label that tells it from the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedmoe.errors import UserError
from fedmoe.report.run import NoRoundYet, Run, is_run, read_run
from fedmoe.runs.records import ComparisonManifest, read_document

_MOST_MARKS = 3  # settings in a label; with more, runs are told apart by their folders


@dataclass(frozen=True, eq=False)
class Entry:
    """One run of a comparison: a ``run``, or the ``problem`` that keeps it from being read."""

    folder: str  # its name in comparison.json
    label: str  # what it is called in tables and plots
    run: Run | None
    state: str = ""  # a word or two in place of the result, where there is no run
    problem: str = ""  # the same as a sentence


@dataclass(frozen=True, eq=False)
class Comparison:
    """A folder of runs to be compared, in the order of comparison.json."""

    path: Path
    entries: tuple[Entry, ...]
    manifest: Mapping[str, Any]  # comparison.json as it was read, without its results

    @cached_property
    def runs(self) -> dict[str, Run]:
        """Label -> run, of the runs that can be read."""
        return {entry.label: entry.run for entry in self.entries if entry.run is not None}

    @cached_property
    def same_clients(self) -> bool:
        """Whether there are runs, and all have the same training examples of each class on each client."""
        counts = [run.labels.train for run in self.runs.values()]
        return bool(counts) and all(np.array_equal(counts[0], other) for other in counts)


def is_comparison(path: Path) -> bool:
    return (path / "comparison.json").is_file()


def read_comparison(path: Path) -> Comparison:
    """Read comparison.json, whose ``labels`` name the runs' sub-folders, and every run that can be read.

    Raises:
        UserError: if comparison.json is missing, unreadable or damaged. A run's damage is noted in its Entry.
    """
    manifest = read_document(path / "comparison.json", ComparisonManifest)
    return _of_folders(path, manifest.labels, manifest.model_extra or {})


def read_folder(path: Path, names: Sequence[str]) -> Comparison:
    """The runs of these names in ``path``, which were not planned as a comparison."""
    return _of_folders(path, names, {})


def _of_folders(path: Path, folders: Sequence[str], more: Mapping[str, Any]) -> Comparison:
    found: dict[str, tuple[Run | None, str, str]] = {}
    for folder in folders:
        try:
            found[folder] = read_run(path / folder), "", ""
        except NoRoundYet:
            found[folder] = None, "no round yet", "has finished no round yet."
        except UserError as error:
            known = is_run(path / folder)
            found[folder] = (None, "unreadable", str(error)) if known else (None, "missing", "has not begun yet.")
    labels = display_labels({folder: run for folder, (run, *_) in found.items()})
    return Comparison(
        path,
        tuple(Entry(f, labels[f], *found[f]) for f in folders),
        {"labels": list(folders), **more},
    )


def display_labels(runs: Mapping[str, Run | None]) -> dict[str, str]:
    """Folder name -> label, all different: the run's own label; without a run, the folder's name.

    Behind a label that several runs have stands what tells them apart: the method's settings that differ, or the seed,
    as in "pFedMoAP (num_experts=5)"; where these do not or are too many, the number that ends the folder's name, or
    this name.
    """
    own = {folder: run.label if run else folder for folder, run in runs.items()}
    labels: dict[str, str] = {}
    for label in own.values():
        same = [folder for folder in runs if own[folder] == label]
        marks = [""] if len(same) == 1 else _marks([runs[folder] for folder in same]) or _numbers(same)
        labels |= {folder: f"{label}{mark}" for folder, mark in zip(same, marks, strict=True)}
    if len(set(labels.values())) < len(labels):  # somebody's label looks like another's with its mark
        labels = {folder: f"{own[folder]} ({folder})" for folder in runs}
    return {folder: labels[folder] for folder in runs}


def _marks(runs: list[Run | None]) -> list[str]:
    """For each run the settings that are not the same in all; empty if they are too many or do not tell all apart."""
    settings = [
        {key: _value(value) for key, value in {**run.settings.arguments, "seed": run.settings.seed}.items()}
        if run and run.settings
        else {}
        for run in runs
    ]
    keys = [key for key in dict.fromkeys(k for s in settings for k in s) if len({s.get(key) for s in settings}) > 1]
    marks = [", ".join(f"{key}={s[key]}" for key in keys if key in s) for s in settings]
    if not all(marks) or len(set(marks)) < len(marks) or len(keys) > _MOST_MARKS:
        return []
    return [f" ({mark})" for mark in marks]


def _numbers(folders: list[str]) -> list[str]:
    numbers = [re.search(r"-(\d+)$", folder) for folder in folders]
    if all(numbers) and len({n[1] for n in numbers if n}) == len(folders):
        return [f" #{n[1]}" for n in numbers if n]
    return [f" ({folder})" for folder in folders]


def _value(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 20 else text[:19] + "…"
