"""Progress of an extraction on a console: a bar with images/s, or lines where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from fedmoe.display import Bars, Words, say

_EVERY = 10.0  # seconds between two lines


class RateColumn(ProgressColumn):
    """Images per second over the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s")


@contextmanager
def extraction_progress(console: Console, title: str = "image features") -> Iterator[Callable[[int, int], None]]:
    """A function ``progress(images done, images in all)`` that shows both and the images/s while the block lasts."""
    with Bars(console, Words(), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn()) as bars:
        if bars.disable:
            yield _Lines(console, title)
        else:
            bar = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)


class _Lines:
    """A line every few seconds; none for what is done within them."""

    def __init__(self, console: Console, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._title, self._clock = console, title, clock
        self._time, self._done = clock(), 0

    def __call__(self, done: int, total: int) -> None:
        seconds = self._clock() - self._time
        if seconds < _EVERY:
            return
        rate = (done - self._done) / seconds
        say(self._console, f"{self._title}: {done:,} of {total:,}, {rate:,.0f} images/s")
        self._time, self._done = self._clock(), done
