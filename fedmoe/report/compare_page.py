"""A page about groups of runs: tables, tests and curves, in one file like a run's page (html.py)."""

from __future__ import annotations

from collections.abc import Sequence

from fedmoe.report.compare_figure import curves, differences
from fedmoe.report.compare_tables import PairResult
from fedmoe.report.elements import Html, el
from fedmoe.report.groups import Group
from fedmoe.report.outside import one_line
from fedmoe.report.page import charted, html_table, notes_list, whole_page
from fedmoe.report.tables import Cell, Table


def render(groups: Sequence[Group], pairs: Sequence[PairResult], shown: Sequence[Table]) -> Html:
    """The whole page.

    Args:
        shown: the tables that are printed, the groups' first.
    """
    runs = sum(len(group.runs) for group in groups)
    words = [f"{len(groups)} group{'s' * (len(groups) > 1)}", f"{runs} run{'s' * (runs > 1)}"]
    head = [el("h1", shown[0].title), el("p", f"{', '.join(words)}.", class_="soft")]
    result, *tests = shown
    sections = [
        head,
        [el("h2", "Result"), html_table(result.columns, result.rows), notes_list(result.notes)],
        [el("h2", "Accuracy over rounds"), *charted(curves(groups), "curves")],
        *([_differences(pairs)] if any(pair.result for pair in pairs) else []),
        *([el("h2", table.title), html_table(table.columns, table.rows), notes_list(table.notes)] for table in tests),
        _seeds(groups),
        _settings(groups),
    ]
    return whole_page(shown[0].title, sections)


def _differences(pairs: Sequence[PairResult]) -> list[Html]:
    return [el("h2", "Differences"), *charted(differences(pairs), "differences")]


def _seeds(groups: Sequence[Group]) -> list[Html]:
    """Every run by itself, with its folder."""
    rows = [
        tuple(
            map(
                Cell, (group.label, str(seed), f"{group.last[seed]:.2f}", f"{group.client_stds[seed]:.2f}", str(r.path))
            )
        )
        for group in groups
        for seed, r in group.runs.items()
    ]
    columns = ("group", "seed", "last round: mean\nover clients", "std over\nclients", "folder")
    return [el("h2", "Runs"), el("details", el("summary", "Every seed"), html_table(columns, rows))]


def _settings(groups: Sequence[Group]) -> list[Html]:
    """The settings in which the groups differ, and those of each group."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    parts = [el("h2", "Settings")]
    apart = [key for key in keys if len({_said(group, key) for group in groups}) > 1]
    if apart:
        rows = [tuple(map(Cell, (key, *(_said(group, key) for group in groups)))) for key in apart]
        parts.append(html_table(("where they differ", *(group.label for group in groups)), rows))
    same = "\n".join(f"{key}: {_said(groups[0], key)}" for key in keys if key not in apart)
    return [*parts, el("details", el("summary", "The same in all groups"), el("pre", same))]


def _said(group: Group, key: str) -> str:
    return one_line(str(group.settings[key])) if key in group.settings else "–"
