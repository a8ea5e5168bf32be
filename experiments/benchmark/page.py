"""A leaderboard's page in Markdown: the table, the budget, the command, and published numbers that ours stand beside.

Published numbers are facts from papers and releases, in ``experiments/protocols/<name>/published.yaml``: tables with
columns, sources by a short key, and rows of a method, its source's key and its numbers (null: not given).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmark import controls
from experiments.benchmark.leaderboard import Entry
from experiments.benchmark.protocols import PROTOCOLS
from experiments.reproduce.fields import Fields, read_fields
from experiments.reproduce.plan import Plan
from fedmoe.errors import UserError
from fedmoe.report.outside import markdown
from fedmoe.report.tables import NONE, Table

_BUDGET = (
    "federation.clients", "federation.participation", "federation.rounds", "federation.local_epochs",
    "federation.batch_size", "data.init_args.shots",
)  # fmt: skip
_SETTING = ("clip.architecture", "clip.pretrained", "optim.optimizer", "optim.prompt_lr", "optim.gating_lr")


def to_markdown(
    plan: Plan, shown: Table, entries: Sequence[Entry], machine: str, command: str, picture_name: str
) -> str:
    """The leaderboard's page."""
    lines = [f"# {markdown(plan.title)}", "", *_table(shown.columns, [[c.text for c in row] for row in shown.rows])]
    lines += ["", *(f"- {markdown(note)}" for note in shown.notes)]
    for label, reason in plan.pending().items():
        lines.append(f"- {markdown(label)} is missing: {markdown(reason)}.")
    seeds = len(plan.seeds)
    lines += [
        "",
        f"Budget: {_values(plan, _BUDGET)}; {seeds} seed{'s' * (seeds > 1)}. Settings of all methods: "
        f"{_values(plan, _SETTING)}.",
        *(markdown(note) for note in plan.manifest.notes),
        f"Machine: {markdown(machine)}.",
        "",
        "```sh",
        command,
        "```",
        "",
        f"![accuracy against bytes and seconds]({picture_name})",
        *against_controls(entries),
        *published(plan.manifest.name),
        "",
    ]
    return "\n".join(lines)


def against_controls(entries: Sequence[Entry]) -> list[str]:
    """The section on what methods gain over their controls; no lines where there are none."""
    rows = controls.rows(entries)
    if not rows:
        return []
    return [
        *("", "## Against its controls", "", *_table(controls.COLUMNS, rows), ""),
        "The first score, in points, mean over clients (of each data set and place on the axis) and seeds. The "
        "interval is a bootstrap over clients, p Wilcoxon's signed-rank test, corrected by Holm for the method's "
        "controls; both speak of the clients of these runs. The part that a control lacks is what helps where the "
        "method is ahead of the control without it, and ahead of the one with noise in its place.",
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(markdown(column) for column in columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(markdown(cell) for cell in row)} |" for row in rows]


def _values(plan: Plan, keys: Sequence[str]) -> str:
    """The settings that all runs have in common, or their values where those differ: over data sets or the axis."""
    words = []
    for key in keys:
        found = list(dict.fromkeys(run.settings.get(key) for run in plan.runs))
        if found != [None]:
            words.append(f"{key.rpartition('.')[2]} {' or '.join('all' if v is None else f'{v}' for v in found)}")
    return ", ".join(words)


def published(name: str) -> list[str]:
    """The section with published numbers of a protocol; no lines where it has none.

    Raises:
        UserError: the file is not valid.
    """
    path = PROTOCOLS / name / "published.yaml"
    if not path.is_file():
        return []
    top = read_fields(path)
    about = top.text("about")
    lines = ["", "## Published numbers", "", markdown(about)]
    for key in top.mapping("tables"):
        lines += ["", *_published_table(top.within("tables", key))]
    top.done()
    return lines


def _published_table(fields: Fields) -> list[str]:
    title, columns, sources = fields.text("title"), fields.texts("columns"), fields.mapping("sources")
    rows: Any = fields.raw("rows")
    fields.done()
    for row in rows:
        if len(row) != len(columns) + 2 or row[1] not in sources:
            raise UserError(
                f"{fields.where}rows has {list(row)}; valid is a method, one of the sources {', '.join(sources)}, and "
                f"{len(columns)} numbers or null."
            )
    order = list(dict.fromkeys(str(row[0]) for row in rows))  # numbers for one method stand together
    sorted_rows = sorted(rows, key=lambda row: order.index(str(row[0])))
    cells = [[str(row[0]), str(row[1]), *map(_number, row[2:])] for row in sorted_rows]
    lines = [f"### {markdown(title)}", "", *_table(["method", "source", *columns], cells), ""]
    return lines + [f"- {markdown(str(key))}: {markdown(str(text))}" for key, text in _used(sources, rows).items()]


def _used(sources: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {key: text for key, text in sources.items() if any(row[1] == key for row in rows)}


def _number(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) else f"{value:.2f}"
