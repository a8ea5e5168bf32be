"""Accuracy against bytes and against seconds of training, methods as curves; where an axis is swept, along it too."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.benchmark.leaderboard import Entry, Line
from experiments.benchmark.scores import SCORES
from experiments.reproduce.plan import Plan
from fedmoe.report import plot_style

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#000000", "#999933")
_LINES = (("-", "o"), ("--", "s"), (":", "^"))  # with as many colours each: 27 methods can be told apart


@plot_style.styled
def picture(plan: Plan, lines: Sequence[Line]) -> Figure:
    """A curve for each method, in the order of the ranking: mean over seeds, data sets and the axis. A point is an
    evaluated round."""
    axis, name = plan.manifest.axis, plan.manifest.scores[0]
    figure = Figure(figsize=(15 if axis else 12, 6.4), layout="constrained")
    panels = figure.subplots(1, 3 if axis else 2)
    looks = [
        {"color": colour, "linestyle": line, "marker": marker} for (line, marker), colour in product(_LINES, _COLOURS)
    ]
    for number, line in enumerate(lines):
        look: dict[str, Any] = {**looks[number % len(looks)], "markersize": 4, "linewidth": 1.3}
        course = _course(line.entry)
        for panel, cost in zip(panels, (0, 1), strict=False):
            panel.plot(
                [p[cost] for p in course], [p[2] for p in course], **look, label=f"{number + 1} {line.entry.label}"
            )
        if axis:
            points = _along(line.entry, name, [x for x, _ in axis.values])
            panels[2].plot(list(points), list(points.values()), **look)
    # Zero, of methods that send nothing and of the start, is at the left edge of a logarithmic axis.
    for panel, cost in zip(panels, (0, 1), strict=False):
        _logarithmic(panel, [p[cost] for line in lines for p in _course(line.entry)])
    panels[0].set(xlabel="MB sent so far, down and up, all clients", ylabel="accuracy, own test images, %")
    panels[1].set(xlabel="seconds of training so far")
    if axis:
        values = [x for x, _ in axis.values]
        panels[2].set(xlabel=axis.label, ylabel=f"{SCORES[name].label}, %", xscale="log")
        panels[2].set_xticks(values, labels=[f"{x:g}" for x in values])
        panels[2].minorticks_off()
    for panel in panels:
        panel.grid(axis="y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", handlelength=3.2, fontsize=8.5)
    figure.suptitle(plot_style.short(plan.title, 130), x=0.01, ha="left", fontsize=11)
    return figure


def _logarithmic(panel: Axes, costs: Sequence[float]) -> None:
    positive = [cost for cost in costs if cost > 0]
    if positive:
        low, high = min(positive), 1.2 * max(positive)
        steps = (1, 2, 5) if high < 200 * low else (1,)
        ticks = [n * 10.0**power for power in range(-6, 7) for n in steps if low <= n * 10.0**power <= high]
        panel.set_xscale("symlog", linthresh=low, linscale=0.3)
        panel.set_xlim(left=0)
        panel.set_xticks([0.0, *ticks], labels=[f"{tick:g}" for tick in (0.0, *ticks)])
        panel.minorticks_off()


def _course(entry: Entry) -> list[tuple[float, float, float]]:
    """(MB so far, seconds so far, accuracy) of each evaluated round that all runs have, mean over them."""
    points: dict[int, list[tuple[float, float, float]]] = {}
    for result in entry.results:
        for number, sent, passed, accuracy in result.course:
            if accuracy is not None:
                points.setdefault(number, []).append((sent, passed, accuracy))
    whole = [found for found in points.values() if len(found) == len(entry.results)]
    return [(_mean(found, 0), _mean(found, 1), _mean(found, 2)) for found in whole]


def _mean(points: Sequence[tuple[float, float, float]], place: int) -> float:
    return statistics.fmean(point[place] for point in points)


def _along(entry: Entry, score: str, values: Sequence[float]) -> Mapping[float, float]:
    """Place on the axis -> the score, mean over data sets and seeds."""
    found: dict[float, float] = {}
    for x in values:
        known = [r.scores[score] for (_, place), results in entry.cells.items() if place == x for r in results]
        scores = [value for value in known if value is not None]
        if scores:
            found[x] = statistics.fmean(scores)
    return found
