"""Work that must neither slow down nor stop a run, done in order in a separate thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """Runs functions one after the other in a thread. The first error is reported, and no other function runs after it.

    Args:
        on_failure: called once with the error, usually from the thread.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._last: Callable[[], None] | None = None
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fedmoe-background", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        return self._failed.is_set()

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` after everything submitted before; returns immediately."""
        self._queue.put(work)

    def fail(self, error: BaseException) -> None:
        """Report ``error`` as if work had raised it, unless something has already failed."""
        if not self.failed:
            self._failed.set()
            self._on_failure(error)

    def close(self, timeout: float, last: Callable[[], None]) -> bool:
        """Wait at most ``timeout`` seconds for all work; whether it is done. ``last`` runs even after a failure."""
        self._last = last
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            if not self.failed:
                self._do(work)
        assert self._last is not None
        self._do(self._last)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # also SystemExit: nothing in this thread may end the process
            self.fail(error)
