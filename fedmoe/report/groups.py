"""Runs that were made independently, grouped by their settings: a group holds one run for each seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedmoe.config import flatten
from fedmoe.errors import UserError, did_you_mean
from fedmoe.readers.plain_yaml import PlainLoader
from fedmoe.readers.regular import read_regular
from fedmoe.report.comparison import is_comparison
from fedmoe.report.outside import one_line
from fedmoe.report.run import Run, is_run, read_run
from fedmoe.report.statistics import Scores
from fedmoe.runs.records import DOCUMENT_BYTES, ComparisonManifest, best_by_validation, last_five, read_document

# What tells no experiment from another: which repetition it is, where it was computed, and where it was written to.
_NOT_OF_THE_GROUP = ("output.", "tracking.", "features.", "runtime.", "engine.")
_NOT_OF_THE_GROUP_EXACTLY = {"seed", "methods", "data.init_args.download"}
_OF_THE_GROUP = ("runtime.precision", "bfloat16")  # which changes results
_SAME_IN_ALL = ("data.", "partition.", "federation.clients", "federation.late_clients")
_ABSENT = object()


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seed."""

    label: str  # different from every other group's
    runs: Mapping[int, Run]  # by seed, ascending; all finished and evaluated
    settings: Mapping[str, Any]  # by dotted key, without what may differ within a group

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.runs)

    @cached_property
    def last(self) -> dict[int, float]:
        """Seed -> mean accuracy over clients in the last evaluated round, percent."""
        return {seed: accuracy["mean"] for seed, accuracy in self._accuracies.items()}

    @cached_property
    def client_stds(self) -> dict[int, float]:
        """Seed -> the population's standard deviation over clients in the last evaluated round."""
        return {seed: accuracy["std"] for seed, accuracy in self._accuracies.items()}

    @cached_property
    def last_five(self) -> dict[int, float]:
        return {seed: last_five(run.rounds)["accuracy"] for seed, run in self.runs.items()}

    @cached_property
    def best_by_validation(self) -> dict[int, float] | None:
        """Seed -> test accuracy of the round that validation chose; None unless every run held examples out."""
        found = {seed: best_by_validation(run.rounds) for seed, run in self.runs.items()}
        return {seed: best["accuracy"] for seed, best in found.items() if best} if all(found.values()) else None

    @cached_property
    def scores(self) -> Scores:
        """(seed, client) -> accuracy in the last evaluated round, of all clients with test examples."""
        return {
            (seed, score.client): score.accuracy
            for seed, run in self.runs.items()
            for score in run.clients[run.evaluated[-1].round]
            if score.accuracy is not None
        }

    @property
    def _accuracies(self) -> dict[int, Mapping[str, float]]:
        return {seed: run.last.accuracy for seed, run in self.runs.items() if run.last and run.last.accuracy}


def read_groups(paths: Iterable[Path]) -> list[Group]:
    """The runs in ``paths``, grouped, in the order in which their groups occur first.

    Args:
        paths: run folders, comparison folders, and folders of either.

    Raises:
        UserError: a folder is missing, damaged, unfinished or of no run; two runs have the same settings and seed; or
            the groups differ in their data, partition or clients, so that nothing pairs them.
    """
    folders = dict.fromkeys(folder.resolve() for path in paths for folder in _runs_in(path))
    found: dict[str, tuple[dict[str, Any], dict[int, Run]]] = {}
    for folder in map(_shown, folders):
        run, seed, settings = _read(folder)
        _, runs = found.setdefault(repr(sorted(settings.items())), (settings, {}))
        if seed in runs:
            raise UserError(
                f"{runs[seed].path} and {folder} are runs of the same settings and seed {seed}; valid is one run for "
                "each seed."
            )
        runs[seed] = run
    _require_pairs([settings for settings, _ in found.values()], [runs for _, runs in found.values()])
    labels = _labels([settings for settings, _ in found.values()], [next(iter(r.values())) for _, r in found.values()])
    return [
        Group(label, dict(sorted(runs.items())), settings)
        for label, (settings, runs) in zip(labels, found.values(), strict=True)
    ]


def _runs_in(path: Path, depth: int = 2) -> list[Path]:
    """The run folders that ``path`` stands for: itself, a comparison's, or those in the folders below it.

    Raises:
        UserError: there is none.
    """
    if is_comparison(path):
        return [path / label for label in read_document(path / "comparison.json", ComparisonManifest).labels]
    if is_run(path):
        return [path]
    try:
        inside = sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())
    except FileNotFoundError:
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, siblings) or "."
        raise UserError(f"{path} does not exist; valid is a run folder, or a folder of runs{near}") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; valid is a run folder, or a folder of runs."
        ) from None
    found: list[Path] = []
    for child in inside:
        if is_run(child) or is_comparison(child):
            found += _runs_in(child)
        elif depth > 1:
            try:
                found += _runs_in(child, depth - 1)
            except _NoRuns:
                continue
    if not found:
        raise _NoRuns(f"{path} holds no run; valid is a run folder, or a folder of runs.")
    return found


class _NoRuns(UserError):
    """A folder without runs; one among others is passed over."""


def _shown(folder: Path) -> Path:
    """The folder as a user would name it: below the current one, relative to it."""
    here = Path.cwd().resolve()
    return folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder


def _read(folder: Path) -> tuple[Run, int, dict[str, Any]]:
    run, path = read_run(folder), folder / "config.yaml"
    if run.settings is None:
        raise UserError(f"{path} is missing; without it, nothing tells which runs belong together.")
    if not run.finished:
        last = run.rounds[-1].round
        raise UserError(f"{folder} is unfinished (round {last} is its last); valid are runs that fit has finished.")
    if run.last is None:
        raise UserError(f"{folder} has no evaluated round; valid are runs with at least one.")
    if run.last.round not in run.clients:
        raise UserError(f"{folder / 'clients.jsonl'} lacks clients of round {run.last.round}, which pairs are made of.")
    try:
        flat = flatten(yaml.load(read_regular(path, DOCUMENT_BYTES).decode("utf-8"), PlainLoader))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}.") from None
    kept = {
        key: value
        for key, value in flat.items()
        if key not in _NOT_OF_THE_GROUP_EXACTLY
        and (not key.startswith(_NOT_OF_THE_GROUP) or (key, value) == _OF_THE_GROUP)
        and (value or not key.endswith(".init_args"))  # of a class without settings; not written by every version
    }
    return run, run.settings.seed, kept


def _require_pairs(settings: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[int, Run]]) -> None:
    """Refuse groups whose clients are not the same.

    Raises:
        UserError: a setting of data, partition or clients differs, or the clients' test examples do.
    """
    first = next(iter(runs[0].values()))
    for own, others in zip(settings[1:], runs[1:], strict=True):
        other = next(iter(others.values()))
        for key in _different([settings[0], own]):
            if key.startswith(_SAME_IN_ALL):
                values = " and ".join(repr(s[key]) if key in s else "not set" for s in (settings[0], own))
                raise UserError(
                    f"{first.path} and {other.path} differ in {key} ({values}); valid are runs of the same data, "
                    "partition and clients, since clients are compared in pairs."
                )
    by_seed: dict[int, Run] = {}
    for run, seed in ((run, seed) for group in runs for seed, run in group.items()):
        one = by_seed.setdefault(seed, run)
        same = one.labels.class_names == run.labels.class_names and one.labels.domains == run.labels.domains
        if not same or not np.array_equal(one.labels.test, run.labels.test):
            raise UserError(
                f"{one.path} and {run.path} have seed {seed} and different clients in partition.json; valid are runs "
                "of the same partition, since clients are compared in pairs."
            )


def _labels(settings: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[str]:
    """For each group the method's label, and the settings in which it differs from the others in parentheses.

    A method's own settings are named where they differ from those of another group of the same method.
    """
    names = [one_line(run.label) for run in runs]
    shared = [key for key in _different(settings) if not key.startswith("method.")]
    labels = []
    for name, own in zip(names, settings, strict=True):
        same = [other for other, label in zip(settings, names, strict=True) if label == name]
        keys = [*(key for key in _different(same) if key.startswith("method.")), *shared]
        marks = [f"{key.removeprefix('method.init_args.')}={_value(own[key])}" for key in keys if key in own]
        labels.append(f"{name} ({', '.join(marks)})" if marks else name)
    numbered = [f"{label} #{labels[: i + 1].count(label)}" for i, label in enumerate(labels)]
    return [label if labels.count(label) == 1 else other for label, other in zip(labels, numbered, strict=True)]


def _different(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose value is not the same in all."""
    keys = dict.fromkeys(key for own in settings for key in own)
    return [key for key in keys if any(own.get(key, _ABSENT) != settings[0].get(key, _ABSENT) for own in settings[1:])]


def _value(value: Any) -> str:
    text = one_line("null" if value is None else str(value))
    return text if len(text) <= 40 else text[:39] + "…"
