"""What is printed while something runs: lines, and on a terminal live bars.

Labels, names, paths and error texts come from outside: in none of them is markup, and a terminal obeys none of it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from fedmoe.errors import printable


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is, with control characters written as escape sequences. Long lines are not broken."""
    console.print(printable(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr)


def log_as_text() -> None:
    """Print the package's warnings to stderr as Python does by itself, but with control characters escaped."""
    logger = logging.getLogger("fedmoe")
    if not logger.hasHandlers():  # as Python does: where someone handles them already, nothing is printed besides
        logger.addHandler(_Log())


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


class Bars:
    """Live bars below the lines of a terminal. Elsewhere there are none, ``live`` is False, and lines must do.

    Args:
        columns: rich's columns, and ``Words`` for text.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        if self._bars is not None:
            self._bars.start()

    @property
    def live(self) -> bool:
        return self._bars is not None

    def add(self, title: str = "", total: float | None = None, completed: float = 0, **fields: Any) -> TaskID:
        """A new bar; what it is called by."""
        if self._bars is None:
            return TaskID(0)
        return self._bars.add_task(title, total=total, completed=int(completed), **fields)

    def update(self, bar: TaskID, **changes: Any) -> None:
        """Change what ``add`` was given."""
        if self._bars is not None:
            self._bars.update(bar, **changes)

    def remove(self, bar: TaskID) -> None:
        if self._bars is not None:
            self._bars.remove_task(bar)

    def close(self) -> None:
        """Take the bars off the screen; more than one call does no harm."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
