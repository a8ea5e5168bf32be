"""What the finished runs of a plan say: values over seeds, beside the published ones.

A seed's value is the mean over clients of the accuracy in the run's last round, in percent; of a domain, the mean over
its clients. The mean and the *sample* standard deviation (n - 1) are taken over seeds; the paper does not say which
standard deviation it gives.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from experiments.reproduce.manifest import EXPERIMENTS, DataEntry, Manifest, Row
from experiments.reproduce.plan import Cell, Plan, Run, State
from experiments.reproduce.regimes import PAPER
from fedmoe.errors import UserError
from fedmoe.runs.records import read_rounds

AVERAGE = "average"  # over all clients of a data set with domains


@dataclass(frozen=True)
class Column:
    """A column of a table: a data set, or a domain of one."""

    key: str  # its name in the published section
    label: str
    data: str
    domain: str | None = None
    of: DataEntry | None = None  # in a collection of several tables


@dataclass(frozen=True)
class Published:
    """A published value: mean and standard deviation over three seeds, in percent."""

    mean: float
    std: float
    comparable: bool = True  # whether ours are of the same data and CLIP


@dataclass(frozen=True)
class Value:
    """One number of ours, in percent, and the published one."""

    row: Row
    column: Column
    x: float | None
    state: State
    reason: str
    planned: int  # seeds
    seeds: Mapping[int, float]  # of finished runs
    published: Published | None = None
    regime: str = PAPER.name

    @property
    def mean(self) -> float | None:
        return math.fsum(self.seeds.values()) / len(self.seeds) if self.seeds else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.seeds.values()) if len(self.seeds) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the published mean, in points; None where they do not compare."""
        if self.mean is None or self.published is None or not self.published.comparable:
            return None
        return self.mean - self.published.mean

    @property
    def mark(self) -> str:
        """The word in place of a number."""
        return "missing" if self.state == "run" else self.state


@dataclass(frozen=True)
class Attention:
    """Mean attention on the local expert and on the others, largest first, over seeds (figure 6): others are sorted for
    each client (``experts``), or anew for each image (``ranked``)."""

    label: str  # of the row, with its regime where there are several
    data: DataEntry
    local: tuple[float, ...]  # of each seed
    experts: tuple[tuple[float, ...], ...]  # rank -> of each seed
    ranked: tuple[tuple[float, ...], ...]  # the same; empty for runs that did not record it


def columns(manifest: Manifest) -> list[Column]:
    """The columns of a table, in order."""
    found = []
    for data in manifest.data:
        of = data if manifest.kind == "cells" else None
        if data.domains:
            found += [Column(domain, domain, data.key, domain, of) for domain in data.domains]
            found.append(Column(AVERAGE, AVERAGE, data.key, None, of))
        else:
            found.append(Column(data.key, data.label, data.key, None, of))
    return found


def values(plan: Plan) -> list[Value]:
    """Every number of a table or of curves, by row, then regime, then column, then place on the axis."""
    cells = {(cell.row.key, cell.regime, cell.data.key, cell.x): cell for cell in plan.cells}
    places = [shown for shown, _ in plan.manifest.axis.values] if plan.manifest.axis else [None]
    return [
        _value(
            cells[row.key, regime, column.data, x],
            column,
            published_value(plan.manifest, row, column),
            len(plan.seeds),
        )
        for row in plan.manifest.all_rows
        for regime in plan.regimes
        for column in columns(plan.manifest)
        for x in places
    ]


def _value(cell: Cell, column: Column, published: Published | None, planned: int) -> Value:
    seeds: dict[int, float] = {}
    for run in cell.runs:
        summary = read_summary(run)
        if summary is None:
            continue
        found = summary["accuracy"]["mean"]
        if column.domain is not None:
            found = summary["accuracy_per_domain"].get(column.domain)
        if found is not None:
            seeds[run.seed] = float(found)
    return Value(cell.row, column, cell.x, cell.state, cell.reason, planned, seeds, published, cell.regime)


@cache
def read_summary(run: Run) -> dict[str, Any] | None:
    """summary.json of a finished run, else None. Read once: a report shows one moment."""
    return json.loads((run.folder / "summary.json").read_text(encoding="utf-8")) if run.finished else None


def attention(plan: Plan) -> list[Attention]:
    """Of each cell with finished runs that recorded it, from the last evaluated round."""
    found = []
    for cell in plan.cells:
        seeds = []
        for run in cell.runs:
            if read_summary(run) is not None:
                kept = [r.attention for r in read_rounds(run.folder) if r.attention]
                seeds += kept[-1:]
        if seeds:
            experts, ranked = (_by_rank([one[key] for one in seeds]) for key in ("experts", "ranked"))
            label = plan.labelled(cell.row.marked, cell.regime)
            found.append(Attention(label, cell.data, tuple(float(one["local"]) for one in seeds), experts, ranked))
    return found


def _by_rank(seeds: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Of each seed the weights by rank -> of each rank that all have, the weights of the seeds."""
    return tuple(tuple(float(one[rank]) for one in seeds) for rank in range(min(map(len, seeds))))


def mean_std(numbers: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for fewer than two."""
    return math.fsum(numbers) / len(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def best(found: Sequence[Value]) -> set[tuple[str, str, str]]:
    """(regime, row, column) of the largest mean of each regime's column, to two decimals, where rows differ."""
    result = set()
    for regime, key in {(value.regime, value.column.key) for value in found}:
        means = {
            value.row.key: round(value.mean, 2)
            for value in found
            if (value.regime, value.column.key) == (regime, key) and value.mean is not None
        }
        if len(set(means.values())) > 1:
            result |= {(regime, row, key) for row, mean in means.items() if mean == max(means.values())}
    return result


@cache
def published() -> dict[str, Any]:
    """experiments/published.yaml."""
    return yaml.safe_load((EXPERIMENTS / "published.yaml").read_text(encoding="utf-8"))


def published_value(manifest: Manifest, row: Row, column: Column) -> Published | None:
    """The published number of a row and column; None where the manifest compares with none.

    Raises:
        UserError: the section has no such row.
    """
    place = column.of.published if column.of else manifest.published
    if place is None or row.control:
        return None
    section: Any = published().get(place)
    if not isinstance(section, dict):
        raise UserError(f"experiments/published.yaml has no section {place!r}.")
    group, _, name = row.published.partition(".")
    grouped = isinstance(section.get(group), dict)
    found = section[group].get(name) if grouped else section.get(row.published)
    if not isinstance(found, list):
        raise UserError(f"experiments/published.yaml, section {place}, has no row {row.published!r}.")
    if column.key not in section["columns"]:
        return None
    mean, std = found[section["columns"].index(column.key)]
    return Published(float(mean), float(std), comparable=manifest.preset is None)


def settings_of(plan: Plan) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What was run in the first regime, from the settings of the runs: shared by all, of each data set, of each row."""
    shown = ("clip.", "prompt.", "partition.", "federation.", "optim.", "views.", "privacy.")
    shared: dict[str, Any] | None = None
    by_data: dict[str, Any] = {}
    by_row: dict[str, Any] = {}
    for cell in (cell for cell in plan.cells if cell.regime == plan.regimes[0]):
        for run in cell.runs[:1]:
            own = {k: v for k, v in run.settings.items() if k.startswith(shown) and v is not None}
            shared = own if shared is None else {k: v for k, v in shared.items() if own.get(k) == v}
            by_data.setdefault(cell.data.label, _class(run.settings, "data", without=("root", "download")))
            axis = plan.manifest.axis.setting.split(".")[-1] if plan.manifest.axis else ""
            by_row.setdefault(cell.row.label, _class(run.settings, "method", without=(axis,)))
    return shared or {}, by_data, by_row


def differences(plan: Plan, regime: str) -> dict[str, list[tuple[Any, Any]]]:
    """The settings in which a regime's runs differ from the first regime's: key -> (there, here), each pair once."""
    first = {(c.row.key, c.data.key, c.x): c.runs[0] for c in plan.cells if c.runs and c.regime == plan.regimes[0]}
    found: dict[str, list[tuple[Any, Any]]] = {}
    for cell in plan.cells:
        other = first.get((cell.row.key, cell.data.key, cell.x))
        if cell.regime == regime and cell.runs and other is not None:
            own = cell.runs[0].settings
            for key in dict.fromkeys([*other.settings, *own]):
                pair = (other.settings.get(key), own.get(key))
                if pair[0] != pair[1] and pair not in found.setdefault(key, []):
                    found[key].append(pair)
    return {key: pairs for key, pairs in found.items() if pairs}


def _class(settings: Mapping[str, Any], key: str, without: Sequence[str]) -> str:
    """A class with its settings, as ``Name(a=1, b=2)``; null ones are left out."""
    name = str(settings[f"{key}.class_path"]).rpartition(".")[2]
    start = f"{key}.init_args."
    given = {k.removeprefix(start): v for k, v in settings.items() if k.startswith(start) and v is not None}
    inside = ", ".join(f"{k}={v}" for k, v in given.items() if k not in without and v != {})
    return f"{name}({inside})"


def versions(plan: Plan) -> list[str]:
    """The packages' versions of the finished runs; more than one line where they differ."""
    found = []
    for run in plan.runs:
        summary = read_summary(run)
        if summary is not None:
            line = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
            if line not in found:
                found.append(line)
    return found


def seconds(plan: Plan) -> float:
    """Seconds that the finished runs took, added up: rounds only, without start and image features."""
    return sum(sum(s["seconds"].values()) for run in plan.runs if (s := read_summary(run)) is not None)
