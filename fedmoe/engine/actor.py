"""A worker process of a simulation, which is forked from one that has imported this file and has done nothing else."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from flwr.clientapp import ClientApp

import fedmoe.methods  # noqa: F401  (imported before the fork)
from fedmoe.client.disk import DiskStates
from fedmoe.client.work import ClientWork
from fedmoe.engine.flower import answer_message, read_order
from fedmoe.engine.site import Site

PRELOAD = "FEDMOE_PRELOAD"
"""Environment variable: the file of a simulation's work, which is loaded before the fork, for all workers at once."""


def load_work(path: Path) -> ClientWork:
    """What the clients of a simulation do. The file is our own, in a folder that only this user can read."""
    work: ClientWork = torch.load(path, mmap=True, weights_only=False)
    return work


_loaded: dict[str, ClientWork] = {}
if _path := os.environ.get(PRELOAD):
    with contextlib.suppress(Exception):  # a worker tries again, and its error is seen
        _loaded[_path] = load_work(Path(_path))
    gc.collect()
    atexit.register(gc.unfreeze)
    gc.freeze()  # so that collections in a worker do not touch, and thereby copy, what it shares with the others


def serve(line: Connection, folder: str, threads: int, device: int | None) -> None:
    """Answer messages until the other end of the line is closed.

    Args:
        folder: what the workers share.
        threads: of torch; the same number as elsewhere gives the same bits.
        device: the GPU to see; None: all there are.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that drives; it then ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    torch.set_num_threads(threads)
    app = client_app(Path(folder))
    while True:
        try:
            message, context = line.recv()
            line.send((app(message, context), context))
        except (EOFError, OSError):
            shutil.rmtree(folder, ignore_errors=True)  # the driver may have been killed
            os._exit(0)


def client_app(folder: Path) -> ClientApp:
    """Flower's ClientApp around all clients of a simulation."""
    path = folder / "work.pt"
    work = _loaded.get(str(path)) or load_work(path)
    states = DiskStates(folder / "states", durable=False)
    site = Site(work, range(work.config.clients), lambda run: states, tracebacks=True)
    app = ClientApp()

    def answer(message: Any, context: Any) -> Any:
        return answer_message(site.answer(read_order(message)), message)

    for kind in (app.train, app.evaluate, app.query):
        kind()(answer)
    return app
