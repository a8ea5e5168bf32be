"""A plan's results as Markdown, CSV, LaTeX and a table for the terminal, and the call for the picture.

Of one regime, the published number stands under ours. Of several, each row has a line for the published numbers and one
for each regime.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.reproduce import pictures
from experiments.reproduce.plan import Plan
from experiments.reproduce.regimes import PAPER
from experiments.reproduce.results import (
    Attention,
    Column,
    Value,
    attention,
    best,
    columns,
    differences,
    mean_std,
    read_summary,
    seconds,
    settings_of,
    values,
    versions,
)
from experiments.reproduce.wording import SPREAD, layout, ours, theirs
from fedmoe.io import write_text_atomic
from fedmoe.report.outside import csv_cell, latex, markdown
from fedmoe.report.tables import Cell, Table

BY_IMAGE = "sorted for each image"


def write_report(plan: Plan) -> Path:
    """Write <out>/<name>.md, .csv, .tex and .png from the finished runs; the path of the Markdown file.

    The name ends with the regimes where they are not the paper's alone.
    """
    read_summary.cache_clear()
    out, title = plan.options.out, plan.title
    name = "-".join([plan.manifest.name, *(plan.regimes if plan.regimes != [PAPER.name] else [])])
    if plan.manifest.kind == "attention":
        found = attention(plan)
        body, table, tex = attention_markdown(found), attention_csv(found), attention_latex(found)
        picture = pictures.attention_picture(title, found)
    else:
        numbers = values(plan)
        curves = plan.manifest.kind == "curves"
        body = curves_markdown(plan, numbers) if curves else table_markdown(plan, numbers)
        tex = curves_latex(plan, numbers) if curves else table_latex(plan, numbers)
        table = values_csv(numbers)
        draw = pictures.curves_picture if curves else pictures.table_picture
        picture = draw(plan, numbers)
    write_text_atomic(out / f"{name}.csv", table)
    write_text_atomic(out / f"{name}.tex", tex)
    pictures.save(picture, out / f"{name}.png")
    write_text_atomic(out / f"{name}.md", f"# {title}\n\n{body}\n{footnotes(plan)}")
    return out / f"{name}.md"


def terminal_table(plan: Plan) -> Table:
    """The report's numbers, to be printed."""
    notes = tuple(line.replace("**", "") for line in _first_notes(plan))
    if plan.manifest.kind == "attention":
        head, *ranked = [["data", "method", "expert", "mean attention", "±", BY_IMAGE, "±"], *_ranked(attention(plan))]
        cells = [tuple(map(Cell, line)) for line in ranked]
        return Table(plan.title, tuple(head), tuple(cells), notes)
    found = values(plan)
    if plan.manifest.kind == "curves":
        assert plan.manifest.axis is not None
        head = [plan.manifest.axis.label, *(f"{x:g}" for x, _ in plan.manifest.axis.values)]
        rows = [
            (f"{column.label}, {label}", *(ours(v) for v in own))
            for column in columns(plan.manifest)
            for label, own in _curves(plan, found, column)
        ]
        return Table(plan.title, tuple(head), tuple(tuple(map(Cell, row)) for row in rows), notes)
    head, content = layout(plan, found)
    width = max(len(line.label) for line in content)  # one column of names, which a narrow terminal repeats
    lines = [(Cell(f"{one.label:{width}}  {one.what}".rstrip(), one.heading), *one.cells) for one in content]
    return Table(plan.title, ("", *head), tuple(lines), notes)


def table_markdown(plan: Plan, found: Sequence[Value]) -> str:
    """A row for each method; under our number the published one. Of several regimes, a line for each number."""
    if len(plan.regimes) > 1 or plan.manifest.kind == "cells":
        return _lines_markdown(plan, found)
    top, winners = columns(plan.manifest), best(found)
    lines = ["| | " + " | ".join(markdown(column.label) for column in top) + " |", "|---|" + "---|" * len(top)]
    group = None
    for row in plan.manifest.all_rows:
        if row.group is not None and row.group != group:
            lines.append(f"| *{markdown(row.group)}* |" + " |" * len(top))
        group = row.group
        cells = []
        for value in (value for value in found if value.row.key == row.key):
            mark = "**{}**" if (value.regime, row.key, value.column.key) in winners else "{}"
            under = theirs(value)
            cells.append(ours(value, bold=mark) + (f"<br>*{under}*" if under else ""))
        lines.append(f"| {markdown(row.label)} | " + " | ".join(cells) + " |")
    legend = "Accuracy in percent: ours, mean over seeds; best of ours in bold."
    if any(value.published for value in found):
        legend += " In italics: the paper's, and in brackets ours minus the paper's, in points."
    return "\n".join([*lines, "", legend, ""])


def _lines_markdown(plan: Plan, found: Sequence[Value]) -> str:
    head, content = layout(plan, found)
    lines = ["| | | " + " | ".join(map(markdown, head)) + " |", "|---|---|" + "---|" * len(head)]
    for line in content:
        label = f"*{markdown(line.label)}*" if line.heading else markdown(line.label)
        cells = [f"**{markdown(cell.text)}**" if cell.bold else markdown(cell.text) for cell in line.cells]
        lines.append("| " + " | ".join([label, markdown(line.what), *cells]) + " |")
    legend = "Accuracy in percent, mean over seeds"
    legend += "." if plan.manifest.kind == "cells" else "; the best of each regime in bold."
    if any(value.published for value in found):
        legend += " In brackets: ours minus the published one, in points."
    return "\n".join([*lines, "", legend, ""])


def curves_markdown(plan: Plan, found: Sequence[Value]) -> str:
    """A table for each data set, over the axis."""
    assert plan.manifest.axis is not None
    parts = []
    for column in columns(plan.manifest):
        shown = [f"{x:g}" for x, _ in plan.manifest.axis.values]
        lines = [f"{markdown(column.label)}, by {markdown(plan.manifest.axis.label)}:", ""]
        lines += ["| | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
        heading = False
        for _, own in _curves(plan, found, column):
            if own[0].row.control and not heading:
                lines.append("| *controls* |" + " |" * len(shown))
                heading = True
            label = plan.labelled(own[0].row.label, own[0].regime)
            lines.append(f"| {markdown(label)} | " + " | ".join(ours(value) for value in own) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "Accuracy in percent, mean over seeds.", ""])


def _curves(plan: Plan, found: Sequence[Value], column: Column) -> list[tuple[str, list[Value]]]:
    """The curves of a panel: label, and values over the axis."""
    return [
        (
            plan.labelled(row.marked, regime),
            [v for v in found if (v.row.key, v.regime, v.column.key) == (row.key, regime, column.key)],
        )
        for row in plan.manifest.all_rows
        for regime in plan.regimes
    ]


def values_csv(found: Sequence[Value]) -> str:
    """One line for each number."""
    head = ["row", "label", "column", "x", "state", "mean", "std", "seeds", "planned", "values"]
    lines: list[list[object]] = [[*head, "published_mean", "published_std", "difference", "regime", "control"]]
    for v in found:
        each = " ".join(f"{seed}:{value:.6f}" for seed, value in sorted(v.seeds.items()))
        state = v.state if v.state != "run" else "done" if len(v.seeds) == v.planned else "missing"
        numbers = [v.mean, v.std, len(v.seeds), v.planned, each]
        paper = [v.published.mean, v.published.std] if v.published else [None, None]
        column = f"{v.column.data} {v.column.key}" if v.column.of and v.column.of.domains else v.column.key
        lines.append(
            [v.row.key, v.row.label, column, v.x, state, *numbers, *paper, v.difference, v.regime, v.row.control]
        )
    return _csv(lines)


def table_latex(plan: Plan, found: Sequence[Value]) -> str:
    """A booktabs table; under each method's line the published one. Of several regimes, a line for each number."""
    if len(plan.regimes) > 1 or plan.manifest.kind == "cells":
        return _lines_latex(plan, found)
    top, winners = columns(plan.manifest), best(found)
    lines = ["\\begin{tabular}{l" + "c" * len(top) + "}", "\\toprule"]
    lines += [" & ".join(["", *(latex(column.label) for column in top)]) + " \\\\", "\\midrule"]
    group = None
    for row in plan.manifest.all_rows:
        if row.group is not None and row.group != group:
            lines.append(f"\\multicolumn{{{1 + len(top)}}}{{l}}{{\\emph{{{latex(row.group)}}}}} \\\\")
        group = row.group
        own = [value for value in found if value.row.key == row.key]
        numbers = [
            f"\\textbf{{{latex(ours(v))}}}" if (v.regime, row.key, v.column.key) in winners else latex(ours(v))
            for v in own
        ]
        lines.append(" & ".join([latex(row.label), *numbers]) + " \\\\")
        if any(value.published for value in own):
            lines.append(" & ".join(["\\quad paper", *(latex(theirs(value)) for value in own)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _lines_latex(plan: Plan, found: Sequence[Value]) -> str:
    head, content = layout(plan, found)
    lines = ["\\begin{tabular}{ll" + "c" * len(head) + "}", "\\toprule"]
    lines += [" & ".join(["", "", *map(latex, head)]) + " \\\\", "\\midrule"]
    for line in content:
        if line.heading:
            lines.append(f"\\multicolumn{{{2 + len(head)}}}{{l}}{{\\emph{{{latex(line.label)}}}}} \\\\")
            continue
        cells = [f"\\textbf{{{latex(cell.text)}}}" if cell.bold else latex(cell.text) for cell in line.cells]
        lines.append(" & ".join([latex(line.label), latex(line.what), *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def curves_latex(plan: Plan, found: Sequence[Value]) -> str:
    """The numbers of the curves as one booktabs table."""
    assert plan.manifest.axis is not None
    shown = [f"{x:g}" for x, _ in plan.manifest.axis.values]
    lines = ["\\begin{tabular}{ll" + "c" * len(shown) + "}", "\\toprule"]
    lines += [" & ".join(["", latex(plan.manifest.axis.label), *shown]) + " \\\\", "\\midrule"]
    for column in columns(plan.manifest):
        for label, own in _curves(plan, found, column):
            lines.append(" & ".join([latex(column.label), latex(label), *(latex(ours(v)) for v in own)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _ranked(found: Sequence[Attention]) -> list[list[str]]:
    """Lines (data, method, expert, mean, std, mean by image, std) of attention."""
    lines = []
    for one in found:
        by_image = [one.local, *one.ranked]
        for rank, numbers in enumerate([one.local, *one.experts]):
            cells = _four_digits(numbers) + (_four_digits(by_image[rank]) if rank < len(by_image) else ["", ""])
            lines.append([one.data.label, one.label, "local" if rank == 0 else str(rank), *cells])
    return lines


def _four_digits(numbers: Sequence[float]) -> list[str]:
    mean, std = mean_std(numbers)
    return [f"{mean:.4f}", "" if std is None else f"{std:.4f}"]


def attention_markdown(found: Sequence[Attention]) -> str:
    """One line for each expert: the local one, then the others from the largest mean down."""
    head = [f"| data | method | expert | mean attention | ± | {BY_IMAGE} | ± |", "|---|---|---|---|---|---|---|"]
    lines = [f"| {' | '.join(map(markdown, line))} |" for line in _ranked(found)]
    legend = "Over all test images and clients in the last round; the non-local experts are sorted for each client."
    return "\n".join([*head, *(lines or ["| | | missing | | | | |"]), "", legend, ""])


def attention_csv(found: Sequence[Attention]) -> str:
    return _csv([["data", "method", "expert", "mean", "std", "mean_by_image", "std_by_image"], *_ranked(found)])


def attention_latex(found: Sequence[Attention]) -> str:
    lines = ["\\begin{tabular}{lllcccc}", "\\toprule"]
    lines += [f"data & method & expert & mean & std & {BY_IMAGE} & std \\\\", "\\midrule"]
    lines += [" & ".join(latex(cell) for cell in line) + " \\\\" for line in _ranked(found)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _first_notes(plan: Plan) -> list[str]:
    """What must be known of the numbers before they are read."""
    done = sum(read_summary(run) is not None for run in plan.runs)
    lines = [f"**{done} of {len(plan.runs)} runs.** Seeds {', '.join(map(str, plan.seeds))}; {SPREAD}; a seed's value"]
    lines[0] += " is the mean over clients in the last round."
    if plan.options.words():
        lines.append(f"**Scaled down: {plan.options.words()}.** Not the paper's setting.")
    if plan.manifest.preset:
        lines.append(f"Preset `{plan.manifest.preset}`: not the paper's data or CLIP.")
    lines += [f"Pending: {label} ({reason})." for label, reason in plan.pending().items()]
    return [*lines, *plan.notes, *plan.manifest.notes]


def footnotes(plan: Plan) -> str:
    """What is pending, settings, seeds, versions, machine."""
    shared, by_data, by_row = settings_of(plan)
    lines = _first_notes(plan)
    left_out = {(c.row.label, c.x, c.reason) for c in plan.cells if c.state == "left out"}
    lines += [f"Left out: {label}{'' if x is None else f' at {x:g}'} ({why})." for label, x, why in sorted(left_out)]
    groups: dict[str, list[str]] = {}
    for key, value in shared.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, []).append(f"{name.removeprefix('init_args.').replace('class_path', 'rule')} {value}")
    lines += [f"{group}: {', '.join(text)}." for group, text in groups.items()]
    lines += [f"{label}: {text}." for label, text in [*by_data.items(), *by_row.items()]]
    for regime in plan.regimes[1:]:
        changes = [
            f"{key.replace('init_args.', '')} {' and '.join(f'{there} → {here}' for there, here in pairs)}"
            for key, pairs in differences(plan, regime).items()
        ]
        lines.append(f"The {regime} regime, where it differs from the above: {'; '.join(changes) or 'nowhere'}.")
    lines += [f"Versions: {line}." for line in versions(plan)]
    machine = plan.options.out / "machine.json"
    if machine.is_file() and any(read_summary(run) is not None for run in plan.runs):
        lines.append(f"Machine: {json.loads(machine.read_text(encoding='utf-8'))['machine']}.")
        lines.append(f"Seconds of all runs' rounds together: {seconds(plan):.0f}.")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _csv(lines: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([csv_cell(cell) for cell in line] for line in lines)
    return file.getvalue()
