"""Flower's ``Backend``, on processes forked from one that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend import Backend

from fedmoe.engine.actor import PRELOAD, serve
from fedmoe.errors import UserError

_MOST_DEATHS = 3  # without an answer in between
_PATIENCE = 2.0  # seconds for a process to end by itself


class ForkBackend(Backend):
    """A pool of worker processes. One that dies is replaced; the message that it worked on has failed.

    Args:
        folder: what the workers share.
        workers: their number.
        gpus: the share of a GPU that each gets; 0: they choose as this process does.
        threads: of torch in each.
    """

    def __init__(self, folder: Path, workers: int, gpus: float, threads: int) -> None:
        super().__init__({})
        self.folder, self.workers, self.gpus, self.threads = folder, workers, gpus, threads
        self._context = multiprocessing.get_context("forkserver")
        self._idle: queue.SimpleQueue[tuple[int, Any, Connection]] = queue.SimpleQueue()
        self._all: dict[int, tuple[Any, Connection]] = {}
        self._deaths = 0

    def build(self, app_fn: Callable[[], ClientApp] | None = None) -> None:
        """Start the workers, which make the ClientApp of ``actor.client_app``."""
        self._context.set_forkserver_preload(["fedmoe.engine.actor"])
        os.environ[PRELOAD] = str(self.folder / "work.pt")
        try:
            for number in range(self.workers):
                self._start(number)
        except OSError as error:
            if "AF_UNIX" not in str(error):
                raise
            raise UserError(
                f"The folder for temporary files, {tempfile.gettempdir()}, has too long a path for the workers' "
                "socket; valid is a shorter one, which the environment variable TMPDIR names."
            ) from error
        finally:
            del os.environ[PRELOAD]

    @property
    def num_workers(self) -> int:
        return self.workers

    def is_worker_idle(self) -> bool:
        return not self._idle.empty()

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Let the next idle worker answer a message; waits for one.

        Raises:
            RuntimeError: the worker has died.
            UserError: workers die again and again.
        """
        number, process, line = self._idle.get()
        try:
            line.send((message, context))
            answer = line.recv()
        except (EOFError, OSError) as error:
            process.join(_PATIENCE)
            self._deaths += 1
            if self._deaths > _MOST_DEATHS:
                self._idle.put((number, process, line))
                raise UserError(
                    f"The worker processes of the simulation end again and again (exit code {process.exitcode}), "
                    "perhaps for want of memory; valid are fewer engine.actors. The same command continues after the "
                    "last finished round."
                ) from error
            self._start(number)
            raise RuntimeError(f"its worker process ended (exit code {process.exitcode})") from error
        self._deaths = 0
        self._idle.put((number, process, line))
        return answer

    def terminate(self) -> None:
        for _, line in self._all.values():
            line.close()
        for process, _ in self._all.values():
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()

    def _start(self, number: int) -> None:
        mine, theirs = self._context.Pipe()
        device = int(number * self.gpus) if self.gpus else None
        arguments = (theirs, str(self.folder), self.threads, device)
        process = self._context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._all[number] = (process, mine)
        self._idle.put((number, process, mine))
