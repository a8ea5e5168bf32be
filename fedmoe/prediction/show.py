"""Predictions as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from fedmoe.display import plain
from fedmoe.errors import printable
from fedmoe.prediction.images import Prediction


def as_text(predictions: Sequence[Prediction], title: str, console: Console) -> None:
    """Print a table with a row for each image."""
    table = Table(title=plain(title), title_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("class, probability")
    if any(found.experts for found in predictions):
        table.add_column("experts' weights")
    for found in predictions:
        cells = [found.image, "\n".join(f"{name}  {100 * share:.1f} %" for name, share in found.classes)]
        if len(table.columns) == 3:
            cells.append("\n".join(f"{name}  {weight:.3f}" for name, weight in found.experts))
        table.add_row(*(plain(cell) for cell in cells))
    console.print(table)


def as_json(predictions: Sequence[Prediction], title: str, console: Console) -> None:
    """Print a list with an object for each image: image, classes and experts, where there are any."""
    found = [
        {
            "image": one.image,
            "classes": [{"class": name, "probability": share} for name, share in one.classes],
            "experts": [{"expert": name, "weight": weight} for name, weight in one.experts],
        }
        for one in predictions
    ]
    _raw(json.dumps(found, indent=2), console)  # ASCII: control characters are escaped


def as_csv(predictions: Sequence[Prediction], title: str, console: Console) -> None:
    """Print a line for each image and class: image, rank, class, probability, and a column for each expert's weight."""
    experts = list(dict.fromkeys(name for one in predictions for name, _ in one.experts))
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["image", "rank", "class", "probability", *(f"weight of {name}" for name in experts)])
    for one in predictions:
        weights = dict(one.experts)
        for rank, (name, share) in enumerate(one.classes, start=1):
            shares = [weights.get(expert, "") for expert in experts]
            lines.writerow([_one_line(one.image), rank, _one_line(name), share, *shares])
    _raw(out.getvalue().rstrip("\n"), console)


FORMATS: Mapping[str, Callable[[Sequence[Prediction], str, Console], None]] = {
    "text": as_text,
    "json": as_json,
    "csv": as_csv,
}


def _one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _raw(text: str, console: Console) -> None:
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
