"""Charts for the run page of what is not accuracy: labels, experts, attention, and costs.

Shape letters: C classes, N clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedmoe.errors import UserError
from fedmoe.report.plot_style import short
from fedmoe.report.plots import domain_groups, tick_step
from fedmoe.report.run import LabelCounts, Run
from fedmoe.report.svg import Frame, Html, chart, el, join, number, ticks
from fedmoe.runs.records import RoundRecord

LEVELS = 6  # colours of the heat map, h1 to h6 in page.html

Stack = tuple[tuple[str, str], ...]  # class and name of each part of a bar


def level_bounds(most: int) -> list[int]:
    """The largest count of each colour of the heat map: even steps of the square root, at most ``LEVELS``."""
    return sorted({max(1, round(most * (i / LEVELS) ** 2)) for i in range(1, LEVELS + 1)})


def label_distribution(labels: LabelCounts) -> Html:
    """Training examples of each class (rows) on each client (columns; empty: none), with each client's sum on top."""
    counts = labels.train.T  # [C, N]
    num_classes, num_clients = counts.shape
    named = num_classes <= 24
    left = 20.0 + (max(len(short(name, 18)) for name in labels.class_names) * 7.2 if named else 40.0)
    high = max(120.0, min(460.0, (24.0 if num_classes <= 12 else 16.0) * num_classes))
    top = 92.0
    frame = Frame(840, top + high + 44, (0, num_clients), (num_classes, 0), left=left, right=12, top=top, bottom=44)
    cells = el("g", *_cells(counts), transform=_cell_units(frame, num_clients, num_classes))
    sums = counts.sum(axis=0)  # [N]
    bars = Frame(840, top - 8, (0, num_clients), (0, max(1, int(sums.max()))), left=left, right=12, top=22, bottom=0)
    step = max(1, -(-num_classes // 10))
    rows = list(range(num_classes)) if named else list(range(0, num_classes, step))
    parts = [bars.y_axis(ticks(0, bars.ylim[1], most=2, integer=True)[1:]), bars.base(), _columns(bars, sums), cells]
    parts += [
        el("text", short(labels.class_names[row], 18) if named else str(row), class_="tick end", x=left - 8, y=y + 4)
        for row, y in ((row, frame.y(row + 0.5)) for row in rows)
    ]
    shown = list(range(0, num_clients, tick_step(num_clients)))
    parts.append(frame.x_axis([n + 0.5 for n in shown], "client", [str(n) for n in shown]))
    for start, stop, name in domain_groups(labels.domains):
        middle, room = frame.x((start + stop) / 2), frame.x(stop) - frame.x(start)
        words = short(name, max(2, int(room / 7.5)))
        parts.append(el("text", words, el("title", name), class_="axis mid", x=middle, y=13))
        if start:
            parts.append(el("line", class_="base", x1=frame.x(start), x2=frame.x(start), y1=18, y2=frame.y_end))
    whole = Frame(840, frame.height, frame.xlim, frame.ylim, left=left, right=12, top=22, bottom=44)
    parts += [whole.strip(n, n + 1, _labels_in_words(labels, n)) for n in range(num_clients)]
    description = f"Label distribution: {num_classes} classes, {num_clients} clients, {int(sums.sum())} examples"
    return chart(840, frame.height, description, *parts)


def _cells(counts: np.ndarray) -> list[Html]:
    """A path for each colour, in units of cells; one for each cell would make a page of megabytes."""
    gap = 0.06 if max(counts.shape) <= 60 else 0.0
    bounds = level_bounds(int(counts.max()))
    levels = np.searchsorted(bounds, counts)  # [C, N]: the first bound that is not smaller
    paths = []
    for level in range(len(bounds)):
        places = np.argwhere((levels == level) & (counts > 0))
        paths.append(el("path", class_=f"cell h{shade(level, len(bounds))}", d=_squares(places, gap)))
    return paths


def shade(level: int, number_of_levels: int) -> int:
    """Which of the ``LEVELS`` colours; few levels are spread over all of them."""
    return LEVELS if number_of_levels == 1 else 1 + round(level * (LEVELS - 1) / (number_of_levels - 1))


def _squares(places: np.ndarray, gap: float) -> str:
    side = number(1 - gap)
    return "".join(f"M{number(x + gap / 2)} {number(y + gap / 2)}h{side}v{side}h-{side}z" for y, x in places.tolist())


def _cell_units(frame: Frame, across: int, down: int) -> str:
    wide, high = (frame.x_end - frame.left) / across, (frame.y_end - frame.top) / down
    return f"translate({number(frame.left)} {number(frame.top)}) scale({wide:.5f} {high:.5f})"


def _columns(frame: Frame, heights: np.ndarray) -> Html:
    """A bar for each client."""
    gap = 0.1 if len(heights) <= 60 else 0.0
    bars = []
    for n, height in enumerate(heights.tolist()):
        a, b, y = frame.x(n + gap), frame.x(n + 1 - gap), frame.y(height)
        bars.append(el("rect", class_="fill quiet", x=a, width=b - a, y=y, height=frame.y_end - y))
    return join(bars)


def _labels_in_words(labels: LabelCounts, client: int, most: int = 12) -> str:
    counts = labels.train[client]
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    names = [f"{labels.class_names[c]} {counts[c]}" for c in order[:most]]
    names += [f"and {len(order) - most} classes more"] if len(order) > most else []
    where = f" ({labels.domains[client]})" if labels.domains else ""
    return "\n".join([f"client {client}{where}: {counts.sum()} training examples", *names])


def last_experts(run: Run) -> RoundRecord | None:
    """The last round with an assignment of experts.

    Raises:
        UserError: if it names a client that the run does not have.
    """
    found = next((r for r in reversed(run.rounds) if any(r.experts.values())), None)
    for client in (
        () if found is None else {*map(int, found.experts), *(i for ids in found.experts.values() for i in ids)}
    ):
        if found is not None and not 0 <= client < run.num_clients:
            where = (
                f"{run.path / 'rounds.jsonl'}, round {found.round}, names client {client} in an assignment of experts"
            )
            raise UserError(f"{where}; partition.json has {run.num_clients} clients, from 0.")
    return found


def expert_assignment(experts: Mapping[int, Sequence[int]], num_clients: int) -> Html:
    """Who uses whose prompt: a row for each client, a filled cell for each client whose prompt it has as an expert.

    Above it, how many clients use each prompt.
    """
    matrix = np.zeros((num_clients, num_clients), dtype=np.int64)  # [N, N]
    for client, ids in experts.items():
        matrix[client, list(ids)] = 1
    users = matrix.sum(axis=0)  # [N]
    side, top, left = 520.0, 70.0, 60.0
    frame = Frame(left + side + 12, top + side + 44, (0, num_clients), (num_clients, 0), left, 12, top, 44)
    bars = Frame(frame.width, top - 6, (0, num_clients), (0, max(1, int(users.max()))), left, 12, 8, 0)
    gap = 0.08 if num_clients <= 60 else 0.0
    shown = list(range(0, num_clients, tick_step(num_clients)))
    own = f"M{left} {top}L{number(frame.x_end)} {number(frame.y_end)}"
    parts = [
        bars.y_axis(ticks(0, bars.ylim[1], most=2, integer=True)[1:]),
        bars.base(),
        _columns(bars, users),
        el("path", class_="base", d=own),
        el("g", el("path", class_="cell mark", d=_squares(np.argwhere(matrix), gap)),
           transform=_cell_units(frame, num_clients, num_clients)),
        frame.x_axis([n + 0.5 for n in shown], "whose prompt", [str(n) for n in shown]),
    ]  # fmt: skip
    parts += [el("text", str(n), class_="tick end", x=left - 8, y=frame.y(n + 0.5) + 4) for n in shown]
    middle = (frame.top + frame.y_end) / 2
    turn = f"rotate(-90 14 {number(middle)})"
    parts.append(el("text", "client that uses it", class_="axis mid", x=14, y=middle, transform=turn))
    for client, ids in sorted(experts.items()):
        words = f"client {client} uses the prompts of {', '.join(map(str, ids)) or 'nobody'}"
        high = (frame.y_end - frame.top) / num_clients
        area = {"x": left, "width": side, "y": frame.y(client), "height": high}
        parts.append(el("rect", el("title", words), class_="hit", **area))
    return chart(frame.width, frame.height, f"Expert assignment of {len(experts)} clients", *parts)


def attention(weights: Mapping[str, Any], style: str) -> Html:
    """Mean attention on the local expert (highlighted) and on each non-local one, descending (paper, figure 6)."""
    experts = sorted(weights["experts"], reverse=True)
    heights = [weights["local"], *experts]
    most, equal = 1.12 * max(*heights, 1e-9), 1 / len(heights)
    frame = Frame(840, 270, (-0.6, len(heights) + 0.1), (0, most), left=58, right=84, top=14, bottom=42)
    parts = [frame.y_axis(ticks(0, most, most=5), "mean attention")]
    places = [0.0, *(i + 0.5 for i in range(1, len(heights)))]
    for i, (place, height) in enumerate(zip(places, heights, strict=True)):
        a, b, y = frame.x(place - 0.38), frame.x(place + 0.38), frame.y(height)
        words = f"{'local expert' if i == 0 else f'non-local expert {i}'}: {height:.4f}"
        bar = {"x": a, "width": b - a, "y": y, "height": frame.y_end - y}
        parts.append(el("rect", el("title", words), class_=f"fill {style if i == 0 else 'quiet'}", **bar))
        if len(heights) <= 14:
            parts.append(el("text", f"{height:.4f}", class_="mid", x=frame.x(place), y=y - 5))
    at = frame.y(min(equal, most))
    parts.append(el("line", class_="even", x1=frame.left, x2=frame.x_end, y1=at, y2=at))
    for line, words in enumerate(("equal", "shares", f"{equal:.4f}")):
        parts.append(el("text", words, class_="tick", x=frame.x_end + 8, y=at - 9 + 14 * line))
    shown = range(1, len(heights), max(1, len(experts) // 10))
    names = ["local", *map(str, shown)]
    parts += [frame.base(), frame.x_axis([0.0, *(i + 0.5 for i in shown)], "expert", names)]
    return chart(840, 270, f"Mean attention: local expert {weights['local']:.4f}, {len(experts)} others", *parts)


def stacked_rounds(
    rounds: Sequence[int], values: Sequence[Sequence[float]], stack: Stack, write: Callable[[float], str], name: str
) -> Html:
    """A bar for each round, of the parts in ``stack`` from the bottom up; ``write`` writes a value with its unit."""
    most = max([sum(parts) for parts in values] + [1e-9])
    frame = Frame(840, 230, (rounds[0] - 0.6, rounds[-1] + 0.6), (0, 1.04 * most), left=92, right=12, bottom=42)
    steps = ticks(0, frame.ylim[1], most=4)
    drawn = [frame.y_axis(steps, name, [write(step) for step in steps])]
    for at, parts in zip(rounds, values, strict=True):
        below = 0.0
        for (style, _), value in zip(stack, parts, strict=True):
            if value > 0:
                top, bottom = frame.y(below + value), frame.y(below)
                a, b = frame.x(at - 0.4), frame.x(at + 0.4)
                drawn.append(el("rect", class_=f"fill {style}", x=a, width=b - a, y=top, height=bottom - top))
            below += value
        words = [f"{part} {write(value)}" for (_, part), value in zip(stack, parts, strict=True)]
        drawn.append(frame.strip(at - 0.5, at + 0.5, "\n".join([f"round {at}", *words])))
    marks = ticks(rounds[0], rounds[-1], most=10, integer=True)
    drawn += [frame.base(), frame.x_axis(marks, "communication round")]
    total = write(sum(sum(parts) for parts in values))
    return chart(840, 230, f"{name} by round, sum {total}", *drawn)


def stacked_runs(values: Mapping[str, Sequence[float]], stack: Stack, write: Callable[[float], str], name: str) -> Html:
    """A horizontal bar for each run, with the sum behind it."""
    most = max([sum(parts) for parts in values.values()] + [1e-9])
    frame = Frame(840, 30.0 * len(values) + 12, (0, most), (len(values), 0), left=200, right=110, top=4, bottom=8)
    drawn: list[Html] = []
    for row, (label, parts) in enumerate(values.items()):
        left, middle = 0.0, frame.y(row + 0.5)
        drawn.append(el("text", short(label, 26), el("title", label), class_="end", x=frame.left - 12, y=middle + 4))
        for (style, part), value in zip(stack, parts, strict=True):
            if value > 0:
                a, b = frame.x(left), frame.x(left + value)
                area = {"x": a, "width": b - a, "y": middle - 9, "height": 18}
                drawn.append(el("rect", el("title", f"{part}: {write(value)}"), class_=f"fill {style}", **area))
            left += value
        drawn.append(el("text", write(left), x=frame.x(left) + 8, y=middle + 4))
    sums = "; ".join(f"{label} {write(sum(parts))}" for label, parts in values.items())
    return chart(840, frame.height, f"{name}: {sums}", *drawn)
