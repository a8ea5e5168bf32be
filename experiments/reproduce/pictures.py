"""Pictures of a table, of curves over an axis, and of attention per expert."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reproduce.plan import Plan, State
from experiments.reproduce.results import Attention, Value, best, columns, mean_std
from experiments.reproduce.wording import SPREAD, layout, ours, theirs
from fedmoe.report.plot_style import GREY, INK, METHOD_COLOURS, OTHER_COLOURS, PALE, QUIET, Chart, save, styled

DASHES = (("-", "solid"), ("--", "dashed"), (":", "dotted"), ("-.", "dash-dotted"))  # of the regimes

__all__ = ["attention_picture", "curves_picture", "save", "table_picture"]


@styled
def table_picture(plan: Plan, found: Sequence[Value]) -> Figure:
    """The table: our numbers, the best of each column in bold, and under each the published one; of several regimes, a
    line for each number."""
    if len(plan.regimes) > 1 or plan.manifest.kind == "cells":
        return _lines_picture(plan, found)
    top, winners, rows = columns(plan.manifest), best(found), plan.manifest.all_rows
    compared = any(value.published for value in found)
    groups = [row.group for i, row in enumerate(rows) if row.group and (i == 0 or rows[i - 1].group != row.group)]
    line, step = 0.28, 0.46 if compared else 0.3  # inches
    label_width = 0.5 + 0.085 * max(len(row.label) for row in rows)
    longest = max(len(s) for value in found for s in (ours(value), theirs(value)))
    column_width = max(1.1, 0.25 + 0.071 * longest)
    beside = 2.5 if len(top) == 1 else 0.0  # room for the strip
    width = max(8.0, label_width + column_width * len(top) + beside + 0.2)
    column_width = min((width - label_width - 0.2) / len(top), 2.6)
    height = 1.06 + step * len(rows) + line * len(groups) + (0.3 if len(top) == 1 else 0.1)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(0.12, 0.26, plan.title, fontsize=12.5, weight="bold", va="center")
    axes.text(0.12, 0.52, _subtitle(plan, compared), fontsize=9, color=GREY, va="center")
    places = [label_width + column_width * (i + 0.5) for i in range(len(top))]
    for place, column in zip(places, top, strict=True):
        axes.text(place, 0.86, column.label, ha="center", va="center", fontsize=10, color=INK)
    axes.plot([0.12, width - 0.12], [1.02, 1.02], color=INK, linewidth=1)
    y, group = 1.06, None
    centres: dict[str, float] = {}
    for row in rows:
        if row.group and row.group != group:
            axes.text(0.12, y + line / 2, row.group, fontsize=9.5, style="italic", color=GREY, va="center")
            y += line
        group = row.group
        axes.text(0.12, y + step / 2, row.label, va="center", fontsize=10)
        centres[row.key] = y + step / 2
        for place, value in zip(places, (v for v in found if v.row.key == row.key), strict=True):
            won, under = (value.regime, row.key, value.column.key) in winners, theirs(value)
            middle = y + step / 2 - (0.09 if under else 0)
            style: dict[str, Any] = (
                {"weight": "bold"} if won else {} if value.seeds else {"color": GREY, "style": "italic"}
            )
            axes.text(place, middle, ours(value), ha="center", va="center", fontsize=10, **style)
            if under:
                axes.text(place, middle + 0.18, under, ha="center", va="center", fontsize=8, color=GREY)
        y += step
        axes.plot([0.12, width - 0.12], [y, y], color=PALE, linewidth=0.8)
    if len(top) == 1:
        left = label_width + column_width + 0.3
        box = (left / width, 1 - y / height, (width - left - 0.25) / width, (y - 1.06) / height)
        _strip(figure.add_axes(box, facecolor="none"), found, centres, (y, 1.06))
    return figure


def _lines_picture(plan: Plan, found: Sequence[Value]) -> Figure:
    head, lines = layout(plan, found)
    step = 0.25  # inches
    label_width = 0.3 + 0.085 * max(len(line.label) for line in lines)
    what_width = 0.2 + 0.075 * max(len(line.what) for line in lines)
    longest = max(len(cell.text) for line in lines for cell in line.cells)
    column_width = max(1.1, 0.25 + 0.071 * longest)
    width = max(8.0, 0.24 + 0.112 * len(plan.title), label_width + what_width + column_width * len(head) + 0.2)
    column_width = min((width - label_width - what_width - 0.2) / len(head), 2.6)
    height = 1.16 + step * len(lines)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(0.12, 0.26, plan.title, fontsize=12.5, weight="bold", va="center")
    axes.text(0.12, 0.52, _subtitle(plan, False), fontsize=9, color=GREY, va="center")
    places = [label_width + what_width + column_width * (i + 0.5) for i in range(len(head))]
    for place, name in zip(places, head, strict=True):
        axes.text(place, 0.86, name, ha="center", va="center", fontsize=10, color=INK)
    axes.plot([0.12, width - 0.12], [1.02, 1.02], color=INK, linewidth=1)
    for i, line in enumerate(lines):
        y = 1.06 + step * (i + 0.5)
        if i and (line.label or line.heading):
            axes.plot([0.12, width - 0.12], [y - step / 2] * 2, color=PALE, linewidth=0.8)
        quiet: dict[str, Any] = {"style": "italic", "color": GREY} if line.heading else {}
        axes.text(0.12, y, line.label, va="center", fontsize=10, **quiet)
        axes.text(label_width, y, line.what, va="center", fontsize=9, color=GREY)
        for place, name, cell in zip(places, head, line.cells, strict=True):
            aside = "published" in (line.what, name) or cell.text in ("missing", *get_args(State))
            colour = GREY if aside else INK
            weight = "bold" if cell.bold else "normal"
            axes.text(place, y, cell.text, ha="center", va="center", fontsize=9.5, color=colour, weight=weight)
    return figure


def _strip(axes: Axes, found: Sequence[Value], centres: Mapping[str, float], span: tuple[float, float]) -> None:
    """Beside a single column: each seed's value (dot), their mean (line) and the published mean (diamond)."""
    for value in found:
        y = centres[value.row.key]
        axes.scatter(list(value.seeds.values()), [y] * len(value.seeds), s=22, color=INK, alpha=0.5, linewidths=0)
        if value.mean is not None:
            axes.vlines(value.mean, y - 0.1, y + 0.1, color=METHOD_COLOURS["PFedMoAP"], linewidth=2.5)
        if value.published is not None:
            axes.plot(value.published.mean, y, "D", markersize=5, markerfacecolor="none", color=GREY)
    axes.set_ylim(span)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_ticks_position("bottom")
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="x")
    axes.set_title("each seed (dot) and their mean (line)", fontsize=9, color=GREY, pad=11)


def _subtitle(plan: Plan, compared: bool) -> str:
    parts = ["Accuracy in %, mean over clients", SPREAD]
    if compared:
        parts.append("grey: the paper's (ours − paper's)")
    if plan.manifest.kind == "curves" and len(plan.regimes) > 1:
        lines = [f"{words}: {regime}" for (_, words), regime in zip(DASHES, plan.regimes, strict=False)]
        parts = [parts[0], "± over seeds (n − 1)", f"{', '.join(lines)} regime"]  # no room for more
    scaled = plan.options.words()
    return "; ".join([*parts, *([f"scaled down: {scaled}"] if scaled else [])])


@styled
def curves_picture(plan: Plan, found: Sequence[Value]) -> Figure:
    """A panel for each data set, a line for each method and regime; bars are standard deviations over seeds."""
    assert plan.manifest.axis is not None
    panels, rows = columns(plan.manifest), plan.manifest.all_rows
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    height = 0.9 + 2.9 * down
    crowded = len(rows) > 4
    height += 0.22 * -(-len(rows) // 2) if crowded else 0
    figure = Chart(height, plan.manifest.title, _subtitle(plan, False))
    legend, palette, places = None, _colours(plan), [x for x, _ in plan.manifest.axis.values]
    for number, column in enumerate(panels, start=1):
        axes = figure.add_subplot(down, across, number)
        drawn = False
        for row, regime in product(rows, plan.regimes):
            own = [v for v in found if (v.row.key, v.regime, v.column.key) == (row.key, regime, column.key)]
            points = [(v.x, v.mean, v.std or 0.0) for v in own if v.x is not None and v.mean is not None]
            if points:
                x, y, spread = zip(*points, strict=True)
                colour = palette[row.key]
                dash, first = DASHES[plan.regimes.index(regime) % len(DASHES)][0], regime == plan.regimes[0]
                axes.errorbar(x, y, spread, color=colour, marker="o", markersize=4, capsize=2.5, linestyle=dash,
                              elinewidth=1, label=row.marked if first else "_")  # fmt: skip
                drawn = True
        axes.set_title(column.label, fontsize=10, loc="left")
        axes.set(xlabel=plan.manifest.axis.label, ylabel="accuracy, %" if number % across == 1 or across == 1 else "")
        axes.grid(axis="y")
        if min(places) > 0 and max(places) > 8 * min(places):
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        axes.set_xticks(places, [f"{x:g}" for x in places])
        if not drawn:
            axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center", va="center", color=GREY)
        elif not legend and crowded:
            legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        elif not legend:
            legend = axes.legend(loc="best")
    return figure


def _colours(plan: Plan) -> dict[str, str]:
    """A colour for each row: its method's own, unless another row has it."""
    classes = {c.row.key: str(c.runs[0].settings["method.class_path"]).rpartition(".")[2] for c in plan.cells if c.runs}
    result: dict[str, str] = {}
    for key, name in classes.items():
        free = [colour for colour in OTHER_COLOURS if colour not in result.values()] or [INK]
        own = METHOD_COLOURS.get(name, free[0])
        result[key] = free[0] if own in result.values() else own
    return result


@styled
def attention_picture(title: str, found: Sequence[Attention]) -> Figure:
    """A panel for each data set and method: bars of the local expert and of the others by rank."""
    subtitle = f"Over all clients' test images, last round; {SPREAD}"
    figure = Chart(0.9 + 2.7 * max(1, len(found)), title, subtitle)
    if not found:
        figure.text(0.5, 0.4, "missing", ha="center", color=GREY)
    for number, one in enumerate(found, start=1):
        axes = figure.add_subplot(len(found), 1, number)
        numbers = [mean_std(values) for values in (one.local, *one.experts)]
        names = ["local", *(str(rank) for rank in range(1, len(numbers)))]
        colours = [METHOD_COLOURS["PFedMoAP"], *[QUIET] * len(one.experts)]
        axes.bar(names, [mean for mean, _ in numbers], 0.72, yerr=[std or 0.0 for _, std in numbers], color=colours,
                 capsize=2.5, error_kw={"elinewidth": 1})  # fmt: skip
        if one.ranked:
            means = [mean_std(values)[0] for values in one.ranked]
            axes.plot(names[1 : 1 + len(means)], means, color=INK, marker="o", markersize=3.5, linestyle="none",
                      label="sorted anew for each image")  # fmt: skip
        axes.axhline(1 / len(numbers), color=INK, linewidth=1, linestyle=(0, (4, 3)), label="equal shares")
        axes.set_title(f"{one.label}, {one.data.label}", fontsize=10, loc="left")
        axes.set(
            ylabel="mean attention",
            xlabel="expert (non-local ones sorted for each client)" if number == len(found) else "",
        )
        axes.margins(y=0.12)
        axes.legend(loc="upper right")
        axes.grid(axis="y")
    return figure
