"""A protocol's results as a ranking: scores over seeds, paired tests against the first, bytes and seconds.

Methods are ranked by the protocol's first score, the mean over data sets and over the axis. The paired test is the one
over clients of ``fedmoe.cli compare``: of each client (of each data set and place on the axis), the difference of the
first score, or of the accuracy on its own test images where that is none of a client, in the last round, mean over
seeds; Wilcoxon's signed-rank test, corrected for all methods by Holm.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from experiments.benchmark.scores import SCORES, Result, read_result
from experiments.reproduce.plan import Plan
from fedmoe.report import plot_style
from fedmoe.report.outside import csv_cell, markdown
from fedmoe.report.statistics import Scores, by_client, holm, paired
from fedmoe.report.tables import NONE, Cell, Table

_FIELDS = {"accuracy": "accuracy", "others": "accuracy_others"}  # score -> what clients.jsonl calls it
_FACTOR = 10**6  # above all clients' numbers: tells the clients of several cells apart


@dataclass(frozen=True, eq=False)
class Entry:
    """A method: its finished runs by cell, (data set, place on the axis)."""

    label: str
    cells: dict[tuple[str, float | None], list[Result]]
    complete: bool  # whether all its runs are there

    @property
    def results(self) -> list[Result]:
        return [result for found in self.cells.values() for result in found]

    def by_seed(self, score: str) -> list[float]:
        """The score of each seed that all cells have, mean over the cells."""
        seeds: dict[int, list[float]] = {}
        for result in self.results:
            found = result.scores[score]
            if found is not None:
                seeds.setdefault(result.run.seed, []).append(found)
        return [statistics.fmean(own) for own in seeds.values() if len(own) == len(self.cells)]

    def mean(self, score: str) -> float | None:
        found = self.by_seed(score)
        return statistics.fmean(found) if found else None

    def clients(self, order: Sequence[tuple[str, float | None]], field: str) -> Scores:
        """(seed, client) -> a number of clients.jsonl in the last round; clients numbered through the cells."""
        found: dict[tuple[int, int], float] = {}
        for number, key in enumerate(order):
            for result in self.cells.get(key, ()):
                last = result.record.last
                for score in result.record.clients[last.round] if last else ():
                    value = getattr(score, field)
                    if value is not None:
                        found[result.run.seed, number * _FACTOR + score.client] = value
        return found


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
            entries.append(Entry(row.label, cells, sum(map(len, cells.values())) == runs))
    return sorted(entries, key=lambda entry: -(entry.mean(names[0]) or -math.inf))


def tested(plan: Plan) -> str:
    """What the paired tests compare: the first score where each client has it in clients.jsonl, else accuracy."""
    first = plan.manifest.scores[0]
    return first if first in _FIELDS else "accuracy"


def rank(entries: Sequence[Entry], score: str) -> list[Line]:
    """The lines, with the paired tests of a score of ``tested`` against the first."""
    if not entries:
        return []
    order = list(entries[0].cells)
    first = entries[0].clients(order, _FIELDS[score])
    tests = []
    for entry in entries[1:]:
        a, b = by_client(first, entry.clients(order, _FIELDS[score]))
        tests.append(paired(a, b, seed=0) if a else None)
    corrected = holm([test.p if test else None for test in tests])
    lines = [Line(entries[0], None, None)]
    for entry, test, p in zip(entries[1:], tests, corrected, strict=True):
        lines.append(Line(entry, test.difference if test else None, p))
    return lines


def table(plan: Plan, lines: Sequence[Line]) -> Table:
    """The leaderboard, to be printed and as Markdown."""
    names, axis = plan.manifest.scores, plan.manifest.axis
    head = ["", "method", *(SCORES[name].label for name in names)]
    places = [x for x, _ in axis.values] if axis else []
    head += [f"{axis.label} {x:g}" for x in places] if axis else []
    head += ["MB", "s", "first −\nthis", "p, Holm"]
    rows = []
    for number, line in enumerate(lines, start=1):
        entry = line.entry
        texts = [str(number), entry.label + ("" if entry.complete else " (not all runs)")]
        texts += [_spread(entry.by_seed(name)) for name in names]
        texts += [_at(entry, names[0], x) for x in places]
        texts += [f"{_mean(r.megabytes for r in entry.results):.2f}", f"{_mean(r.seconds for r in entry.results):.1f}"]
        texts += [NONE if line.difference is None else f"{line.difference:+.2f}", _p(line.p)]
        rows.append(tuple(map(Cell, texts)))
    notes = [f"{SCORES[name].label}: {SCORES[name].formula}, percent." for name in names]
    notes += [
        "Mean over clients, data sets and the axis ± sample standard deviation over seeds (n − 1); the first ranks.",
        "MB: down and up, all clients and rounds of a run, without evaluations; s: its training, on the machine below.",
        f"first − this: points of {SCORES[tested(plan)].label}, mean over the clients that both have; p: Wilcoxon "
        "signed-rank over clients, Holm's correction for all methods; none with fewer than 6 clients.",
    ]
    return Table(plan.title, tuple(head), tuple(rows), tuple(notes))


def to_csv(plan: Plan, lines: Sequence[Line]) -> str:
    """A row for each method and score, and cell; not rounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "data", "x", "seed", *plan.manifest.scores, "megabytes", "train_seconds"])
    for line in lines:
        for (data, x), found in line.entry.cells.items():
            for result in found:
                scores = [result.scores[name] for name in plan.manifest.scores]
                at = ["" if x is None else x, result.run.seed]
                numbers = ["" if value is None else value for value in (*scores, result.megabytes, result.seconds)]
                writer.writerow([csv_cell(line.entry.label), csv_cell(data), *at, *numbers])
    return buffer.getvalue()


@plot_style.styled
def picture(plan: Plan, lines: Sequence[Line]) -> Figure:
    """Accuracy on own test images against bytes and against seconds of training, a curve for each method, mean over
    seeds; of curves, at the last place of the axis. Methods that send nothing are dots at the left edge."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    key = list(lines[0].entry.cells)[-1] if lines else None
    shown = {line.entry.label: line.entry.cells[key] for line in lines if key is not None}
    colours = plot_style.colours({label: found[0].record for label, found in shown.items()})
    for label, found in shown.items():
        for axis, what in zip(axes, ("bytes", "seconds"), strict=True):
            points = _curve(found, what)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colours[label], label=label)
    where = (
        ""
        if key is None or key[1] is None or plan.manifest.axis is None
        else f" ({plan.manifest.axis.label} {key[1]:g})"
    )
    axes[0].set(xlabel="MB, down and up", ylabel=f"accuracy, own test images, %{where}")
    axes[1].set(xlabel="seconds of training")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(plan.title)
    return figure


def _curve(results: Sequence[Result], what: str) -> list[tuple[float, float]]:
    """(cost so far, accuracy) of each evaluated round that all seeds have, mean over seeds."""
    points: dict[int, list[tuple[float, float]]] = {}
    for result in results:
        cost = 0.0
        for record in result.record.rounds:
            if record.round > 0:
                cost += (
                    (record.bytes["down"] + record.bytes["up"]) / 1e6 if what == "bytes" else record.seconds["train"]
                )
            if record.accuracy is not None:
                points.setdefault(record.round, []).append((cost, record.accuracy["mean"]))
    whole = [found for found in points.values() if len(found) == len(results)]
    return [(_mean(x for x, _ in found), _mean(y for _, y in found)) for found in whole]


def to_markdown(plan: Plan, shown: Table, machine: str, command: str, picture_name: str) -> str:
    """The leaderboard's page."""
    lines = [f"# {markdown(plan.title)}", "", f"| {' | '.join(markdown(c) for c in shown.columns)} |"]
    lines += ["|" + "---|" * len(shown.columns)]
    lines += [f"| {' | '.join(markdown(cell.text) for cell in row)} |" for row in shown.rows]
    lines += ["", *(f"- {markdown(note)}" for note in shown.notes)]
    for label, reason in plan.pending().items():
        lines.append(f"- {markdown(label)} is missing: {markdown(reason)}.")
    seeds = len(plan.seeds)
    settings = plan.runs[0].settings
    budget = ", ".join(f"{key.rpartition('.')[2]} {settings[key]}" for key in _BUDGET if settings.get(key) is not None)
    lines += [
        "",
        f"Budget: {budget}; {seeds} seed{'s' * (seeds > 1)}.",
        f"Machine: {markdown(machine)}.",
        "",
        "```sh",
        command,
        "```",
        "",
        f"![accuracy against bytes and seconds]({picture_name})",
        "",
    ]
    return "\n".join(lines)


_BUDGET = (
    "data.init_args.shots", "federation.clients", "federation.participation", "federation.rounds",
    "federation.local_epochs", "federation.batch_size",
)  # fmt: skip


def _at(entry: Entry, score: str, x: float) -> str:
    found = [r.scores[score] for (_, place), own in entry.cells.items() if place == x for r in own]
    known = [value for value in found if value is not None]
    return f"{statistics.fmean(known):.2f}" if known else NONE


def _mean(values: object) -> float:
    return statistics.fmean(values)  # type: ignore[arg-type]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return NONE
    end = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{end}"


def _p(value: float | None) -> str:
    return NONE if value is None else ("< 0.001" if value < 0.001 else f"{value:.3f}")
