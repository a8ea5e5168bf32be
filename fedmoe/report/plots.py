"""Plots of runs: one function per plot, each returning a matplotlib Figure; ``save`` writes it as a PNG.

The plots over rounds are in ``curves``.

Shape letters: C classes, N clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmoe.report.curves import accuracy_over_rounds, compare_over_rounds
from fedmoe.report.plot_style import (
    COUNTS,
    GREY,
    INK,
    ROUND_STEPS,
    clients_in_words,
    colours,
    dark,
    frame,
    limits,
    row_name,
    save,
    short,
    styled,
)
from fedmoe.report.run import LabelCounts, Run

__all__ = [
    "accuracy_over_rounds",
    "client_accuracies",
    "compare_over_rounds",
    "expert_attention",
    "label_distribution",
    "last_accuracies",
    "save",
]


@styled
def label_distribution(labels: LabelCounts) -> Figure:
    """Training examples of each class (rows) on each client (columns; white: none), with each client's sum on top."""
    counts = labels.train.T  # [C, N]
    num_classes, num_clients = counts.shape
    subtitle = f"{counts.sum():,} training examples, {clients_in_words(num_clients)}, {num_classes} classes"
    height = 0.1 + min(4.6, max(1.6, 0.21 * num_classes))
    figure = frame(1.8 + height, "Label distribution over clients", subtitle)
    grid = figure.add_gridspec(2, 1, height_ratios=[0.7, height])
    axes = figure.add_subplot(grid[1])
    top = figure.add_subplot(grid[0], sharex=axes)
    norm = PowerNorm(0.5, vmin=0, vmax=max(1, counts.max()))
    image = axes.imshow(np.ma.masked_equal(counts, 0), cmap=COUNTS, norm=norm, aspect="auto", interpolation="nearest")
    if num_classes <= 24:
        axes.set_yticks(range(num_classes), [short(name, 20) for name in labels.class_names])
    else:
        axes.set(ylabel="class")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    few = max(num_classes, num_clients) <= 40
    for edges, size in ((axes.axhline, num_classes), (axes.axvline, num_clients)):
        for edge in range(size - 1) if few else ():
            edges(edge + 0.5, color="white", linewidth=1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="client", xticks=range(0, num_clients, tick_step(num_clients)))
    width = 0.8 if num_clients <= 40 else 1.0
    top.bar(range(num_clients), counts.sum(axis=0), width=width, color="#8C9AA5", linewidth=0)
    top.set_ylabel("sum")
    top.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
    top.tick_params(axis="x", length=0, labelbottom=False)
    top.spines["bottom"].set_visible(False)
    above: Any = {"transform": top.get_xaxis_transform(), "ha": "center", "fontsize": 9, "color": GREY}
    for start, stop, name in domain_groups(labels.domains):
        top.text((start + stop - 1) / 2, 1.06, short(name, 14), **above)
        if start:
            for panel in (axes, top):
                panel.axvline(start - 0.5, color=GREY, linewidth=1)
    bar = figure.colorbar(image, ax=[axes, top], fraction=0.04, pad=0.01, aspect=30)
    bar.set_label("examples (square-root scale)")
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(integer=True, nbins=6)
    return figure


@styled
def expert_attention(run: Run) -> Figure:
    """Mean attention on the local expert (highlighted) and on each non-local one, descending (paper, figure 6).

    Raises:
        ValueError: if no round of the run has attention weights.
    """
    found = [r for r in run.rounds if r.attention]
    if not found or found[-1].attention is None:
        raise ValueError(f"{run.path} has no attention weights")
    attention = found[-1].attention
    experts = sorted(attention["experts"], reverse=True)
    subtitle = f"Mean over the clients' test images, round {found[-1].round}; non-local experts sorted"
    figure = frame(3.4, f"{run.label}: attention per expert", subtitle)
    axes = figure.add_subplot()
    local, other = colours({run.label: run})[run.label], "#9BB7C9"
    heights, gap = [attention["local"], *experts], 0.4 + 0.05 * len(experts)
    places = np.array([0.0, *(gap + np.arange(1, len(heights)))])
    bars = axes.bar(places, heights, width=0.72, color=[local] + [other] * len(experts))
    equal = 1 / len(heights)
    axes.axhline(equal, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
    beside: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(f"equal\nshares\n{equal:.3f}", (1, equal), (5, 0), va="center", fontsize=9, **beside)
    if len(heights) <= 14:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8.5, color=INK, bbox=box)
    ticks = range(1, len(heights), max(1, len(experts) // 10))
    axes.set_xticks([0, *(gap + np.array(ticks))], ["local", *map(str, ticks)])
    axes.get_xticklabels()[0].set(color=dark(local), weight="bold")
    axes.set(xlabel="expert", ylabel="mean attention", xlim=(-0.7, places[-1] + 0.7), ylim=(0, 1.12 * max(heights)))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    return figure


@styled
def client_accuracies(runs: Mapping[str, Run]) -> Figure:
    """Every client's accuracy in each run's last round.

    A dot for each client, a box of the quartiles, a line and a number for the mean. Runs whose last round is not
    complete in clients.jsonl are left out.
    """
    shown = {label: values for label, run in runs.items() if (values := last_accuracies(run)) is not None}
    order = sorted(shown, key=lambda label: shown[label].mean())  # the best one on top
    subtitle = "Dot: a client; box: middle half of the clients; line and number: mean over clients"
    figure = frame(1.45 + 0.52 * len(order), "Accuracy of every client in the last round", subtitle)
    axes = figure.add_subplot()
    palette = colours(runs)
    low, high = limits([accuracy for values in shown.values() for accuracy in values])
    dot = 4.0 if max((len(values) for values in shown.values()), default=0) <= 50 else 3.0  # diameter in points
    wide = dot / 72 * (high - low) / 6  # a dot in points of accuracy; the axis is some 6 inches long
    for row, label in enumerate(order):
        values, colour = shown[label], palette[label]
        first, third = np.percentile(values, [25, 75])
        axes.barh(row, third - first, left=first, height=0.66, color=colour, alpha=0.16, linewidth=0)
        places = row + swarm(values, wide)
        axes.scatter(values, places, s=dot**2, color=colour, alpha=0.75, linewidths=0, zorder=4, clip_on=False)
        axes.vlines(values.mean(), row - 0.38, row + 0.38, color=dark(colour), linewidth=2, zorder=3)
        beside: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "color": dark(colour)}
        axes.annotate(f"{values.mean():.1f}", (1, row), (8, 0), va="center", fontsize=9.5, **beside)
    axes.set_yticks(range(len(order)), [row_name(runs[label], label) for label in order])
    for tick, label in zip(axes.get_yticklabels(), order, strict=True):
        tick.set(color=dark(palette[label]), fontsize=9.5)
    axes.set(xlabel="accuracy on each client's own test split, %", xlim=(low, high), ylim=(-0.6, len(order) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=ROUND_STEPS))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure


def last_accuracies(run: Run) -> np.ndarray | None:
    """Every client's accuracy in the last evaluated round, percent; None where clients.jsonl lacks it."""
    values = run.client_accuracies(run.last.round) if run.last else None
    return values if values is not None and values.size else None


def domain_groups(domains: Sequence[str] | None) -> list[tuple[int, int, str]]:
    """(start, stop, name) of consecutive clients of one domain."""
    groups: list[tuple[int, int, str]] = []
    for i, name in enumerate(domains or ()):
        if groups and groups[-1][2] == name:
            groups[-1] = (groups[-1][0], i + 1, name)
        else:
            groups.append((i, i + 1, name))
    return groups


def swarm(values: np.ndarray, wide: float) -> np.ndarray:
    """Vertical offsets, within 0.32 to either side, that keep dots ``wide`` apart from those of nearly equal values."""
    levels = np.zeros(len(values), dtype=int)
    order = np.argsort(values, kind="stable")
    for k, i in enumerate(order):
        near = order[max(0, k - 40) : k]
        taken = set(levels[near[values[i] - values[near] < wide]].tolist())
        levels[i] = next(level for n in range(len(values)) for level in (n, -n) if level not in taken)
    return levels * min(0.13, 0.32 / max(1, int(np.abs(levels).max())))


def tick_step(number: int) -> int:
    """The step from one labelled client to the next: 1, 2 or 5 times a power of ten, for at most 20 labels."""
    return next(
        step for power in range(20) for step in (10**power, 2 * 10**power, 5 * 10**power) if number <= 20 * step
    )
