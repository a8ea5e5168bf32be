"""A partition as a table in plain text, and as a picture of clients by classes.

Input is the dict of partition.json: ``class_names`` (C), ``counts_train`` and ``counts_test`` [N][C], ``domains`` [N]
or None. Shape letters: N clients, C classes.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmoe.errors import UserError, printable
from fedmoe.report.plot_style import save
from fedmoe.report.plots import label_distribution
from fedmoe.report.run import LabelCounts

_MAX_COLUMNS = 12  # classes that get a column each; with more, a client's largest classes are listed


def show_partition(summary: dict[str, Any], picture: str | os.PathLike[str] | None = None, max_rows: int = 40) -> str:
    """The partition as text; draws it into the file ``picture``, PNG or PDF, too, if one is named.

    Raises:
        UserError: the picture cannot be written.
    """
    if picture is not None:
        try:
            save(label_distribution(LabelCounts.of(summary), test=True), Path(picture))
        except OSError as error:
            where = f"The picture {picture} cannot be written: {error.strerror}"
            raise UserError(f"{where}; valid is a file in a folder that can be written to.") from error
    return partition_text(summary, max_rows)


def partition_text(summary: dict[str, Any], max_rows: int = 40) -> str:
    """A table with a row for each client, at most ``max_rows`` of them, and a few lines about all of them."""
    labels = LabelCounts.of(summary)
    train, test, names = labels.train, labels.test, [printable(name) for name in labels.class_names]
    domains = [printable(name) for name in labels.domains or ()]
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
