"""The run folders below a folder, in one table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedmoe.errors import UserError
from fedmoe.readers.plain_yaml import PlainLoader
from fedmoe.readers.regular import read_regular
from fedmoe.report.run import NoRoundYet, is_run, read_run
from fedmoe.report.tables import NONE, Cell, Table
from fedmoe.runs.records import DOCUMENT_BYTES

_DEPTH = 3  # runs/<comparison>/<method>, and runs/<name>/<seeds>/seed0


@dataclass(frozen=True)
class Listed:
    """One run as the list shows it; what is not known is None."""

    folder: str  # relative to the one that was searched
    method: str | None
    data: str | None
    seed: int | None
    rounds: int | None
    accuracy: float | None  # mean over clients of the last evaluated round, percent
    std: float | None  # over clients
    state: str  # finished, unfinished, empty, unreadable
    changed: float  # seconds since the epoch
    problem: str = ""  # why it is unreadable


def find_runs(folder: Path) -> list[Listed]:
    """All runs in ``folder`` and in the folders below it; links are not followed.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        return [_listed(path, folder) for path in _runs_below(folder, _DEPTH)]
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}; valid is a folder.") from None


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.is_symlink():
                yield from _runs_below(child, depth - 1)


def _listed(path: Path, root: Path) -> Listed:
    name, data = str(path.relative_to(root)), _data_of(path)
    changed = max(file.stat().st_mtime for file in path.iterdir() if not file.is_symlink())
    try:
        run = read_run(path)
    except NoRoundYet:
        return Listed(name, None, data, None, None, None, None, "empty", changed)
    except UserError as error:
        return Listed(name, None, data, None, None, None, None, "unreadable", changed, str(error))
    accuracy = (run.last and run.last.accuracy) or {}
    state = "finished" if run.finished else "unfinished"
    found = (accuracy.get("mean"), accuracy.get("std"), state, changed)
    return Listed(name, run.method, data, run.seed, run.rounds[-1].round, *found)


def _data_of(path: Path) -> str | None:
    """The class of the run's data set; None where config.yaml does not say it."""
    try:
        settings = yaml.load(read_regular(path / "config.yaml", DOCUMENT_BYTES).decode("utf-8"), PlainLoader)
        return str(settings["data"]["class_path"]).rpartition(".")[2]
    except (UserError, ValueError, yaml.YAMLError, TypeError, KeyError):
        return None


def runs_table(found: Sequence[Listed], sort: str = "folder", only: Mapping[str, str] | None = None) -> Table:
    """The table of the runs whose ``method``, ``data`` or ``state`` are those in ``only``.

    ``sort`` is a field of ``Listed``. Runs that do not have it come last; of accuracy and changed, the largest first.
    """
    wanted = {key: value.lower() for key, value in (only or {}).items()}
    kept = [run for run in found if all(str(getattr(run, key)).lower() == value for key, value in wanted.items())]
    known = [run for run in kept if getattr(run, sort) is not None]
    known.sort(key=lambda run: getattr(run, sort), reverse=sort in ("accuracy", "changed"))
    ordered = known + [run for run in kept if getattr(run, sort) is None]
    rows = [
        tuple(
            Cell(NONE if text is None else str(text))
            for text in (run.folder, run.method, run.data, run.seed, run.rounds, _spread(run), run.state, _when(run))
        )
        for run in ordered
    ]
    notes = [f"{len(kept)} of {len(found)} runs. Accuracy: last evaluated round, mean ± std over clients, %."]
    notes += [f"{run.folder}: {run.problem}" for run in ordered if run.problem]
    columns = ("folder", "method", "data", "seed", "rounds", "accuracy", "state", "changed")
    return Table("Runs", columns, tuple(rows), tuple(notes))


def _spread(run: Listed) -> str | None:
    return None if run.accuracy is None else f"{run.accuracy:.2f} ± {run.std or 0.0:.2f}"


def _when(run: Listed) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
