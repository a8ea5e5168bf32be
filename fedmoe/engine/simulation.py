"""Clients in worker processes on this machine: Flower's messages and ClientApp on a backend of our own.

Flower's own backend starts a Ray cluster, which listens on all interfaces and whose actors had 646 MB of their own each
(540 MB are what importing torch and Lightning leaves in a process). So ``ForkBackend`` implements Flower's ``Backend``
with processes forked from one that has imported everything already: they share that memory, are there at once, and
talk through pipes. Nor is Flower's loop around its backend used, which polls ten times a second and looks through all
messages for each node.

What the clients share (CLIP, features, the method) is written to a file once, and the workers map it into memory.
Clients' states are files as well, since any worker may play any client; checkpoints hold them as those of a run in one
process do, and either continues the other. ``open`` starts everything, ``close`` stops it, and all ends with this
process, however it ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe.client.disk import DiskStates
from fedmoe.client.work import ClientWork
from fedmoe.config import EngineConfig
from fedmoe.engine.flower import order_message, read_answer, require_flower
from fedmoe.engine.line import Answer, Order
from fedmoe.engine.remote import RemoteFleet
from fedmoe.errors import UserError
from fedmoe.federation.fleet import Summed, require_states, sum_in_the_open
from fedmoe.protocol.records import About, ClientState, Update
from fedmoe.server.state import Known

_NODE = 1  # the one node: any worker answers for any client
_POLL = 0.5  # seconds
_AHEAD = 3  # orders on their way for each worker


class SimulatedFleet(RemoteFleet):
    """Clients in worker processes on this machine."""

    def __init__(self, work: ClientWork, config: EngineConfig) -> None:
        self.workers = WorkerLine(work, config)
        super().__init__(work, self.workers, config, window=_AHEAD * self.workers.actors, trusted=True)
        self._read_states: dict[int, tuple[int, ClientState]] = {}  # client -> version, state

    @property
    def withheld(self) -> bool:
        return False  # all is on one machine

    def sum(self, updates: Sequence[Update], round: int) -> Summed:
        return sum_in_the_open(updates)

    @property
    def kept(self) -> DiskStates:
        return DiskStates(self.workers.folder / "states", durable=False)

    def open(self, run: str) -> None:
        """Start the workers."""
        self.workers.open()
        self._where = dict.fromkeys(range(self.work.config.clients), _NODE)
        self._greeted = {_NODE}

    def about(self, client_id: int) -> About:
        return self.work.about(client_id)

    def states(self, known: Mapping[int, Known]) -> dict[int, ClientState]:
        for i in known:
            if self._read_states.get(i, (0,))[0] != known[i].version:
                self._read_states[i] = (known[i].version, self.kept.get(i, known[i].version))
        return {i: self._read_states[i][1] for i in sorted(known)}

    def release(self, known: Mapping[int, Known], replaced: Callable[[Tensor], Tensor]) -> None:
        for i in known:
            version, state = self._read_states[i]
            self._read_states[i] = (version, state.with_tensors(replaced))

    def restore(self, known: Mapping[int, Known], states: Mapping[int, ClientState]) -> None:
        require_states(self.work.module, known, states)
        for i, state in states.items():
            self.kept.put(i, known[i].version, state)
            self._read_states[i] = (known[i].version, state)


class WorkerLine:
    """The line to the worker processes."""

    def __init__(self, work: ClientWork, config: EngineConfig) -> None:
        self.config = config
        self.actors = _actors(config)
        self._work: ClientWork | None = work
        self._backend: Any = None
        self._orders: queue.SimpleQueue[tuple[str, Order] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, Answer | str | UserError]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._count = 0

    @cached_property
    def folder(self) -> Path:
        """What the workers share; only this user can read it."""
        return Path(tempfile.mkdtemp(prefix="fedmoe-"))

    def open(self) -> None:
        require_flower("flower_simulation")
        from flwr.supercore.task_identity import TaskIdentity

        from fedmoe.engine.backend import ForkBackend

        assert self._work is not None
        _write(self._work, self.folder / "work.pt")
        self._work = None  # the file is what counts from now on
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # of messages, none of which leaves
        self._backend = ForkBackend(self.folder, self.actors, self.config.gpus, torch.get_num_threads())
        self._backend.build()
        self._threads = [threading.Thread(target=self._work_off, daemon=True) for _ in range(self.actors)]
        for thread in self._threads:
            thread.start()

    def nodes(self) -> Collection[int]:
        return {_NODE}

    def owner(self, node: int) -> int | None:
        return None

    def send(self, node: int, order: Order) -> str:
        self._count += 1
        self._orders.put((str(self._count), order))
        return str(self._count)

    def receive(self, names: Collection[str]) -> Sequence[tuple[str, Answer | str]]:
        try:
            name, answer = self._answers.get(timeout=_POLL)
        except queue.Empty:
            return []
        if isinstance(answer, UserError):
            raise answer
        return [(name, answer)] if name in names else []

    def traffic(self) -> tuple[int, int] | None:
        return None  # nothing leaves this machine

    def close(self) -> None:
        for _ in self._threads:
            self._orders.put(None)
        if self._backend is not None:
            self._backend.terminate()
            self._backend = None
        if "folder" in vars(self):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _work_off(self) -> None:
        """Hand orders to one worker after the other, until ``close``."""
        from flwr.app import Context, RecordDict

        while (item := self._orders.get()) is not None:
            name, order = item
            message = order_message(_NODE, order)
            message.metadata.__dict__["_message_id"] = name
            context = Context(1, _NODE, {}, RecordDict(), {})
            try:
                answer, _ = self._backend.process_message(message, context)
                self._answers.put((name, read_answer(answer)))
            except UserError as error:
                self._answers.put((name, error))
            except Exception as error:
                self._answers.put((name, " ".join(str(error).split())[:500]))


def _write(work: ClientWork, path: Path) -> None:
    """Write all that a worker needs; tensors lie in the file as they do in memory."""
    import cloudpickle

    try:
        torch.save(work, path, pickle_module=cloudpickle)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UserError(
            f"{type(work.method).__name__} and its data cannot be handed to worker processes ({error}); valid is "
            "engine.kind = in_process."
        ) from error


def _actors(config: EngineConfig) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not config.gpus:
        return config.actors or cores
    shares = max(1, int(torch.cuda.device_count() / config.gpus))
    return min(config.actors, shares) if config.actors else shares
