"""Plots of accuracy over rounds: of one run, and of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmoe.report.plot_style import (
    ROUND_STEPS,
    WIDTH,
    clients_in_words,
    colours,
    dark,
    frame,
    limits,
    row_name,
    styled,
    text_width,
)
from fedmoe.report.run import Run
from fedmoe.runs.records import RoundRecord


@styled
def accuracy_over_rounds(run: Run) -> Figure:
    """Mean accuracy over clients by round, with a band from the 10th to the 90th percentile of the clients.

    Where clients.jsonl lacks an evaluated round, the band is one standard deviation over clients to either side.
    """
    subtitle = f"{clients_in_words(run.num_scored)}, each on its own test split"
    figure = frame(3.7, f"{run.label}: accuracy over rounds", subtitle)
    axes = figure.add_subplot()
    colour = colours({run.label: run})[run.label]
    exact = known_rounds(run, run.evaluated)
    rounds = [r.round for r in run.evaluated]
    means = [r.accuracy["mean"] for r in run.evaluated if r.accuracy]
    low, high = np.array([interval_of(run, r, exact) for r in run.evaluated]).T
    band = f"{band_name(exact)} of clients"
    if len(rounds) > 1:
        axes.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0, label=band)
    else:
        axes.vlines(rounds, low, high, color=colour, alpha=0.35, linewidth=5, label=band)
    dots = "o" if len(rounds) <= 12 else None  # where the evaluations are, unless they are many
    axes.plot(
        rounds, means, color=colour, marker=dots, markersize=5, label="mean over clients", clip_on=False, zorder=3
    )
    end: Any = {"va": "center", "color": dark(colour), "weight": "bold"}
    axes.annotate(f"{means[-1]:.1f}", (rounds[-1], means[-1]), (7, 0), textcoords="offset points", **end)
    axes.set(xlabel="communication round", ylabel="accuracy, %", ylim=limits([*low, *high, *means]))
    if len(rounds) > 1:
        axes.set_xlim(0, run.rounds[-1].round)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set(xlim=(rounds[0] - 1, rounds[0] + 1), xticks=rounds)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=ROUND_STEPS))
    axes.grid(axis="y")
    place = (0.99, 1 - 0.3 / figure.get_figheight())  # beside the subtitle, where no curve can run into it
    figure.legend(loc="upper right", bbox_to_anchor=place, ncols=2, borderaxespad=0, reverse=True)
    return figure


@styled
def compare_over_rounds(runs: Mapping[str, Run]) -> Figure:
    """Left: mean accuracy by round for each run. Right: the spread over clients in each run's last round.

    Runs without rounds to speak of (zero-shot: only round 0; CoOp: one long local fit) are horizontal dashed lines.
    """
    shown = {label: run for label, run in runs.items() if run.last}
    order = sorted(shown, key=lambda label: -_last_mean(shown[label]))
    best = next((label for label in order if shown[label].finished), None)
    palette, names = colours(shown), {label: row_name(run, label) for label, run in shown.items()}
    end = max([1, *(run.rounds[-1].round for run in shown.values())])
    curves = {label: curve_points(run, end) for label, run in shown.items()}
    exact = all(known_rounds(run, run.evaluated[-1:]) for run in shown.values())
    spreads = {label: interval_of(run, run.last, exact) for label, run in shown.items() if run.last}
    low, high = limits([y for _, ys in curves.values() for y in ys])
    rows = _rows([_last_mean(shown[label]) for label in order], low, high)

    height = max(4.2, 1.6 + (0.36 if any("\n" in name for name in names.values()) else 0.3) * len(shown))
    subtitle = f"Left: mean over clients. Right: last round, mean (dot) and {band_name(exact)} of clients (bar)"
    figure = frame(height, "Accuracy over rounds, and its spread over clients", subtitle)
    name_width = max((text_width(name, 9.5, label == best) for label, name in names.items()), default=0.0)
    left, middle, right = _three_panels(figure, 0.4 + name_width)
    leader = np.array([0.03, 0.25, 0.32]) / (0.4 + name_width)
    for label, row in zip(order, rows, strict=True):
        run, colour, (x, y) = shown[label], palette[label], curves[label]
        dashes, dot = (0, (4, 2)) if without_rounds(run, end) else "-", "o" if len(x) == 1 else None
        left.plot(x, y, color=colour, linestyle=dashes, marker=dot, zorder=4 if label == best else 3)
        left.plot([x[-1], end], [y[-1]] * 2, color=colour, linewidth=0.8, linestyle=":", zorder=2)
        middle.plot(leader, [y[-1], row, row], color=colour, linewidth=0.9)
        text: Any = {"va": "center", "fontsize": 9.5, "color": dark(colour)}
        text["weight"] = "bold" if label == best else "normal"
        middle.text(leader[-1] * 1.15, row, names[label], linespacing=1.05, **text)
        right.plot(spreads[label], [row, row], color=colour, linewidth=5, alpha=0.4)
        right.plot(y[-1], row, "o", color=colour, markersize=6)
        number: Any = {"xycoords": right.get_yaxis_transform(), "textcoords": "offset points", **text}
        right.annotate(f"{y[-1]:.1f}", (1, row), (8, 0), **number)
    left.set(xlim=(0, end), ylim=(low, high), ylabel="mean accuracy over clients, %")
    dashed = any(without_rounds(run, end) for run in shown.values())
    left.set_xlabel("round (dashed: method without rounds)" if dashed else "communication round")
    right.set(xlim=limits([value for label in shown for value in (*spreads[label], curves[label][1][-1])]))
    return figure


def _three_panels(figure: Figure, middle_width: float) -> tuple[Axes, Axes, Axes]:
    """Curves, a column for their names, ``middle_width`` inches wide, and the spread, with one axis of accuracy."""
    figure.set_layout_engine("none")
    height = figure.get_figheight()
    right_width, free = 1.35, WIDTH - 0.6 - 0.6  # free: without the margin for labels left and for numbers right
    widths = [free - middle_width - right_width - 0.15, middle_width, right_width]
    starts = [0.6, 0.6 + widths[0], WIDTH - 0.6 - right_width]
    boxes = [
        (x / WIDTH, 0.55 / height, width / WIDTH, 1 - 1.3 / height) for x, width in zip(starts, widths, strict=True)
    ]
    left = figure.add_axes(boxes[0])
    middle, right = figure.add_axes(boxes[1], sharey=left), figure.add_axes(boxes[2], sharey=left)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    left.yaxis.set_major_locator(MaxNLocator(nbins=9, steps=ROUND_STEPS))
    left.grid(axis="y")
    middle.set_xlim(0, 1)
    middle.axis("off")
    right.set_xlabel("accuracy, last round, %")
    right.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=ROUND_STEPS))
    right.spines["left"].set_visible(False)
    right.tick_params(axis="y", left=False, labelleft=False)
    right.grid(axis="x")
    return left, middle, right


def band_name(exact: bool) -> str:
    return "10th to 90th percentile" if exact else "± one standard deviation"


def _last_mean(run: Run) -> float:
    return run.last.accuracy["mean"] if run.last and run.last.accuracy else float("nan")


def without_rounds(run: Run, end: int) -> bool:
    """Whether the run is not one of many rounds by its method; one that stopped early is not meant."""
    return run.finished and run.rounds[-1].round <= min(1, end - 1)


def curve_points(run: Run, end: int) -> tuple[list[int], list[float]]:
    if without_rounds(run, end):
        return [0, end], [_last_mean(run)] * 2
    return [r.round for r in run.evaluated], [r.accuracy["mean"] for r in run.evaluated if r.accuracy]


def known_rounds(run: Run, rounds: Sequence[RoundRecord]) -> bool:
    """Whether every client's accuracy is known in all these rounds."""
    found = [run.client_accuracies(r.round) for r in rounds]
    return all(values is not None and values.size for values in found)


def interval_of(run: Run, record: RoundRecord, exact: bool) -> tuple[float, float]:
    """The 10th and 90th percentile over clients, or else one standard deviation to either side of the mean."""
    values = run.client_accuracies(record.round)
    if exact and values is not None:
        low, high = np.percentile(values, [10, 90])
        return float(low), float(high)
    assert record.accuracy is not None
    mean, std = record.accuracy["mean"], record.accuracy["std"]
    return max(0.0, mean - std), min(100.0, mean + std)


def _rows(ends: Sequence[float], low: float, high: float) -> np.ndarray:
    """Evenly spaced rows, from the top down, for the names of lines that end at ``ends``; near them if possible."""
    pitch = (high - low) * min(0.15, 0.92 / max(1, len(ends) - 1))
    half = pitch * (len(ends) - 1) / 2
    centre = np.clip(np.mean(ends), low + half + 0.03 * (high - low), high - half - 0.03 * (high - low))
    return centre + half - pitch * np.arange(len(ends))
