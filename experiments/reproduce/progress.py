"""What is shown of the runs: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskID

from experiments.reproduce.plan import Run
from fedmoe.display import Bars, Words, say
from fedmoe.runs.records import read_rounds


def last_round(run: Run) -> tuple[int, float | None]:
    """The last round on record, -1 where there is none, and its accuracy in percent where it was evaluated."""
    records = read_rounds(run.folder) if (run.folder / "rounds.jsonl").exists() else []
    if not records:
        return -1, None
    accuracy = records[-1].accuracy
    return records[-1].round, accuracy["mean"] if accuracy else None


@dataclass
class Running:
    """A run under way: when it was started, and when its first round showed that it was ready, by the clock."""

    run: Run
    start: float
    before: int  # the round it goes on from
    ready: float | None = None


class Estimate:
    """How much is done, and how many seconds are left.

    A run takes its start (packages, CLIP, features), and then its work at the data set's measured pace.
    """

    def __init__(self, runs: Iterable[Run], jobs: int) -> None:
        self.todo = {run.name: run for run in runs}
        self.jobs, self.total = jobs, sum(run.work for run in self.todo.values())
        self.starts: list[float] = []
        self.paces: dict[str, tuple[float, float]] = {}  # data -> work, seconds

    def ended(self, one: Running, now: float, ok: bool) -> None:
        """A run has ended; one that failed measures nothing."""
        self.todo.pop(one.run.name, None)
        if ok:
            ready = now if one.ready is None else one.ready
            self.starts.append(ready - one.start)
            work, seconds = self.paces.get(one.run.data, (0.0, 0.0))
            done = _share(one, one.run.rounds) if one.run.rounds else 0.0
            self.paces[one.run.data] = work + done * one.run.work, seconds + now - ready

    def left(self, running: Sequence[Running], now: float) -> float | None:
        """Seconds until all is done; None while nothing has been measured."""
        paces = dict(self.paces)
        for one in running:
            at, _ = last_round(one.run)
            if one.ready is not None and at > one.before:
                work, seconds = paces.get(one.run.data, (0.0, 0.0))
                paces[one.run.data] = work + _share(one, at) * one.run.work, seconds + now - one.ready
        work, seconds = (sum(pace[i] for pace in paces.values()) for i in (0, 1))
        if not work:
            return None
        starts = self.starts or [one.ready - one.start for one in running if one.ready is not None]
        rest = 0.0
        for run in self.todo.values():
            going = any(one.run is run for one in running)
            own = paces.get(run.data, (work, seconds))
            share = max(0, last_round(run)[0]) / max(1, run.rounds)
            rest += run.work * (1 - share) * own[1] / (own[0] or 1.0)
            rest += 0.0 if going else sum(starts) / max(1, len(starts))
        return rest / max(1, min(self.jobs, len(self.todo)))

    def done(self) -> float:
        """Share of all work that is done."""
        rest = sum(run.work * (1 - max(0, last_round(run)[0]) / max(1, run.rounds)) for run in self.todo.values())
        return 1 - rest / self.total if self.total else 1.0


def _share(one: Running, at: int) -> float:
    """The share of a run's rounds that were done since it was started."""
    return max(0, at - one.before) / max(1, one.run.rounds)


class Display:
    """One bar for everything and one for each running run; off a terminal a line for each start, quarter and end."""

    def __init__(self, console: Console, title: str, count: int, estimate: Estimate) -> None:
        self.console, self.count, self.estimate = console, count, estimate
        self.finished = self.failed = 0
        self.running: dict[str, Running] = {}
        self._told: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Bars(console, Words(style="bold"), BarColumn(24), Words("text"))
        self._all = self._bars.add_task(title, total=1.0)

    def start(self, run: Run) -> None:
        """A run begins, or goes on."""
        at, _ = last_round(run)
        self.running[run.name] = Running(run, time.monotonic(), max(0, at))
        self._told[run.name] = -1 if at < 0 else 4 * at // max(1, run.rounds)
        self._tasks[run.name] = self._bars.add_task(f"  {run.name}", total=max(1, run.rounds), text="starting")
        if self._bars.disable:
            self._line(f"{run.name}: started" if at < 0 else f"{run.name}: goes on after round {at}")

    def end(self, run: Run, why: str = "") -> None:
        """A run has ended; ``why`` it failed, if it did."""
        one, now = self.running.pop(run.name), time.monotonic()
        self.finished += not why
        self.failed += bool(why)
        self.estimate.ended(one, now, not why)
        self._bars.remove_task(self._tasks.pop(run.name))
        accuracy = last_round(run)[1]
        how = f"FAILED, {why}" if why else "finished" if accuracy is None else f"{accuracy:.2f} %"
        self._line(f"{run.name}: {how}, {_span(now - one.start)} ({self._overall()})")

    def update(self) -> None:
        """Show how far the running runs are."""
        for name, one in self.running.items():
            at, accuracy = last_round(one.run)
            if one.ready is None and at >= one.before:
                one.ready = time.monotonic()
            text = f"round {at}/{one.run.rounds}" + (f", {accuracy:.1f} %" if accuracy is not None else "")
            if not self._bars.disable:
                if at >= 0:
                    self._bars.update(self._tasks[name], completed=at, text=text)
            elif at >= 0 and (quarter := 4 * at // max(1, one.run.rounds)) > self._told[name]:
                self._told[name] = quarter
                self._line(f"{name}: {text} ({self._overall()})")
        if not self._bars.disable:
            self._bars.update(self._all, completed=self.estimate.done(), text=self._overall())

    def close(self) -> None:
        """Take the bars off the screen."""
        self._bars.stop()

    def _overall(self) -> str:
        left = self.estimate.left(list(self.running.values()), time.monotonic())
        failed = f", {self.failed} failed" if self.failed else ""
        span = "time left unknown" if left is None else f"{_span(left)} left"
        return f"{self.finished} of {self.count} runs{failed}, {span}"

    def _line(self, text: str) -> None:
        say(self.console, text)


def _span(seconds: float) -> str:
    """A time in words."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def tail(log: Path) -> str:
    """The line of a log that says why a run failed: its last error, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error:")]
    return (errors or lines or [""])[-1]
