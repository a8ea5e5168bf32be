"""A protocol's results as a ranking: scores over seeds, paired tests against the first, bytes and seconds.

Methods are ranked by the protocol's first score, the mean over data sets and over the axis. The paired test is the one
over clients of ``fedmoe.cli compare``: of each client (of each data set and place on the axis), the difference of the
first score, mean over seeds; Wilcoxon's signed-rank test, corrected for all rows by Holm.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.benchmark.scores import SCORES, Result, read_result
from experiments.reproduce.plan import Plan
from fedmoe.report.outside import csv_cell
from fedmoe.report.statistics import FEWEST, Paired, Scores, by_client, holm, paired
from fedmoe.report.tables import NONE, Cell, Table

_FACTOR = 10**6  # above all clients' numbers: tells the clients of several cells apart
REFERENCE = "PromptFL"  # what it sends is the common budget in bytes
Key = tuple[str, float | None]  # data set, place on the axis


@dataclass(frozen=True, eq=False)
class Entry:
    """A method: its finished runs by cell."""

    label: str
    cells: dict[Key, list[Result]]
    complete: bool  # whether all its runs are there
    control: bool = False  # of another method

    @property
    def results(self) -> list[Result]:
        return [result for found in self.cells.values() for result in found]

    def by_seed(self, score: str) -> list[float]:
        """The score of each seed that all cells have, mean over the cells."""
        return self._by_seed((result.run.seed, result.scores[score]) for result in self.results)

    def by_seed_within(self, caps: Mapping[Key, float]) -> list[float]:
        """As ``by_seed``, the accuracy that was reached before more than ``caps`` megabytes had been sent."""
        return self._by_seed((r.run.seed, r.within(caps[key])) for key, found in self.cells.items() for r in found)

    def _by_seed(self, values: Iterable[tuple[int, float | None]]) -> list[float]:
        seeds: dict[int, list[float]] = {}
        for seed, value in values:
            if value is not None:
                seeds.setdefault(seed, []).append(value)
        return [statistics.fmean(own) for own in seeds.values() if len(own) == len(self.cells)]

    def clients(self, order: Sequence[Key]) -> Scores:
        """(seed, client) -> the first score; clients numbered through the cells."""
        return {
            (result.run.seed, number * _FACTOR + client): value
            for number, key in enumerate(order)
            for result in self.cells.get(key, ())
            for client, value in result.each.items()
        }


@dataclass(frozen=True, eq=False)
class Line:
    """A line of the leaderboard."""

    entry: Entry
    difference: float | None  # of the first minus this one, points; None of the first itself
    p: float | None


def read_entries(plan: Plan) -> list[Entry]:
    """The methods with at least one finished run in each cell, best first."""
    names = plan.manifest.scores
    entries = []
    for row in plan.manifest.all_rows:
        own = [cell for cell in plan.cells if cell.row.key == row.key]
        cells = {(c.data.key, c.x): [read_result(r, names) for r in c.runs if r.finished] for c in own}
        if all(cells.values()):
            runs = sum(len(cell.runs) for cell in own)
            entries.append(Entry(row.marked, cells, sum(map(len, cells.values())) == runs, row.control))
    return sorted(entries, key=lambda entry: -(_mean(entry.by_seed(names[0])) or -math.inf))


def rank(entries: Sequence[Entry]) -> list[Line]:
    """The lines, with the paired tests of the first score against the first entry."""
    if not entries:
        return []
    order = list(entries[0].cells)
    lines = [Line(entries[0], None, None)]
    for entry, (test, p) in zip(entries[1:], compare(entries[0], entries[1:], order), strict=True):
        lines.append(Line(entry, test.difference if test else None, p))
    return lines


def compare(one: Entry, others: Sequence[Entry], order: Sequence[Key]) -> list[tuple[Paired | None, float | None]]:
    """One entry against each of the others: the paired test of the first score over the clients of these cells that
    both have, mean over seeds (None where there is no such client), and its p, corrected for all of the others."""
    first = one.clients(order)
    tests = []
    for other in others:
        a, b = by_client(first, other.clients(order))
        tests.append(paired(a, b, seed=0) if a else None)
    return list(zip(tests, holm([test.p if test and _varies(test) else None for test in tests]), strict=True))


def _varies(test: Paired) -> bool:
    """Whether the differences vary over clients. Two methods with one model for all, scored on the same images, differ
    by the same number everywhere, which is one observation and no test."""
    return test.cohen_dz is not None


def byte_budget(entries: Sequence[Entry]) -> dict[Key, float] | None:
    """The megabytes that the reference sends in a run of each cell; None where it is missing."""
    reference = next((entry for entry in entries if entry.label == REFERENCE), None)
    if reference is None:
        return None
    return {key: statistics.fmean(result.megabytes for result in found) for key, found in reference.cells.items()}


def table(plan: Plan, lines: Sequence[Line], refused: Mapping[str, str]) -> Table:
    """The leaderboard, to be printed and as Markdown; ``refused``: label -> why the method does not apply."""
    names, axis = plan.manifest.scores, plan.manifest.axis
    caps = byte_budget([line.entry for line in lines])
    places = [x for x, _ in axis.values] if axis else []
    head = ["", "method", *(SCORES[name].label for name in names)]
    head += [f"{axis.label} {x:g}" for x in places] if axis else []
    head += ["within\nbytes"] if caps else []
    head += ["MB", "s", "first −\nthis", "p, Holm"]
    rows = []
    for number, line in enumerate(lines, start=1):
        entry = line.entry
        texts = [str(number), entry.label + ("" if entry.complete else " (not all runs)")]
        texts += [_spread(entry.by_seed(name)) for name in names]
        texts += [_at(entry, names[0], x) for x in places]
        texts += [_spread(entry.by_seed_within(caps))] if caps else []
        megabytes, seconds = ([getattr(r, what) for r in entry.results] for what in ("megabytes", "seconds"))
        texts += [f"{statistics.fmean(megabytes):.2f}", f"{statistics.fmean(seconds):.1f}"]
        texts += [NONE if line.difference is None else f"{line.difference:+.2f}", p_text(line.p)]
        rows.append(tuple(map(Cell, texts)))
    for label in refused:
        texts = [NONE, label, "not applicable"]
        rows.append(tuple(map(Cell, [*texts, *[NONE] * (len(head) - len(texts))])))
    return Table(plan.title, tuple(head), tuple(rows), tuple(_notes(plan, lines, caps, refused)))


def _notes(
    plan: Plan, lines: Sequence[Line], caps: Mapping[Key, float] | None, refused: Mapping[str, str]
) -> list[str]:
    names = plan.manifest.scores
    notes = [f"{SCORES[name].label}: {SCORES[name].formula}, percent." for name in names]
    notes.append(
        "Mean over clients, data sets and the axis ± sample standard deviation over seeds (n − 1); the first ranks."
    )
    if caps:
        sent = " and ".join(dict.fromkeys(f"{value:.2f}" for value in (min(caps.values()), max(caps.values()))))
        notes.append(
            f"within bytes: Accuracy of the last evaluated round up to which a method had sent at most what "
            f"{REFERENCE} sends in its whole run ({sent} MB): the common budget in bytes; round 0 is before training."
        )
    notes += [
        "MB: down and up, all clients and rounds of a run, without evaluations; s: its training, on the machine below.",
        f"first − this: points of {SCORES[names[0]].label}, mean over the clients that both have; p: Wilcoxon "
        "signed-rank over clients (of each data set and place on the axis), Holm's correction for all rows; none with "
        "fewer than 6 clients. A composite is tested on that of each client's own numbers.",
    ]
    if SCORES[names[0]].same_images:
        notes.append(
            "All clients are scored on the same images, so that p speaks of clients' models and not of other images; "
            "there is none where the difference is the same for all clients, as between two methods with one model."
        )
    clients = len({client for _, client in lines[0].entry.clients(list(lines[0].entry.cells))}) if lines else 0
    if clients >= FEWEST:
        least = min(1.0, 2 / 2**clients * (len(lines) - 1))
        notes.append(
            f"With {clients} clients and {len(lines) - 1} tests, no corrected p can fall much below {least:.2g}."
        )
    return notes + [f"{label} is not applicable: {reason}" for label, reason in refused.items()]


def to_csv(plan: Plan, lines: Sequence[Line]) -> str:
    """A row for each method, cell and seed; not rounded."""
    buffer, caps = io.StringIO(), byte_budget([line.entry for line in lines])
    writer = csv.writer(buffer, lineterminator="\n")
    more = ["within_bytes"] if caps else []
    writer.writerow(["method", "data", "x", "seed", *plan.manifest.scores, *more, "megabytes", "train_seconds"])
    for line in lines:
        for key, found in line.entry.cells.items():
            for result in found:
                data, x = key
                numbers = [result.scores[name] for name in plan.manifest.scores]
                numbers += [result.within(caps[key])] if caps else []
                at = ["" if x is None else x, result.run.seed]
                cells = ["" if value is None else value for value in (*numbers, result.megabytes, result.seconds)]
                writer.writerow([csv_cell(line.entry.label), csv_cell(data), *at, *cells])
    return buffer.getvalue()


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> str:
    if not values:
        return NONE
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _at(entry: Entry, score: str, x: float) -> str:
    found = [r.scores[score] for (_, place), results in entry.cells.items() if place == x for r in results]
    values = [value for value in found if value is not None]
    return f"{statistics.fmean(values):.2f}" if values else NONE


def p_text(p: float | None) -> str:
    """A p-value for a table."""
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
