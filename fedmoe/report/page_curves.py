"""Charts of accuracy for the run page: over rounds, and over clients.

A run's colours are the class ``s<i>`` of its place ``i`` in the comparison; see ``page_style`` in ``html``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedmoe.report.curves import band_name, curve_points, interval_of, known_rounds, without_rounds
from fedmoe.report.plot_style import clients_in_words, limits, short
from fedmoe.report.plots import last_accuracies, swarm
from fedmoe.report.run import Run
from fedmoe.report.svg import Frame, Html, chart, el, join, ticks
from fedmoe.runs.records import ClientScore

_MANY = 400  # clients of a run from which on dots are drawn together, without words for the pointer
_ROW, _LONGEST = 15.0, 26  # of the names beside the curves: height, characters

Shown = Mapping[str, tuple[str, Run]]  # label -> class of its colours, run


def band_of(run: Run) -> str:
    """What the band around the run's curve is."""
    return band_name(known_rounds(run, run.evaluated))


def with_band(run: Run, style: str, end: int, ylim: tuple[float, float], width: float, height: float) -> Html:
    """Mean accuracy over clients by round, with a band from the 10th to the 90th percentile of the clients.

    Where clients.jsonl lacks an evaluated round, the band is one standard deviation over clients to either side.

    Args:
        end: last round of the x axis.
        ylim: limits of the accuracy axis, so that several charts can have the same.
    """
    small = width < 400
    frame = Frame(width, height, (0, end), ylim, left=34 if small else 52, right=46, bottom=24 if small else 42)
    xs, ys = curve_points(run, end)
    level = without_rounds(run, end)  # drawn from end to end, the result at both
    lows, highs = band(run, level)
    words = "" if small else "accuracy, %"
    parts = [frame.y_axis(ticks(*ylim, most=4 if small else 7), words)]
    rounds = ticks(0, end, most=4 if small else 10, integer=True)
    parts += [frame.x_axis(rounds, "" if small else "communication round"), frame.base()]
    if len(xs) > 1:
        outline = frame.path([*xs, *reversed(xs)], [*highs, *reversed(lows)])
        parts.append(el("path", class_=f"band {style}", d=outline + "Z"))
        flat = " flat" if level else ""
        parts.append(el("path", class_=f"curve {style}{flat}", d=frame.path(xs, ys)))
    else:
        x, y = frame.x(xs[0]), frame.y(highs[0])
        parts.append(el("rect", class_=f"band {style}", x=x - 4, y=y, width=8, height=frame.y(lows[0]) - y))
        parts.append(el("circle", class_=f"fill {style}", cx=x, cy=frame.y(ys[0]), r=4))
    parts.append(el("text", f"{ys[-1]:.1f}", class_=f"name {style}", x=frame.x(xs[-1]) + 6, y=frame.y(ys[-1]) + 4))
    named = band_of(run)
    for i, record in enumerate(() if level else run.evaluated):
        line = f"round {record.round}: mean {ys[i]:.2f} %; {named} of clients {lows[i]:.2f} to {highs[i]:.2f} %"
        parts.append(frame.strip(record.round - 0.5, record.round + 0.5, line))
    first, last = f"round {run.evaluated[0].round}", f"round {run.evaluated[-1].round}"
    description = f"{run.label}: mean accuracy over clients from {first} to {last}, at the end {ys[-1]:.2f} %"
    return chart(width, height, description, *parts)


def band(run: Run, level: bool) -> tuple[list[float], list[float]]:
    """Lower and upper edge of the band at each evaluation; or those of the last one twice, for a level line."""
    exact = known_rounds(run, run.evaluated)
    edges = [interval_of(run, record, exact) for record in run.evaluated]
    edges = [edges[-1]] * 2 if level else edges
    return [low for low, _ in edges], [high for _, high in edges]


def shared_limits(runs: Mapping[str, Run]) -> tuple[float, float]:
    """Limits of an accuracy axis that holds the curves and bands of all runs."""
    values: list[float] = []
    for run in runs.values():
        lows, highs = band(run, level=False)
        values += [*lows, *highs, *(r.accuracy["mean"] for r in run.evaluated if r.accuracy)]
    return limits(values)


def means(shown: Shown) -> Html:
    """Mean accuracy over clients by round, a curve for each run with its name at the end.

    Runs without rounds to speak of (zero-shot: only round 0; CoOp: one long local fit) are level dashed lines.
    """
    end = max([1, *(run.rounds[-1].round for _, run in shown.values())])
    curves = {label: curve_points(run, end) for label, (_, run) in shown.items()}
    ylim = limits([y for _, ys in curves.values() for y in ys])
    height = max(330.0, 80 + _ROW * len(shown))
    frame = Frame(840, height, (0, end), ylim, left=52, right=252, bottom=42)
    parts = [frame.y_axis(ticks(*ylim), "mean accuracy over clients, %")]
    parts += [frame.x_axis(ticks(0, end, most=10, integer=True), "communication round"), frame.base()]
    order = sorted(shown, key=lambda label: -curves[label][1][-1])
    rows = _apart([frame.y(curves[label][1][-1]) for label in order], frame.top, frame.y_end)
    for label, row in zip(order, rows, strict=True):
        style, run = shown[label]
        xs, ys = curves[label]
        flat = " flat" if without_rounds(run, end) else ""
        if len(xs) > 1:
            parts.append(el("path", class_=f"curve {style}{flat}", d=frame.path(xs, ys)))
        else:
            parts.append(el("circle", class_=f"fill {style}", cx=frame.x(xs[0]), cy=frame.y(ys[0]), r=4))
        x, y = frame.x(xs[-1]), frame.y(ys[-1])
        way = f"M{x + 3:.1f} {y:.1f}L{frame.x_end + 6:.1f} {y:.1f}L{frame.x_end + 18:.1f} {row:.1f}"
        parts.append(el("path", class_=f"leader {style}", d=way))
        words = f"{ys[-1]:.1f}  {short(label, _LONGEST)}"
        name = el("text", words, el("title", label), class_=f"name {style}", x=frame.x_end + 23, y=row + 4)
        parts.append(name)
    for number in sorted({r.round for _, run in shown.values() for r in run.evaluated}):
        lines = [f"{label} {mean:.2f} %" for label in order if (mean := _at(number, shown[label][1], end)) is not None]
        parts.append(frame.strip(number - 0.5, number + 0.5, "\n".join([f"round {number}", *lines])))
    last = "; ".join(f"{label} {curves[label][1][-1]:.2f} %" for label in order)
    return chart(840, height, f"Mean accuracy over clients by round. At the end: {last}", *parts)


def _at(number: int, run: Run, end: int) -> float | None:
    """The mean that the run's curve has in this round."""
    if without_rounds(run, end):
        return curve_points(run, end)[1][-1]
    return next((r.accuracy["mean"] for r in run.evaluated if r.round == number and r.accuracy), None)


def _apart(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending ``places`` moved as little as needed to be a row apart and between ``top`` and ``bottom``."""
    rows: list[float] = []
    for place in places:
        rows.append(max(place, rows[-1] + _ROW) if rows else max(place, top))
    for i in reversed(range(len(rows))):
        rows[i] = min(rows[i], bottom if i == len(rows) - 1 else rows[i + 1] - _ROW)
    return rows


def distribution(shown: Shown) -> Html:
    """Every client's accuracy in each run's last round: dots, a box of the quartiles, a line for the mean.

    All runs must have these (``plots.last_accuracies`` is not None).
    """
    found = {label: last_accuracies(run) for label, (_, run) in shown.items()}
    values = {label: accuracies for label, accuracies in found.items() if accuracies is not None}
    order = sorted(values, key=lambda label: -values[label].mean())  # the best one on top
    xlim = limits([accuracy for column in values.values() for accuracy in column])
    left = 34.0 if len(order) == 1 else 200.0
    high = 64.0 if len(order) == 1 else 46.0
    frame = Frame(840, high * len(order) + 54, xlim, (len(order), 0), left=left, right=60, bottom=44)
    words = "accuracy on each client's own test split, %"
    parts = [frame.x_axis(ticks(*xlim, most=10), words, grid=True)]
    for row, label in enumerate(order):
        style, run = shown[label]
        column, middle = values[label], frame.y(row + 0.5)
        first, third = (frame.x(float(value)) for value in np.percentile(column, [25, 75]))
        half = 0.33 * high
        parts.append(el("rect", class_=f"band {style}", x=first, y=middle - half, width=third - first, height=2 * half))
        mean = frame.x(float(column.mean()))
        line = {"x1": mean, "x2": mean, "y1": middle - half - 3, "y2": middle + half + 3}
        parts.append(el("line", class_=f"mean {style}", **line))
        parts.append(_dots(run, style, column, frame, middle, high))
        parts.append(el("text", f"{column.mean():.1f}", class_=f"name {style}", x=frame.x_end + 10, y=middle + 4))
        if len(order) > 1:
            name = short(label, _LONGEST)
            parts.append(el("text", name, el("title", label), class_=f"name end {style}", x=left - 14, y=middle + 4))
    clients = ", ".join(f"{label}: {clients_in_words(len(column))}" for label, column in values.items())
    return chart(840, frame.height, f"Accuracy of every client in the last round. {clients}", *parts)


def _dots(run: Run, style: str, column: np.ndarray, frame: Frame, middle: float, high: float) -> Html:
    radius = 3.6 if len(column) <= 60 else 2.4
    wide = 2 * radius / (frame.x_end - frame.left) * (frame.xlim[1] - frame.xlim[0])
    ys = middle + high * swarm(column, wide)
    xs = [frame.x(float(value)) for value in column]
    if len(column) > _MANY:
        points = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in zip(xs, ys, strict=True))
        return el("path", class_=f"dots {style}", d=points, stroke_width=2 * radius)
    assert run.last is not None
    clients = [client for client in run.clients[run.last.round] if client.accuracy is not None]
    return join(
        el("circle", el("title", _words(client)), class_=f"dot {style}", cx=x, cy=float(y), r=radius)
        for client, x, y in zip(clients, xs, ys, strict=True)
    )


def _words(client: ClientScore) -> str:
    where = f" ({client.domain})" if client.domain else ""
    return f"client {client.client}{where}: {client.accuracy:.2f} %, {client.correct} of {client.total} right"
