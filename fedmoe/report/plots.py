"""Charts of what is not accuracy: labels, experts, attention, and costs. Those of accuracy are in ``accuracy``.

Shape letters: C classes, N clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedmoe.report.plot_style import (
    AXIS,
    CELL,
    COUNTS,
    GREY,
    INK,
    PAPER,
    PARTS,
    QUIET,
    ROUND_STEPS,
    WIDTH,
    Chart,
    clients_in_words,
    colours,
    dark,
    fitting,
    short,
    styled,
)
from fedmoe.report.run import LabelCounts, Run

Write = Callable[[float], str]  # writes a value with its unit


@styled
def label_distribution(labels: LabelCounts, test: bool = False) -> Chart:
    """Training examples of each class (rows) on each client (columns; empty: none), with each client's sum on top.

    With ``test``, the test examples below them, too, and in the sums.
    """
    counts = {"train": labels.train.T} | ({"test": labels.test.T} if test else {})  # [C, N] each
    num_classes, num_clients = labels.train.T.shape
    numbers = [f"{labels.train.sum():,} training"] + ([f"{labels.test.sum():,} test"] if test else [])
    caption = f"{' and '.join(numbers)} examples, {clients_in_words(num_clients)}, {num_classes} classes"
    height = 0.1 + min(4.6, max(1.6, 0.21 * num_classes))
    chart = Chart(2.05 + height * len(counts), "Label distribution over clients", caption)
    grid = chart.add_gridspec(1 + len(counts), 1, height_ratios=[0.7, *[height] * len(counts)])
    *panels, below = [chart.add_subplot(grid[1 + i]) for i in range(len(counts))]
    for other in panels:
        other.sharex(below)
    top = chart.add_subplot(grid[0], sharex=below)
    bounds = level_bounds(max(int(part.max(initial=0)) for part in counts.values()))
    for axes, (part, number) in zip((*panels, below), counts.items(), strict=True):
        cells(
            axes,
            np.searchsorted(bounds, number),
            number > 0,
            [COUNTS[shade(i, len(bounds))] for i in range(len(bounds))],
        )
        if num_classes <= 24:
            axes.set_yticks(range(num_classes), [short(name, 20) for name in labels.class_names])
            for tick, name in zip(axes.get_yticklabels(), labels.class_names, strict=True):
                chart.hover(tick, name)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=ROUND_STEPS))
        kind = "class" if num_classes > 24 else ""
        axes.set_ylabel(", ".join(filter(None, [kind, part])) if test else kind)
    for axes in panels:
        axes.tick_params(axis="x", labelbottom=False)
    below.set(xlabel="client", xlim=(-0.5, num_clients - 0.5), xticks=range(0, num_clients, _tick_step(num_clients)))
    start = np.zeros(num_clients, dtype=np.int64)
    for number, colour, part in zip(counts.values(), (QUIET, PARTS[1]), ("train", "test"), strict=False):
        _columns(top, number.sum(axis=0), colour, start, label=part)
        start += number.sum(axis=0)
    top.set_ylabel("sum")
    starts = [1, *(bound + 1 for bound in bounds[:-1])]
    keys = [
        Patch(color=COUNTS[shade(i, len(bounds))], label=str(a) if a == b else f"{a}–{b}")
        for i, (a, b) in enumerate(zip(starts, bounds, strict=True))
    ]
    chart.legend(handles=keys, title="examples of a class on a client", loc="outside lower right", ncols=len(keys))
    if test:
        chart.legend(handles=top.containers, title="sums", loc="outside lower left", ncols=2)
    above: Any = {"transform": top.get_xaxis_transform(), "ha": "center", "fontsize": 9, "color": GREY}
    for first, stop, name in _domain_groups(labels.domains):
        cut = fitting(short(name, 40), 9, (WIDTH - 1.2) * (stop - first) / num_clients)
        chart.hover(top.text((first + stop - 1) / 2, 1.06, cut, **above), name)
        if first:
            for axes in (*panels, below, top):
                axes.axvline(first - 0.5, color=GREY, linewidth=1)
    words = [_labels_in_words(labels, client) for client in range(num_clients)]
    chart.strips(below, range(num_clients), words, top=len(counts) + 1 / height)
    chart.description = (
        f"Label distribution: {caption}; each client has {_span(np.count_nonzero(labels.train, axis=1))} "
    )
    chart.description += f"classes and {_span(labels.train.sum(axis=1))} training examples."
    return chart


def level_bounds(most: int) -> list[int]:
    """The largest count of each colour of the heat map: even steps of the square root, at most as many as colours."""
    steps = len(COUNTS)
    return sorted({max(1, round(most * (i / steps) ** 2)) for i in range(1, steps + 1)})


def shade(level: int, number_of_levels: int) -> int:
    """Which of the colours of ``COUNTS``; few levels are spread over all of them."""
    last = len(COUNTS) - 1
    return last if number_of_levels == 1 else round(level * last / (number_of_levels - 1))


def cells(axes: Axes, levels: np.ndarray, drawn: np.ndarray, palette: Sequence[str]) -> None:
    """A heat map of ``levels`` where ``drawn``: one path for each colour, of squares, the first row on top."""
    rows, columns = levels.shape
    few = max(rows, columns) <= 60
    half = 0.47 if few else 0.5
    square = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    for level, colour in enumerate(palette):
        places = np.argwhere(drawn & (levels == level))[:, ::-1]  # [cells, 2]: x, y
        if len(places):
            path = Path.make_compound_path_from_polys(places[:, None] + square)
            axes.add_patch(PathPatch(path, facecolor=colour, linewidth=0, antialiased=few))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _columns(axes: Axes, heights: np.ndarray, colour: str, start: Any = 0, label: str = "") -> None:
    """A bar for each client, above the cells."""
    width = 0.8 if len(heights) <= 60 else 1.0
    axes.bar(range(len(heights)), heights, width=width, bottom=start, color=colour, linewidth=0, label=label)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.spines["bottom"].set_visible(False)


def _labels_in_words(labels: LabelCounts, client: int, most: int = 12) -> str:
    counts = labels.train[client]
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    names = [f"{labels.class_names[c]} {counts[c]}" for c in order[:most]]
    names += [f"and {len(order) - most} classes more"] if len(order) > most else []
    where = f" ({labels.domains[client]})" if labels.domains else ""
    return "\n".join([f"client {client}{where}: {counts.sum()} training examples", *names])


def _span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


@styled
def expert_assignment(experts: Mapping[int, Sequence[int]], num_clients: int, number: int) -> Chart:
    """Who uses whose prompt: a row for each client, a filled cell for each client whose prompt it has as an expert.

    Above it, how many clients use each prompt.

    Args:
        experts: client -> ids of its experts, each below ``num_clients``.
        number: the round.
    """
    matrix = np.zeros((num_clients, num_clients), dtype=np.int64)  # [N, N]
    for client, ids in experts.items():
        matrix[client, list(ids)] = 1
    having = f"{len(experts)} of {clients_in_words(num_clients)} have experts in round {number}"
    caption = f"{having}; above: clients that use a prompt"
    chart = Chart(7.0, "Expert assignment: who uses whose prompt", caption)
    grid = chart.add_gridspec(2, 1, height_ratios=[1, 7])
    axes = chart.add_subplot(grid[1])
    top = chart.add_subplot(grid[0], sharex=axes)
    axes.plot([-0.5, num_clients - 0.5], [-0.5, num_clients - 0.5], color=AXIS, linewidth=0.8, zorder=0.5)
    cells(axes, np.zeros_like(matrix), matrix > 0, [CELL])
    shown = range(0, num_clients, _tick_step(num_clients))
    axes.set(xlabel="whose prompt", ylabel="client that uses it", xticks=shown, yticks=shown)
    _columns(top, matrix.sum(axis=0), QUIET)
    top.set_ylabel("users")
    clients = sorted(experts)
    words = [f"client {n} uses the prompts of {', '.join(map(str, experts[n])) or 'nobody'}" for n in clients]
    if clients:
        chart.strips(axes, clients, words, rows=True)
    chart.description = f"{having}; the prompts of {int(matrix.any(axis=0).sum())} are used."
    return chart


@styled
def expert_attention(run: Run) -> Chart:
    """Mean attention on the local expert (highlighted) and on each non-local one, descending (paper, figure 6).

    Raises:
        ValueError: if no round of the run has attention weights.
    """
    found = [r for r in run.rounds if r.attention]
    if not found or found[-1].attention is None:
        raise ValueError(f"{run.path} has no attention weights")
    attention = found[-1].attention
    experts = sorted(attention["experts"], reverse=True)
    caption = f"Mean over the clients' test images, round {found[-1].round}; non-local experts sorted"
    chart = Chart(3.4, f"{run.label}: attention per expert", caption)
    axes = chart.add_subplot()
    local = colours({run.label: run})[run.label]
    heights, gap = [attention["local"], *experts], 0.4 + 0.05 * len(experts)
    places = np.array([0.0, *(gap + np.arange(1, len(heights)))])
    bars = axes.bar(places, heights, width=0.72, color=[local] + [QUIET] * len(experts))
    for i, (bar, height) in enumerate(zip(bars, heights, strict=True)):
        chart.hover(bar, f"{f'non-local expert {i}' if i else 'local expert'}: {height:.4f}")
    equal = 1 / len(heights)
    axes.axhline(equal, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
    beside: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(f"equal\nshares\n{equal:.4f}", (1, equal), (5, 0), va="center", fontsize=9, **beside)
    if len(heights) <= 14:
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
        size = 8.5 if len(heights) <= 11 else 7.5
        axes.bar_label(bars, fmt="%.4f", padding=3, fontsize=size, color=INK, bbox=box)
    ticks = range(1, len(heights), max(1, len(experts) // 10))
    axes.set_xticks([0, *(gap + np.array(ticks))], ["local", *map(str, ticks)])
    axes.get_xticklabels()[0].set(color=dark(local), weight="bold")
    axes.set(xlabel="expert", ylabel="mean attention", xlim=(-0.7, places[-1] + 0.7), ylim=(0, 1.12 * max(heights)))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    others = f"{len(experts)} others {experts[-1]:.4f} to {experts[0]:.4f}" if experts else "no others"
    chart.description = f"{run.label}: mean attention on the local expert {heights[0]:.4f}, {others}."
    return chart


@styled
def cost_of_runs(heading: str, parts: Sequence[str], values: Mapping[str, Sequence[float]], write: Write) -> Chart:
    """A horizontal bar for each run, of one value for each of ``parts``, with the sum behind it."""
    chart = Chart(1.2 + 0.32 * len(values), heading)
    axes = chart.add_subplot()
    left = np.zeros(len(values))
    for part, colour, lengths in zip(parts, PARTS, np.array(list(values.values())).T, strict=True):
        bars = axes.barh(range(len(values)), lengths, 0.62, left, color=colour, label=part)
        for bar, length in zip(bars, lengths, strict=True):
            chart.hover(bar, f"{part}: {write(length)}")
        left += lengths
    for row, total in enumerate(left):
        axes.annotate(write(total), (total, row), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(values)), [short(label, 30) for label in values])
    for tick, label in zip(axes.get_yticklabels(), values, strict=True):
        chart.hover(tick, label)
    axes.set(xlim=(0, 1.14 * max(*left, 1e-9)), ylim=(len(values) - 0.5, -0.5), xticks=[])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    _parts_legend(axes)
    sums = "; ".join(f"{label} {write(total)}" for label, total in zip(values, left, strict=True))
    chart.description = f"{heading}. {sums}."
    return chart


@styled
def cost_of_rounds(
    heading: str,
    parts: Sequence[str],
    rounds: Sequence[int],
    values: Sequence[Sequence[float]],
    write: Write,
    unit: str,
) -> Chart:
    """A bar for each round, of one value for each of ``parts`` from the bottom up."""
    chart = Chart(2.9, heading)
    axes = chart.add_subplot()
    bottom = np.zeros(len(rounds))
    for part, colour, heights in zip(parts, PARTS, np.array(values).T, strict=True):
        axes.bar(rounds, heights, 0.8, bottom, color=colour, linewidth=0, label=part)
        bottom += heights
    axes.set(xlabel="communication round", ylabel=unit, xlim=(rounds[0] - 0.6, rounds[-1] + 0.6))
    axes.set_ylim(0, 1.04 * max(*bottom, 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=ROUND_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.grid(axis="y")
    _parts_legend(axes)
    chart.strips(
        axes,
        rounds,
        ["\n".join([f"round {n}", *(f"{p} {write(v)}" for p, v in zip(parts, row, strict=True))])
         for n, row in zip(rounds, values, strict=True)],
    )  # fmt: skip
    chart.description = f"{heading}, from round {rounds[0]} to round {rounds[-1]}; sum {write(bottom.sum())}."
    return chart


def _parts_legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(PARTS), borderaxespad=0.2)


def _domain_groups(domains: Sequence[str] | None) -> list[tuple[int, int, str]]:
    """(start, stop, name) of consecutive clients of one domain."""
    groups: list[tuple[int, int, str]] = []
    for i, name in enumerate(domains or ()):
        if groups and groups[-1][2] == name:
            groups[-1] = (groups[-1][0], i + 1, name)
        else:
            groups.append((i, i + 1, name))
    return groups


def _tick_step(number: int) -> int:
    """The step from one labelled client to the next: 1, 2 or 5 times a power of ten, for at most 20 labels."""
    return next(
        step for power in range(20) for step in (10**power, 2 * 10**power, 5 * 10**power) if number <= 20 * step
    )
