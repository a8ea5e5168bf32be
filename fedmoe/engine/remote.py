"""A fleet of clients at the other end of a line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from fedmoe.client.work import ClientWork
from fedmoe.config import EngineConfig
from fedmoe.engine.check import Checks
from fedmoe.engine.hello import Introduction, identity, read_hello
from fedmoe.engine.line import EVALUATE, HELLO, TRAIN, Answer, Line, Order
from fedmoe.engine.secure_sum import sum_securely
from fedmoe.engine.site import nothing
from fedmoe.errors import UserError, printable
from fedmoe.federation.fleet import Summed
from fedmoe.protocol.records import (
    About,
    ClientState,
    Failed,
    Scored,
    ScoreJob,
    SumJob,
    Summand,
    Trained,
    TrainJob,
    Update,
)
from fedmoe.protocol.wire import to_bytes
from fedmoe.server.state import Known

log = logging.getLogger(__name__)
_PAUSE = 0.1  # seconds between two looks for clients
Job = TypeVar("Job", TrainJob, ScoreJob, SumJob)


class RemoteFleet:
    """Clients that get bytes and answer in bytes.

    Orders are pulled as far ahead as ``window`` allows, and answers are handed on as they come. A client that does not
    answer in time, or whose answer cannot be used, has failed; a late answer is dropped, since orders name the version
    of the state that counts.

    Args:
        work: the server's own copy of what clients do, for the names and shapes of parameters; it is not run.
        line: where the clients are.
        config: timeouts.
        window: orders on their way at once.
        trusted: whether a client's UserError stops the run; otherwise that client has failed.
    """

    def __init__(
        self, work: ClientWork, line: Line, config: EngineConfig, window: int = 64, trusted: bool = False
    ) -> None:
        self.work, self.line, self.config, self.window, self.trusted = work, line, config, window, trusted
        classes = len(work.module.prompts.class_names)
        most_weights = work.config.clients if work.reports else 0
        self.checks = Checks(work.module.shared_start(), classes, most_weights, self.withheld)
        self._crossed: dict[str, float] = {}
        self._expected = identity(work)
        self._known: dict[int, Introduction] = {}
        self._where: dict[int, int] = {}
        self._refused: dict[int, str] = {}  # clients whose node has sent a hello of another federation, and why
        self._greeted: set[int] = set()
        self._hellos: dict[str, tuple[int, float]] = {}  # those on their way: node, time
        self._run = ""
        self._traffic = (0, 0)

    @property
    def withheld(self) -> bool:
        """Whether clients keep their uploads from the server."""
        return self.work.config.secure_aggregation

    # Before the first round

    def open(self, run: str) -> dict[str, Any] | None:
        """Reach all clients; what partition.json says of them.

        Raises:
            UserError: a client is missing, or belongs to another federation.
        """
        self._run = run
        self.line.open()
        end, count = time.monotonic() + self.config.connect, self.work.config.clients
        while missing := [i for i in range(count) if i not in self._known]:
            if time.monotonic() > end:
                named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
                raise UserError(
                    f"{len(missing)} of {count} clients have not connected within engine.connect = "
                    f"{self.config.connect:g} seconds ({named}); valid is a federation whose clients all run."
                )
            if not self._greet(strict=True):
                time.sleep(_PAUSE)
        ordered = [self._known[i] for i in range(count)]
        domains = [one.about.domain for one in ordered]
        return {
            "class_names": list(self.work.module.prompts.class_names),
            "counts_train": [one.counts_train for one in ordered],
            "counts_test": [one.counts_test for one in ordered],
            "domains": [str(domain) for domain in domains] if any(domains) else None,
        }

    def close(self) -> None:
        self.line.close()

    def _greet(self, strict: bool = False) -> bool:
        """Forget nodes that are gone, ask new ones who they are, and hear those that have answered; whether any has.

        A node that says nothing holds nobody up, and is asked again after the timeout. ``strict``: a hello of another
        federation stops the run; later, it is only refused.
        """
        present = set(self.line.nodes())
        self._where = {client: node for client, node in self._where.items() if node in present}
        self._greeted &= present
        for node in sorted(present - self._greeted):
            self._hellos[self.line.send(node, Order(HELLO, self._run))] = (node, time.monotonic())
            self._greeted.add(node)
        answers = self.line.receive(list(self._hellos)) if self._hellos else ()
        for name, answer in answers:
            node, _ = self._hellos.pop(name)
            try:
                self._meet(node, answer)
            except UserError as error:
                if strict:
                    raise
                if (owner := self.line.owner(node)) is not None:
                    self._refused[owner] = f"it is refused: {error}"
                log.warning("%s", error)
            except ValueError as error:
                if isinstance(answer, str):  # it never came; it is asked again
                    self._greeted.discard(node)
                log.warning("The hello of node %d cannot be used: %s", node, printable(str(error)))
        now = time.monotonic()
        for name in [name for name, (_, asked) in self._hellos.items() if now - asked > self.config.timeout]:
            self._greeted.discard(self._hellos.pop(name)[0])
        return bool(answers)

    def _meet(self, node: int, answer: Answer | str) -> None:
        if isinstance(answer, str) or answer.kind != "hello":
            said = answer if isinstance(answer, str) else answer.body[:500].decode(errors="replace")
            raise ValueError(said)
        classes, owner = self.checks.num_classes, self.line.owner(node)
        for one in read_hello(answer.body, self._expected, classes, self.work.config.clients):
            if owner is not None and owner != one.client:
                raise UserError(
                    f"A node says that it is client {one.client}, but its key is bound to client {owner}; valid is the "
                    "client that engine.keys names for it."
                )
            other = self._where.get(one.client)
            if other is not None and other != node:
                raise UserError(
                    f"Client {one.client} is connected twice (nodes {other} and {node}); valid is one node a client."
                )
            before = self._known.get(one.client)
            if before is not None and before != one:
                raise UserError(
                    f"Client {one.client} has other data than it said first; valid is the data that it began with."
                )
            self._known[one.client] = one
            self._where[one.client] = node
            self._refused.pop(one.client, None)

    # The rounds

    def about(self, client_id: int) -> About:
        return self._known[client_id].about

    def train(self, jobs: Iterable[TrainJob]) -> Iterator[tuple[TrainJob, Trained | Failed]]:
        for job, answer, waited in self._exchange(TRAIN, jobs):
            result = self._read(answer, "trained", self.checks.trained, job.client_id)
            found = Failed(result, "", waited) if isinstance(result, str) else result
            self._add(trained_seconds=found.seconds, waited_seconds=max(0.0, waited - found.seconds))
            yield job, found

    def score(self, jobs: Iterable[ScoreJob]) -> Iterator[Scored]:
        for job, answer, _ in self._exchange(EVALUATE, jobs):
            result = self._read(answer, "scored", self.checks.scored, job.client_id)
            why = result.reason if isinstance(result, Failed) else result
            yield nothing(job.client_id, f"evaluation: {why}") if isinstance(why, str) else why

    def sum(self, updates: Sequence[Update], round: int) -> Summed:
        def exchange(step: str, jobs: Iterable[SumJob]) -> Iterator[tuple[SumJob, Summand | str]]:
            for job, answer, _ in self._exchange(step, jobs):
                result = self._read(answer, "summand", self.checks.summand, job.client_id)
                yield job, result.reason if isinstance(result, Failed) else result

        return sum_securely(exchange, updates, round, self.checks.shared)

    def crossed(self) -> dict[str, float]:
        sums, self._crossed = self._crossed, {}
        if (traffic := self.line.traffic()) is not None:
            sums |= {"wire_down": traffic[0] - self._traffic[0], "wire_up": traffic[1] - self._traffic[1]}
            self._traffic = traffic
        return sums

    def _add(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self._crossed[name] = self._crossed.get(name, 0) + number

    def states(self, known: Mapping[int, Known]) -> dict[int, ClientState]:
        return {}

    def release(self, known: Mapping[int, Known], replaced: Callable[[Tensor], Tensor]) -> None:
        """Nothing: no state is here."""

    def restore(self, known: Mapping[int, Known], states: Mapping[int, ClientState]) -> None:
        """Nothing: each client keeps its own state, and the server names the version that counts."""

    def _read(self, answer: Answer | str, kind: str, read: Callable[[bytes, int, About], Any], client_id: int) -> Any:
        """What ``read`` makes of an answer of this kind, a ``Failed``, or why there is neither."""
        if isinstance(answer, str):
            return answer
        try:
            if answer.kind == "mistake":
                text = printable(answer.body[:2000].decode(errors="replace"))
                if self.trusted:
                    raise UserError(text)
                return f"its settings: {text}"
            if answer.kind == "failed":
                return self.checks.failed(answer.body)
            if answer.kind != kind:
                raise ValueError(f"it is of kind {answer.kind[:40]!r}")
            return read(answer.body, client_id, self.about(client_id))
        except ValueError as error:
            return f"its answer was refused: {printable(str(error))[:500]}"

    def _exchange(self, ask: str, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer | str, float]]:
        """Each job with its answer or why there is none, and the seconds that it took."""
        self._greet()
        waiting: dict[str, tuple[Job, float]] = {}
        source, more = iter(jobs), True
        while more or waiting:
            while more and len(waiting) < self.window:
                job = next(source, None)
                if job is None:
                    more = False
                elif job.client_id not in self._where:
                    yield job, self._refused.get(job.client_id, "it is not connected"), 0.0
                else:
                    body = to_bytes(job)
                    self._add(down=len(body), messages=1)
                    name = self.line.send(self._where[job.client_id], Order(ask, self._run, body))
                    waiting[name] = (job, time.monotonic())
            for name, answer in self.line.receive(waiting) if waiting else ():
                job, began = waiting.pop(name)
                self._add(up=0 if isinstance(answer, str) else len(answer.body))
                yield job, answer, time.monotonic() - began
            late = [name for name, (_, began) in waiting.items() if time.monotonic() - began > self.config.timeout]
            for name in late:
                job, began = waiting.pop(name)
                yield job, f"no answer within engine.timeout = {self.config.timeout:g} seconds", self.config.timeout
