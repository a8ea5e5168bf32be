"""Callbacks of the round loop: the run folder's logs, checkpoints, and progress on the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedmoe.config import FederationConfig
from fedmoe.display import Bars, Words, format_bytes, say
from fedmoe.federation.accuracy import per_class
from fedmoe.federation.evaluation import Evaluation
from fedmoe.federation.state import FederationState, Watch
from fedmoe.io import append_jsonl, write_json_atomic
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import RoundContext
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.records import Failure, RoundRecord, best_by_validation, read_rounds
from fedmoe.server.state import ServerState

if TYPE_CHECKING:
    from torch import Tensor


class FederationView(Protocol):
    """What a callback sees of the federation.

    Attributes:
        clients: the contents of partition.json.
        name: the data set's.
        rounds_done: the last finished round; -1 for none.
        server: its state after that round.
    """

    method: Method
    config: FederationConfig
    clients: dict[str, Any]
    name: str
    rounds_done: int
    server: ServerState

    def state_of(self, clients: Collection[int] | None) -> FederationState: ...

    def release(self, clients: Sequence[int], replaced: Callable[[Tensor], Tensor]) -> None: ...


class Callback:
    """Hooks of the round loop; a subclass overrides the ones it needs."""

    def on_run_start(self, run: FederationView) -> None:
        """Before the first unfinished round."""

    def on_client_start(self, run: FederationView, context: RoundContext, client_id: int) -> None:
        """Before a client of the cohort trains."""

    def on_client_end(self, run: FederationView, context: RoundContext, client_id: int, loss: float) -> None:
        """After a client of the cohort has trained; ``loss`` is its mean over the steps."""

    def on_client_failed(self, run: FederationView, context: RoundContext, failure: Failure) -> None:
        """After an attempt to train a client has failed, unless that stops the run."""

    def on_evaluation_end(self, run: FederationView, evaluation: Evaluation) -> None:
        """After all clients were evaluated."""

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        """After a round, when the state is that of the finished round."""

    def on_run_end(self, run: FederationView) -> None:
        """After the last round."""

    def close(self) -> None:
        """Release files, threads and the terminal, also after an error; may be called more than once."""


class RunLog(Callback):
    """Appends to rounds.jsonl, clients.jsonl and, where a client fails, failures.jsonl in the run folder.

    confusion.json has the last evaluation's confusion over all clients (true classes in rows) and accuracy per class.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_client_failed(self, run: FederationView, context: RoundContext, failure: Failure) -> None:
        append_jsonl(self.folder / "failures.jsonl", failure.to_json())

    def on_evaluation_end(self, run: FederationView, evaluation: Evaluation) -> None:
        append_jsonl(self.folder / "clients.jsonl", *(score.to_json() for score in evaluation.clients))
        last = {"class_names": run.clients.get("class_names", []), "confusion": evaluation.confusion}
        write_json_atomic(self.folder / "confusion.json", {**last, "per_class": per_class(evaluation.confusion)})

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        append_jsonl(self.folder / "rounds.jsonl", record.to_json())


class Checkpoint(Callback):
    """Saves the state after each round. Comes after ``RunLog``: lines of a round without a checkpoint are dropped.

    With validation splits, the checkpoint of the round with the best validation accuracy so far is kept as well.

    Args:
        folder: the run folder, whose earlier rounds count for the best one; None: only those of this process do.
    """

    def __init__(self, store: StateStore, folder: Path | None = None) -> None:
        self.store, self.folder = store, folder
        self._best, self._watch = -math.inf, Watch()

    def on_run_start(self, run: FederationView) -> None:
        if self.folder is None or run.rounds_done < 0:
            return
        best = best_by_validation(read_rounds(self.folder))
        if best is not None:
            self._best = best["validation"]
            if best["round"] == run.rounds_done:  # it may have been interrupted before it was pinned
                self.store.pin(run.rounds_done)

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        changed = self._watch.changed(run.server)
        clients = changed if self.store.whole else None
        state = run.state_of(clients)
        self.store.save(record.round, state.pieces(), state.rest(), partial=clients is not None)
        if self.store.mapped:
            run.release(record.cohort, self.store.release)
            self.store.renew(run.state_of(record.cohort).pieces())
            self._watch.changed(run.server)  # which now has the same values in other tensors
        if record.validation is not None and record.validation["mean"] > self._best:
            self._best = record.validation["mean"]
            self.store.pin(record.round)


class ProgressDisplay(Callback):
    """Round, client, loss, accuracy and time left: a live bar on a terminal, plain lines elsewhere.

    Args:
        console: where to print.
        label: the method's name.
        interval: seconds between plain lines within a round; the end of a round always prints one.
    """

    def __init__(self, console: Console, label: str, interval: float = 10.0) -> None:
        self.console, self.label, self.interval = console, label, interval
        self._bars: Bars | None = None

    def on_run_start(self, run: FederationView) -> None:
        self._start = self._last_line = time.monotonic()
        self._done, self._trained, self._accuracy = 0, 0, ""
        finished = max(0, run.rounds_done)
        self._todo = run.config.rounds - finished
        if self.console.is_terminal and self._todo > 0:
            self._bars = Bars(
                self.console,
                *(Words(style="bold"), BarColumn(bar_width=24), MofNCompleteColumn(), Words("text")),
                *(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
            )
            self._bar = self._bars.add_task(self.label, total=run.config.rounds, completed=finished)

    def on_client_end(self, run: FederationView, context: RoundContext, client_id: int, loss: float) -> None:
        self._trained += 1
        text = f"round {context.round}, client {client_id}, loss {loss:.3f}{self._accuracy}"
        if self._bars is not None:
            done = context.round - 1 + self._trained / len(context.cohort)
            self._bars.update(self._bar, completed=done, text=text)
        elif time.monotonic() - self._last_line > self.interval:
            self._line(f"{text} ({self._trained} of {len(context.cohort)} clients), {self._left()}")

    def on_client_failed(self, run: FederationView, context: RoundContext, failure: Failure) -> None:
        again = f" (attempt {failure.attempt + 1})" if failure.attempt else ""
        self._line(f"round {failure.round}, client {failure.client} failed{again}: {failure.reason}")

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        self._trained = 0
        self._done += record.round > 0
        if record.accuracy is not None:
            self._accuracy = f", accuracy {record.accuracy['mean']:.1f} ± {record.accuracy['std']:.1f} %"
        if self._bars is not None:
            self._bars.update(self._bar, completed=record.round, text=f"round {record.round}{self._accuracy}")
            return
        loss = "" if record.train_loss is None else f", loss {record.train_loss:.3f}"
        down, up = (format_bytes(record.bytes[key]) for key in ("down", "up"))
        failed = f", {len(record.failed)} failed" if record.failed else ""
        cost = f", {sum(record.seconds.values()):.1f} s, {down} down, {up} up"
        accuracy = self._accuracy if record.evaluated else ""
        self._line(f"round {record.round}/{run.config.rounds}{loss}{failed}{accuracy}{cost}, {self._left()}")

    def on_run_end(self, run: FederationView) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen; also after an error."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _left(self) -> str:
        if not self._done:
            return "time left unknown"
        seconds = (time.monotonic() - self._start) / self._done * (self._todo - self._done)
        return f"{seconds:.0f} s left"

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        say(self.console, f"{self.label}: {text}")
