"""Charts of groups of runs: accuracy over rounds, and the differences between groups with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from fedmoe.report.compare_tables import PairResult
from fedmoe.report.groups import Group
from fedmoe.report.plot_style import AXIS, CELL, INK, ROUND_STEPS, Chart, colours, limits, short, styled

FORMATS = ("png", "pdf", "svg")
Curve = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def curve(group: Group) -> Curve:
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
    at = sorted({int(number) for rounds, _, _ in drawn.values() for number in rounds})
    chart.strips(axes, at, ["\n".join([f"round {number}", *_at(number, drawn)]) for number in at])
    last = "; ".join(f"{label} {mean[-1]:.2f} %" for label, (_, mean, _) in drawn.items() if len(mean))
    chart.description = f"Mean accuracy over clients and seeds by round. In the last one: {last}."
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=ROUND_STEPS))
    axes.grid(axis="y")
    chart.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return chart


def _at(number: int, drawn: Mapping[str, Curve]) -> Iterator[str]:
    """What each group has in a round."""
    for label, (rounds, mean, std) in drawn.items():
        for i in np.flatnonzero(rounds == number):
            yield f"{label} {mean[i]:.2f}" + (" %" if std is None else f" ± {std[i]:.2f} %")


@styled
def differences(pairs: Sequence[PairResult]) -> Chart:
    """The mean difference of each pair of groups and kind of unit (dot), with its interval (bar)."""
    found = [(pair, pair.result) for pair in pairs if pair.result is not None]
    chart = Chart(
        1.5 + 0.3 * len(found), "Differences between groups", "Points of accuracy; dot: mean, bar: 95 % interval"
    )
    axes = chart.add_subplot()
    words = []
    for row, (pair, result) in enumerate(found):
        text = f"{pair.a} − {pair.b}, over {pair.over} (n = {result.n}): {result.difference:+.2f}"
        if result.interval is not None:
            text += f", 95 % interval {result.interval[0]:+.2f} to {result.interval[1]:+.2f}"
            axes.plot(result.interval, [row, row], color=CELL, linewidth=5, alpha=0.5)
        axes.plot(result.difference, row, "o", color=INK, markersize=5)
        words.append(text)
    axes.axvline(0, color=AXIS, linewidth=1, zorder=1)
    names = [f"{short(pair.a, 26)} − {short(pair.b, 26)}, {pair.over}" for pair, _ in found]
    axes.set_yticks(range(len(found)), names)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(found) - 0.5, -0.5), xlabel="difference in points")
    axes.margins(x=0.08)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    chart.strips(axes, range(len(found)), words, rows=True)
    chart.description = f"Mean differences with 95 % intervals: {'; '.join(words)}."
    return chart
