"""What is printed while something runs: lines, and on a terminal live bars.

Labels, names, paths and error texts come from outside: in none of them is markup, and a terminal obeys none of it.
"""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from fedmoe.errors import printable


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is, with control characters written as escape sequences. Long lines are not broken."""
    console.print(printable(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def format_bytes(number: float, like: float | None = None) -> str:
    """A number of bytes in decimal units: ``"12.3 kB"``; in the unit that suits ``like`` where that is given."""
    size = number if like is None else like
    factor, unit = pick_unit_and_suffix(int(size), ["B", "kB", "MB", "GB"], 1000)
    return f"{number:.0f} B" if unit == "B" else f"{number / factor:.1f} {unit}"


_WITH_PLACE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEVELS = ("debug", "info", "warning", "error")  # of what is said, from most to least


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr)


def log_as_text(level: str = "info") -> None:
    """Print the package's messages from a level on to stderr as Python does by itself, but with control characters
    escaped; with the level debug also when and where they come from."""
    logger = logging.getLogger("fedmoe")
    logger.setLevel(level.upper())
    if not logger.hasHandlers():  # as Python does: where someone handles them already, nothing is printed besides
        logger.addHandler(_Log())
    for handler in logger.handlers:
        if isinstance(handler, _Log):
            handler.setFormatter(logging.Formatter(_WITH_PLACE if level == "debug" else None))


def plain(text: str, style: str = "") -> Text:
    """Text from outside, for a cell of a table."""
    return Text(printable(text), style)


class Words(ProgressColumn):
    """A column of the words that each bar has for it: its title, or the field of that name."""

    def __init__(self, field: str = "title", style: str = "") -> None:
        super().__init__()
        self._field, self._style = field, style

    def render(self, task: Task) -> Text:
        return plain(task.description if self._field == "title" else str(task.fields.get(self._field, "")), self._style)


class Bars(Progress):
    """Live bars below the lines of a terminal. Elsewhere there are none, ``disable`` is True, and lines must do.

    Args:
        columns: rich's columns, and ``Words`` for text.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.start()
