"""Charts of accuracy: over rounds, of one run and of several side by side, and over clients."""

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
    Chart,
    clients_in_words,
    colours,
    dark,
    limits,
    row_name,
    styled,
    text_width,
)
from fedmoe.report.run import Run
from fedmoe.runs.records import ClientScore, RoundRecord

_MANY = 400  # clients of a run beyond which the pointer finds no words on their dots


@styled
def accuracy_over_rounds(
    run: Run, end: int | None = None, ylim: tuple[float, float] | None = None, small: bool = False
) -> Chart:
    """Mean accuracy over clients by round, with a band from the 10th to the 90th percentile of the clients.

    Where clients.jsonl lacks an evaluated round, the band is one standard deviation over clients to either side. A run
    without rounds to speak of is a horizontal dashed line up to ``end``.

    Args:
        end: last round of the x axis; by default the run's.
        ylim: limits of the accuracy axis; by default such that the band fits in.
        small: for a row of charts under names of their own, without heading and axis labels.
    """
    end = run.rounds[-1].round if end is None else end
    exact = known_rounds(run, run.evaluated)
    band, level = f"{band_name(exact)} of clients", without_rounds(run, end)
    (rounds, means), (low, high) = curve_points(run, end), _band(run, level)
    caption = f"{clients_in_words(run.num_scored)}, each on its own test split. Line: mean over clients; band: {band}"
    chart = Chart(1.62, width=2.57) if small else Chart(3.7, f"{run.label}: accuracy over rounds", caption)
    axes = chart.add_subplot()
    colour = colours({run.label: run})[run.label]
    if len(rounds) > 1:
        axes.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
    else:
        axes.vlines(rounds, low, high, color=colour, alpha=0.35, linewidth=5)
    dots = "o" if (len(rounds) <= 12 and not level and not small) or len(rounds) == 1 else None  # unless they are many
    dashes: Any = (0, (4, 2)) if level else "-"
    axes.plot(rounds, means, color=colour, linestyle=dashes, marker=dots, markersize=5, clip_on=False, zorder=3)
    number: Any = {"va": "center", "color": dark(colour), "weight": "bold", "fontsize": 9 if small else 10}
    axes.annotate(f"{means[-1]:.1f}", (rounds[-1], means[-1]), (7, 0), textcoords="offset points", **number)
    axes.set_ylim(ylim or limits([*low, *high, *means]))
    if not small:
        axes.set(xlabel="communication round", ylabel="accuracy, %")
    if end > 0 and (len(rounds) > 1 or small):
        axes.set_xlim(0, end)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4 if small else "auto"))
    else:
        axes.set(xlim=(rounds[0] - 1, rounds[0] + 1), xticks=rounds)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4 if small else 8, steps=ROUND_STEPS))
    axes.grid(axis="y")
    words = [
        f"round {record.round}: mean {mean:.2f} %; {band} {a:.2f} to {b:.2f} %"
        for record, mean, a, b in zip(() if level else run.evaluated, means, low, high, strict=not level)
    ]
    if words:
        chart.strips(axes, rounds, words)
    first, last = run.evaluated[0].round, run.evaluated[-1].round
    chart.description = f"{run.label}: mean accuracy over clients from round {first} to round {last}, at the end "
    chart.description += f"{means[-1]:.2f} %; {band} {low[-1]:.2f} to {high[-1]:.2f} %."
    return chart


@styled
def compare_over_rounds(runs: Mapping[str, Run]) -> Chart:
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
    caption = f"Left: mean over clients. Right: last round, mean (dot) and {band_name(exact)} of clients (bar)"
    chart = Chart(height, "Accuracy over rounds, and its spread over clients", caption)
    name_width = max((text_width(name, 9.5, label == best) for label, name in names.items()), default=0.0)
    left, middle, right = _three_panels(chart, 0.4 + name_width)
    leader = np.array([0.03, 0.25, 0.32]) / (0.4 + name_width)
    for label, row in zip(order, rows, strict=True):
        run, colour, (x, y) = shown[label], palette[label], curves[label]
        dashes, dot = (0, (4, 2)) if without_rounds(run, end) else "-", "o" if len(x) == 1 else None
        left.plot(x, y, color=colour, linestyle=dashes, marker=dot, zorder=4 if label == best else 3)
        left.plot([x[-1], end], [y[-1]] * 2, color=colour, linewidth=0.8, linestyle=":", zorder=2)
        middle.plot(leader, [y[-1], row, row], color=colour, linewidth=0.9)
        text: Any = {"va": "center", "fontsize": 9.5, "color": dark(colour)}
        text["weight"] = "bold" if label == best else "normal"
        chart.hover(middle.text(leader[-1] * 1.15, row, names[label], linespacing=1.05, **text), label)
        (bar,) = right.plot(spreads[label], [row, row], color=colour, linewidth=5, alpha=0.4)
        a, b = spreads[label]
        chart.hover(bar, f"{label}: mean {y[-1]:.2f} %; {band_name(exact)} of clients {a:.2f} to {b:.2f} %")
        right.plot(y[-1], row, "o", color=colour, markersize=6)
        number: Any = {"xycoords": right.get_yaxis_transform(), "textcoords": "offset points", **text}
        right.annotate(f"{y[-1]:.1f}", (1, row), (8, 0), **number)
    left.set(xlim=(0, end), ylim=(low, high), ylabel="mean accuracy over clients, %")
    dashed = any(without_rounds(run, end) for run in shown.values())
    left.set_xlabel("round (dashed: method without rounds)" if dashed else "communication round")
    right.set(xlim=limits([value for label in shown for value in (*spreads[label], curves[label][1][-1])]))
    rounds = sorted({r.round for run in shown.values() for r in run.evaluated})
    at = {number: {label: _at(number, shown[label], end) for label in order} for number in rounds}
    words = [
        "\n".join([f"round {number}", *(f"{label} {mean:.2f} %" for label, mean in means.items() if mean is not None)])
        for number, means in at.items()
    ]
    chart.strips(left, rounds, words)
    last = "; ".join(f"{label} {curves[label][1][-1]:.2f} %" for label in order)
    chart.description = f"Mean accuracy over clients by round. At the end: {last}."
    return chart


@styled
def client_accuracies(runs: Mapping[str, Run]) -> Chart:
    """Every client's accuracy in each run's last round.

    A dot for each client, a box of the quartiles, a line and a number for the mean. Runs whose last round is not
    complete in clients.jsonl are left out.
    """
    shown = {label: values for label, run in runs.items() if (values := last_accuracies(run)) is not None}
    order = sorted(shown, key=lambda label: shown[label].mean())  # the best one on top
    caption = "Last round. Dot: a client; box: middle half of the clients; line and number: mean over clients"
    chart = Chart(1.45 + 0.52 * len(order), "Accuracy of every client", caption)
    axes = chart.add_subplot()
    palette = colours(runs)
    low, high = limits([accuracy for values in shown.values() for accuracy in values])
    dot = 4.0 if max((len(values) for values in shown.values()), default=0) <= 50 else 3.0  # diameter in points
    wide = dot / 72 * (high - low) / 6  # a dot in points of accuracy; the axis is some 6 inches long
    for row, label in enumerate(order):
        values, colour = shown[label], palette[label]
        first, third = np.percentile(values, [25, 75])
        axes.barh(row, third - first, left=first, height=0.66, color=colour, alpha=0.16, linewidth=0)
        places = row + _swarm(values, wide)
        dots = axes.scatter(values, places, s=dot**2, color=colour, alpha=0.75, linewidths=0, zorder=4, clip_on=False)
        if len(values) <= _MANY:
            chart.hover(dots, *map(_words, _last_scores(runs[label])))
        axes.vlines(values.mean(), row - 0.38, row + 0.38, color=dark(colour), linewidth=2, zorder=3)
        beside: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "color": dark(colour)}
        axes.annotate(f"{values.mean():.1f}", (1, row), (8, 0), va="center", fontsize=9.5, **beside)
    axes.set_yticks(range(len(order)), [row_name(runs[label], label) for label in order])
    for tick, label in zip(axes.get_yticklabels(), order, strict=True):
        tick.set(color=dark(palette[label]), fontsize=9.5)
        chart.hover(tick, label)
    axes.set(xlabel="accuracy on each client's own test split, %", xlim=(low, high), ylim=(-0.6, len(order) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=ROUND_STEPS))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    each = (
        f"{label}: {clients_in_words(len(shown[label]))}, mean {shown[label].mean():.2f} %" for label in order[::-1]
    )
    chart.description = f"Accuracy of every client in the last round. {'; '.join(each)}."
    return chart


def last_accuracies(run: Run) -> np.ndarray | None:
    """Every client's accuracy in the last evaluated round, percent; None where clients.jsonl lacks it."""
    values = run.client_accuracies(run.last.round) if run.last else None
    return values if values is not None and values.size else None


def shared_limits(runs: Mapping[str, Run]) -> tuple[float, float]:
    """Limits of an accuracy axis that holds the curves and bands of all runs."""
    values: list[float] = []
    for run in runs.values():
        lows, highs = _band(run, level=False)
        values += [*lows, *highs, *(r.accuracy["mean"] for r in run.evaluated if r.accuracy)]
    return limits(values)


def band_of(run: Run) -> str:
    """What the band around the run's curve is."""
    return band_name(known_rounds(run, run.evaluated))


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


def _at(number: int, run: Run, end: int) -> float | None:
    """The mean that the run's curve has in this round."""
    if without_rounds(run, end):
        return _last_mean(run)
    return next((r.accuracy["mean"] for r in run.evaluated if r.round == number and r.accuracy), None)


def _band(run: Run, level: bool) -> tuple[list[float], list[float]]:
    """Lower and upper edge of the band at each evaluation; or those of the last one twice, for a level line."""
    exact = known_rounds(run, run.evaluated)
    edges = [interval_of(run, record, exact) for record in run.evaluated]
    edges = [edges[-1]] * 2 if level else edges
    return [low for low, _ in edges], [high for _, high in edges]


def _last_scores(run: Run) -> list[ClientScore]:
    return [score for score in run.clients[run.last.round] if score.accuracy is not None] if run.last else []


def _words(score: ClientScore) -> str:
    where = f" ({score.domain})" if score.domain else ""
    return f"client {score.client}{where}: {score.accuracy:.2f} %, {score.correct} of {score.total} right"


def _swarm(values: np.ndarray, wide: float) -> np.ndarray:
    """Vertical offsets, within 0.32 to either side, that keep dots ``wide`` apart from those of nearly equal values."""
    levels = np.zeros(len(values), dtype=int)
    order = np.argsort(values, kind="stable")
    for k, i in enumerate(order):
        near = order[max(0, k - 40) : k]
        taken = set(levels[near[values[i] - values[near] < wide]].tolist())
        levels[i] = next(level for n in range(len(values)) for level in (n, -n) if level not in taken)
    return levels * min(0.13, 0.32 / max(1, int(np.abs(levels).max())))
