"""A plan's results as Markdown, CSV and LaTeX, and the call for the picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.reproduce import pictures
from experiments.reproduce.plan import Plan
from experiments.reproduce.results import (
    Attention,
    Value,
    attention,
    best,
    columns,
    mean_std,
    read_summary,
    seconds,
    settings_of,
    values,
    versions,
)
from experiments.reproduce.wording import SPREAD, ours, theirs
from fedmoe.io import write_text_atomic
from fedmoe.report.outside import csv_cell, latex, markdown


def write_report(plan: Plan) -> Path:
    """Write <out>/<name>.md, .csv, .tex and .png from the finished runs; the path of the Markdown file."""
    read_summary.cache_clear()
    name, out = plan.manifest.name, plan.options.out
    if plan.manifest.kind == "attention":
        found = attention(plan)
        body, table, tex = attention_markdown(found), attention_csv(found), attention_latex(found)
        picture = pictures.attention_picture(plan.manifest.title, found)
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
    write_text_atomic(out / f"{name}.md", f"# {plan.manifest.title}\n\n{body}\n{footnotes(plan)}")
    return out / f"{name}.md"


def table_markdown(plan: Plan, found: Sequence[Value]) -> str:
    """A row for each method; under our number the published one."""
    top, winners = columns(plan.manifest), best(found)
    lines = ["| | " + " | ".join(markdown(column.label) for column in top) + " |", "|---|" + "---|" * len(top)]
    group = None
    for row in plan.manifest.rows:
        if row.group is not None and row.group != group:
            lines.append(f"| *{markdown(row.group)}* |" + " |" * len(top))
        group = row.group
        cells = []
        for value in (value for value in found if value.row.key == row.key):
            mark = "**{}**" if (row.key, value.column.key) in winners else "{}"
            under = theirs(value)
            cells.append(ours(value, bold=mark) + (f"<br>*{under}*" if under else ""))
        lines.append(f"| {markdown(row.label)} | " + " | ".join(cells) + " |")
    legend = "Accuracy in percent: ours, mean over seeds; best of ours in bold."
    if any(value.published for value in found):
        legend += " In italics: the paper's, and in brackets ours minus the paper's, in points."
    return "\n".join([*lines, "", legend, ""])


def curves_markdown(plan: Plan, found: Sequence[Value]) -> str:
    """A table for each data set, over the axis."""
    assert plan.manifest.axis is not None
    parts = []
    for column in columns(plan.manifest):
        shown = [f"{x:g}" for x, _ in plan.manifest.axis.values]
        lines = [f"{markdown(column.label)}, by {markdown(plan.manifest.axis.label)}:", ""]
        lines += ["| | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
        for row in plan.manifest.rows:
            own = [v for v in found if v.row.key == row.key and v.column.key == column.key]
            lines.append(f"| {markdown(row.label)} | " + " | ".join(ours(value) for value in own) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "Accuracy in percent, mean over seeds.", ""])


def values_csv(found: Sequence[Value]) -> str:
    """One line for each number."""
    head = ["row", "label", "column", "x", "state", "mean", "std", "seeds", "planned", "values"]
    lines: list[list[object]] = [[*head, "published_mean", "published_std", "difference"]]
    for v in found:
        each = " ".join(f"{seed}:{value:.6f}" for seed, value in sorted(v.seeds.items()))
        state = v.state if v.state != "run" else "done" if len(v.seeds) == v.planned else "missing"
        numbers = [v.mean, v.std, len(v.seeds), v.planned, each]
        paper = [v.published.mean, v.published.std] if v.published else [None, None]
        lines.append([v.row.key, v.row.label, v.column.key, v.x, state, *numbers, *paper, v.difference])
    return _csv(lines)


def table_latex(plan: Plan, found: Sequence[Value]) -> str:
    """A booktabs table; under each method's line the published one."""
    top, winners = columns(plan.manifest), best(found)
    lines = ["\\begin{tabular}{l" + "c" * len(top) + "}", "\\toprule"]
    lines += [" & ".join(["", *(latex(column.label) for column in top)]) + " \\\\", "\\midrule"]
    group = None
    for row in plan.manifest.rows:
        if row.group is not None and row.group != group:
            lines.append(f"\\multicolumn{{{1 + len(top)}}}{{l}}{{\\emph{{{latex(row.group)}}}}} \\\\")
        group = row.group
        own = [value for value in found if value.row.key == row.key]
        numbers = [
            f"\\textbf{{{latex(ours(v))}}}" if (row.key, v.column.key) in winners else latex(ours(v)) for v in own
        ]
        lines.append(" & ".join([latex(row.label), *numbers]) + " \\\\")
        if any(value.published for value in own):
            lines.append(" & ".join(["\\quad paper", *(latex(theirs(value)) for value in own)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def curves_latex(plan: Plan, found: Sequence[Value]) -> str:
    """The numbers of the curves as one booktabs table."""
    assert plan.manifest.axis is not None
    shown = [f"{x:g}" for x, _ in plan.manifest.axis.values]
    lines = ["\\begin{tabular}{ll" + "c" * len(shown) + "}", "\\toprule"]
    lines += [" & ".join(["", latex(plan.manifest.axis.label), *shown]) + " \\\\", "\\midrule"]
    for column in columns(plan.manifest):
        for row in plan.manifest.rows:
            own = [v for v in found if v.row.key == row.key and v.column.key == column.key]
            lines.append(" & ".join([latex(column.label), latex(row.label), *(latex(ours(v)) for v in own)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _ranked(found: Sequence[Attention]) -> list[list[str]]:
    """Lines (data, method, expert, mean, std) of attention."""
    lines = []
    for one in found:
        for rank, numbers in enumerate([one.local, *one.experts]):
            expert = "local" if rank == 0 else str(rank)
            mean, std = mean_std(numbers)
            lines.append([one.data.label, one.row.label, expert, f"{mean:.4f}", "" if std is None else f"{std:.4f}"])
    return lines


def attention_markdown(found: Sequence[Attention]) -> str:
    """One line for each expert: the local one, then the others from the largest mean down."""
    head = ["| data | method | expert | mean attention | ± |", "|---|---|---|---|---|"]
    lines = [f"| {' | '.join(map(markdown, line))} |" for line in _ranked(found)]
    legend = "Over all test images and clients in the last round; a client's non-local experts are sorted first."
    return "\n".join([*head, *(lines or ["| | | missing | | |"]), "", legend, ""])


def attention_csv(found: Sequence[Attention]) -> str:
    return _csv([["data", "method", "expert", "mean", "std"], *_ranked(found)])


def attention_latex(found: Sequence[Attention]) -> str:
    lines = ["\\begin{tabular}{lllcc}", "\\toprule", "data & method & expert & mean & std \\\\", "\\midrule"]
    lines += [" & ".join(latex(cell) for cell in line) + " \\\\" for line in _ranked(found)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def footnotes(plan: Plan) -> str:
    """What is pending, settings, seeds, versions, machine."""
    shared, by_data, by_row = settings_of(plan)
    done = sum(read_summary(run) is not None for run in plan.runs)
    lines = [f"**{done} of {len(plan.runs)} runs.** Seeds {', '.join(map(str, plan.seeds))}; {SPREAD}; a seed's value"]
    lines[0] += " is the mean over clients in the last round."
    if plan.options.words():
        lines.append(f"**Scaled down: {plan.options.words()}.** Not the paper's setting.")
    if plan.manifest.preset:
        lines.append(f"Preset `{plan.manifest.preset}`: not the paper's data or CLIP.")
    lines += [f"Pending: {label} ({reason})." for label, reason in plan.pending().items()]
    left_out = {(c.row.label, c.x, c.reason) for c in plan.cells if c.state == "left out"}
    lines += [f"Left out: {label}{'' if x is None else f' at {x:g}'} ({why})." for label, x, why in sorted(left_out)]
    lines += [*plan.notes, *plan.manifest.notes]
    groups: dict[str, list[str]] = {}
    for key, value in shared.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, []).append(f"{name.removeprefix('init_args.').replace('class_path', 'rule')} {value}")
    lines += [f"{group}: {', '.join(text)}." for group, text in groups.items()]
    lines += [f"{label}: {text}." for label, text in [*by_data.items(), *by_row.items()]]
    lines += [f"Versions: {line}." for line in versions(plan)]
    machine = plan.options.out / "machine.json"
    if machine.is_file() and done:
        lines.append(f"Machine: {json.loads(machine.read_text(encoding='utf-8'))['machine']}.")
        lines.append(f"Seconds of all runs' rounds together: {seconds(plan):.0f}.")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _csv(lines: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([csv_cell(cell) for cell in line] for line in lines)
    return file.getvalue()
