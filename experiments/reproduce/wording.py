"""Our numbers and the published ones as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.reproduce.plan import Plan
from experiments.reproduce.results import Value, best, columns
from fedmoe.report.tables import Cell

SPREAD = "± is the sample standard deviation over seeds (n − 1)"


def ours(value: Value, *, bold: str = "{}") -> str:
    """Our number as text, or the word in its place."""
    if value.mean is None:
        return value.mark
    text = bold.format(f"{value.mean:.2f}" + (f" ± {value.std:.2f}" if value.std is not None else ""))
    return text if len(value.seeds) == value.planned else f"{text} ({len(value.seeds)} of {value.planned} seeds)"


def with_difference(value: Value) -> str:
    """Our number, and ours minus the published one in brackets, where both are there."""
    return ours(value) if value.difference is None else f"{ours(value)} ({_signed(value.difference)})"


def theirs(value: Value, *, difference: bool = True) -> str:
    """The published number, and ours minus it in brackets; "" where there is none."""
    if value.published is None:
        return ""
    text = f"{value.published.mean:.2f} ± {value.published.std:.2f}"
    return text if value.difference is None or not difference else f"{text} ({_signed(value.difference)})"


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


@dataclass(frozen=True)
class Line:
    """A line of a table: a row's published numbers, or ours; or, without cells' text, the heading of a group."""

    label: str  # "" where the line above has it
    what: str  # published, or the regime
    cells: tuple[Cell, ...]
    heading: bool = False


def layout(plan: Plan, found: Sequence[Value]) -> tuple[list[str], list[Line]]:
    """The heads of the columns behind the first two, and the lines of a table: of one row of several tables, a line for
    each of their columns."""
    if plan.manifest.kind != "cells":
        return [column.label for column in columns(plan.manifest)], table_lines(plan, found)
    names = [f"{regime} regime" for regime in plan.regimes] if len(plan.regimes) > 1 else ["ours"]
    lines: list[Line] = []
    table = data = None
    for column in columns(plan.manifest):
        assert column.of is not None
        if column.of.table != table:
            lines.append(Line(column.of.table or "", "", (Cell(""),) * (1 + len(names)), heading=True))
        own = [value for value in found if value.column == column]
        cells = [theirs(own[0], difference=False), *map(with_difference, own)]
        label = column.of.label if column.data != data else ""
        lines.append(Line(label, column.label if column.of.domains else "", tuple(map(Cell, cells))))
        table, data = column.of.table, column.data
    return ["published", *names], lines


def table_lines(plan: Plan, found: Sequence[Value]) -> list[Line]:
    """Of each row the published numbers, where there are any, and ours of each regime, with the difference."""
    winners, several = best(found), len(plan.regimes) > 1
    lines: list[Line] = []
    group = None
    for row in plan.manifest.all_rows:
        if row.group is not None and row.group != group:
            lines.append(Line(row.group, "", (Cell(""),) * len(columns(plan.manifest)), heading=True))
        group = row.group
        own = [value for value in found if value.row.key == row.key]
        first = [value for value in own if value.regime == plan.regimes[0]]
        of_row = []
        if any(value.published for value in own):
            of_row.append(("published", tuple(Cell(theirs(value, difference=False)) for value in first)))
        for regime in plan.regimes:
            cells = [
                Cell(with_difference(value), (regime, row.key, value.column.key) in winners)
                for value in own
                if value.regime == regime
            ]
            alone = "ours" if of_row else ""  # nothing to tell it from
            of_row.append((f"{regime} regime" if several else alone, tuple(cells)))
        lines += [Line(row.label if i == 0 else "", what, cells) for i, (what, cells) in enumerate(of_row)]
    return lines
