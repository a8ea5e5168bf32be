"""How a partition looks: a table in plain text and a picture of clients by classes.

Input is the dict of partition.json: ``class_names`` (C), ``counts_train`` and ``counts_test`` [N][C], ``domains`` [N]
or None. Shape letters: N clients, C classes.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmoe.errors import UserError, printable
from fedmoe.io import replacing

_MAX_COLUMNS = 12  # classes that get a column each; with more, a client's largest classes are listed
_MAX_BUBBLES = 40  # clients or classes up to which single bubbles can be told apart; with more, a heat map is drawn
_TRAIN, _TEST = "#3b6ea5", "#c8702a"


def show_partition(summary: dict[str, Any], picture: str | os.PathLike[str] | None = None, max_rows: int = 40) -> str:
    """The partition as text; draws it into the PNG file ``picture`` too, if one is named.

    Raises:
        UserError: the picture cannot be written.
    """
    if picture is not None:
        try:
            draw_partition(summary, picture)
        except OSError as error:
            where = f"The picture {picture} cannot be written: {error.strerror}"
            raise UserError(f"{where}; valid is a file in a folder that can be written to.") from error
    return partition_text(summary, max_rows)


def partition_text(summary: dict[str, Any], max_rows: int = 40) -> str:
    """A table with a row for each client, at most ``max_rows`` of them, and a few lines about all of them."""
    names, (train, test) = [printable(name) for name in summary["class_names"]], _counts(summary)
    domains = [printable(name) for name in summary.get("domains") or ()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("client", justify="right")
    if domains:
        table.add_column("domain")
    for heading in ("train", "test", "classes"):
        table.add_column(heading, justify="right")
    wide = len(names) > _MAX_COLUMNS
    for name in ["largest classes (share of training examples)"] if wide else names:
        table.add_column(Text(name), justify="left" if wide else "right")
    for i in range(min(len(train), max_rows)):
        cells = [str(i), *([domains[i]] if domains else [])]
        cells += [str(train[i].sum()), str(test[i].sum()), str(np.count_nonzero(train[i]))]
        cells += [_largest(train[i], names)] if wide else [str(n) if n else "·" for n in train[i]]
        table.add_row(*map(Text, cells))
    console = Console(file=io.StringIO(), width=200, color_system=None, force_terminal=False)
    console.print(table)
    if len(train) > max_rows:
        console.print(f"... and {len(train) - max_rows} more clients")
    for line in _facts(train, test):
        console.print(line, markup=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _facts(train: np.ndarray, test: np.ndarray) -> list[str]:
    """What a reader asks about a partition [N, C], in words."""
    sizes, classes = train.sum(axis=1), np.count_nonzero(train, axis=1)
    lines = [
        f"{len(train)} clients, {train.shape[1]} classes, {train.sum()} training and {test.sum()} test examples",
        f"training examples of a client: {sizes.min()} to {sizes.max()}, median {np.median(sizes):g}",
        f"classes of a client: {classes.min()} to {classes.max()}, mean {classes.mean():.1f}",
    ]
    empty = np.flatnonzero(test.sum(axis=1) == 0)
    if len(empty):
        lines.append(
            f"without test examples, left out of evaluation: {len(empty)} clients ({', '.join(map(str, empty))})"
        )
    return lines


def _largest(counts: np.ndarray, names: list[str], number: int = 4) -> str:
    """The classes with most examples, with their shares: "three 40 %, seven 22 %"."""
    order = [c for c in np.argsort(-counts, kind="stable")[:number] if counts[c]]
    return ", ".join(f"{names[c]} {100 * counts[c] / counts.sum():.0f} %" for c in order)


def draw_partition(summary: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a PNG: examples of each client as bars, and clients by classes for train and for test below.

    Up to 40 clients and classes each count is a bubble whose area is the count; beyond, a cell of a heat map.
    """
    names, (train, test) = summary["class_names"], _counts(summary)
    num_clients, num_classes = train.shape
    width = float(np.clip(2.5 + 0.28 * num_clients, 6, 14))
    height = float(np.clip(0.24 * num_classes, 1.8, 6))
    figure = Figure(figsize=(width, 2 * height + 2.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    bars, *panels = figure.subplots(3, 1, sharex=True, height_ratios=[1.2, height, height])
    clients = np.arange(num_clients)
    bars.bar(clients, train.sum(axis=1), width=0.8, color=_TRAIN, label="train")
    bars.bar(clients, test.sum(axis=1), width=0.8, color=_TEST, label="test", bottom=train.sum(axis=1))
    bars.set_ylabel("examples")
    bars.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0)
    for axes, counts, part, color in zip(panels, (train, test), ("train", "test"), (_TRAIN, _TEST), strict=True):
        if max(num_clients, num_classes) <= _MAX_BUBBLES:
            _bubbles(axes, counts, color)
            axes.set_yticks(range(num_classes), names)
        else:
            image = axes.imshow(counts.T, aspect="auto", cmap="Blues" if part == "train" else "Oranges", vmin=0)
            figure.colorbar(image, ax=axes, label="examples")
            step = -(-num_classes // _MAX_BUBBLES)
            axes.set_yticks(range(0, num_classes, step), names[::step])
        axes.set_ylim(num_classes - 0.5, -0.5)
        axes.set_ylabel(part)
        axes.tick_params(axis="y", labelsize=8)
    panels[-1].set_xlim(-0.6, num_clients - 0.4)
    _label_clients(panels[-1], num_clients, summary.get("domains"))
    for axes in (bars, *panels):
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _bubbles(axes: Any, counts: np.ndarray, color: str) -> None:
    """A disc of area proportional to the count for each non-zero count [N, C], the largest as wide as a row."""
    client, label = np.nonzero(counts)
    largest = max(int(counts.max()), 1)
    axes.scatter(client, label, s=240 * counts[client, label] / largest, color=color, alpha=0.85, linewidths=0)
    axes.set_axisbelow(True)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_title(f"largest disc: {largest} examples", loc="right", fontsize=8)


def _label_clients(axes: Any, num_clients: int, domains: list[str] | None) -> None:
    if domains and num_clients <= _MAX_BUBBLES:
        labels = [f"{i} {domain}" for i, domain in enumerate(domains)]
        axes.set_xticks(range(num_clients), labels, rotation=90, fontsize=8)
    else:
        axes.set_xticks(range(0, num_clients, max(1, num_clients // 20)))
    axes.set_xlabel("client")


def _counts(summary: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Training and test counts, [N, C] each."""
    shape = (-1, len(summary["class_names"]))
    return tuple(np.asarray(summary[f"counts_{part}"], dtype=np.int64).reshape(shape) for part in ("train", "test"))  # type: ignore[return-value]
