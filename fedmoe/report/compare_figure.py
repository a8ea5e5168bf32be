"""Accuracy over rounds of groups of runs: the mean over seeds, in a band of one standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from fedmoe.report.groups import Group
from fedmoe.report.plot_style import ROUND_STEPS, Chart, colours, limits, short, styled

FORMATS = ("png", "pdf", "svg")


def curve(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rounds that were evaluated with every seed [R], the mean over seeds [R], and the sample's standard deviation over
    seeds [R], None of one seed."""
    found = [{r.round: r.accuracy["mean"] for r in run.evaluated if r.accuracy} for run in group.runs.values()]
    rounds = np.array(sorted(set.intersection(*map(set, found))), dtype=int)
    values = np.array([[accuracies[number] for number in rounds] for accuracies in found])  # [seeds, R]
    return rounds, values.mean(axis=0), values.std(axis=0, ddof=1) if len(found) > 1 else None


@styled
def curves(groups: Sequence[Group]) -> Chart:
    """A line and a band for each group; one without training (only round 0) is a dashed line across."""
    drawn = {group.label: curve(group) for group in groups}
    palette = colours({group.label: next(iter(group.runs.values())) for group in groups})
    end = max(1, *(int(rounds[-1]) for rounds, _, _ in drawn.values() if len(rounds)), 1)
    banded = any(std is not None for _, _, std in drawn.values())
    subtitle = "Mean over clients, then over seeds" + ("; band: one standard deviation over seeds" if banded else "")
    legend_rows = -(-len(groups) // 2)
    chart = Chart(4.1 + 0.22 * legend_rows, "Accuracy over rounds", subtitle)
    axes = chart.add_subplot()
    seen: list[float] = []
    for label, (rounds, mean, std) in drawn.items():
        low, high = (mean, mean) if std is None else (mean - std, mean + std)
        seen += [*low, *high]
        across = len(rounds) == 1
        x = [0, end] if across else rounds
        low, mean, high = (np.repeat(values, 2) if across else values for values in (low, mean, high))
        axes.fill_between(x, low, high, color=palette[label], alpha=0.16, linewidth=0)
        dashes: Any = (0, (4, 2)) if across else "-"
        axes.plot(x, mean, color=palette[label], linestyle=dashes, label=short(label, 48), zorder=3)
    axes.set(xlim=(0, end), ylim=limits(seen), xlabel="communication round", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=ROUND_STEPS))
    axes.grid(axis="y")
    chart.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return chart
