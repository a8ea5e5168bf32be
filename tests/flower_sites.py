"""A federation of real processes on this machine: a SuperLink, SuperNodes and clients, with TLS and keys."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fedmoe.cli import main
from fedmoe.config import EngineConfig
from fedmoe.engine.credentials import make_credentials
from fedmoe.engine.deployment import SuperLinkLine
from fedmoe.engine.line import HELLO, Answer, Order
from fedmoe.engine.site import Site
from fedmoe.io import read_jsonl

CLIENTS = 4
SETTINGS = (
    "--config=configs/smoke.yaml",
    "--federation.participation=1.0",
    "--federation.rounds=3",
    "--method.num_experts=2",
    "--data.shots=16",
)
LINK, NODE = "flower-superlink", "flower-supernode"
MISSED = "is not in `RUNNING` status. Ignoring message "  # a SuperNode's word on an order of a run that has ended
LONG = 300  # seconds for what takes a few on a quiet machine
for _name, _value in {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}.items():
    os.environ[_name] = _value
FORK = multiprocessing.get_context("forkserver")
_FLOWERS = ("flwr.superlink.cli", "flwr.superlink.main", "flwr.supernode.cli", "flwr.supernode.main")
_OURS = ("fedmoe.experiment", "fedmoe.report.plots", "fedmoe.engine.deployment", "fedmoe.engine.worker", "flower_sites")
FORK.set_forkserver_preload([*_OURS, *_FLOWERS])


def until(true: Callable[[], bool], what: str | Callable[[], str], seconds: float = LONG) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what if isinstance(what, str) else what()
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands out for connections."""
    while True:
        port = 10_000 + int.from_bytes(os.urandom(2), "little") % 20_000
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


# The lives of processes, forked from one that has imported everything and has done nothing else


def _begin(log: str, folder: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ["FLWR_HOME"] = folder
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)


def command_line(args: list[str], log: str, folder: str, clock: float, garbage: bool, slow: float = 0.0) -> None:
    """The life of a process with fedmoe's command line.

    ``clock``: seconds that Flower's clock is ahead; ``garbage``: whether a client's uploads are random bytes; ``slow``:
    seconds that a client takes for an answer.
    """
    _begin(log, folder)
    _set_clock("flwr.app.message.message", clock)
    if garbage:
        setattr(Site, "_train", lambda self, order: Answer("trained", os.urandom(5_000)))  # noqa: B010
    if slow:
        quick = Site.answer
        setattr(Site, "answer", lambda self, order: (time.sleep(slow), quick(self, order))[1])  # noqa: B010
    code = main(args)
    sys.stdout.flush()
    os._exit(code)


def program(name: str, args: list[str], log: str, folder: str, slow: float, clock: float) -> None:
    """The life of a process with a program of Flower's, whose SuperNode looks for messages every 3 s: here, 0.1 s.

    ``slow``: seconds that a SuperNode takes from announcing a task to having its message, as on a loaded machine. While
    there is a file ``log``.hold, a SuperNode does not tell the SuperLink that it has an order, see ``Sites.end_early``.
    """
    _begin(log, folder)
    if name == NODE:
        from flwr.supernode import start_client_internal
        from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

        short = {"sleep": lambda seconds: time.sleep(min(seconds, 0.1))}
        start_client_internal.time = SimpleNamespace(**{**vars(time), **short})
        if slow:
            announce = InMemoryNodeState.create_task
            InMemoryNodeState.create_task = lambda *a, **k: (announce(*a, **k), time.sleep(slow))[0]
        take, hold = start_client_internal._pull_and_store_message, Path(f"{log}.hold")

        def take_late(confirm_message_received: Callable[..., None], **rest: Any) -> int | None:
            def confirm(*args: Any) -> None:
                until(lambda: not hold.exists(), "it is held for ever")
                confirm_message_received(*args)

            return take(confirm_message_received=confirm, **rest)

        start_client_internal._pull_and_store_message = take_late
        _set_clock("flwr.supernode.node_auth_http_interceptor", clock)
    sys.argv = [name, *args]
    (entry,) = entry_points(group="console_scripts", name=name)
    entry.load()()


def _set_clock(module: str, ahead: float) -> None:
    from datetime import timedelta

    if ahead:
        found: Any = importlib.import_module(module)
        right = found.now
        found.now = lambda: right() + timedelta(seconds=ahead)


class Proxy:
    """Forwards TCP connections until it is cut: then bytes lie where they are, as behind a cable that is pulled."""

    def __init__(self, target: int) -> None:
        self._open = threading.Event()
        self._open.set()
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._server.close()
        self._open.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._open.wait()
        with contextlib.suppress(OSError):
            far = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Sites:
    """A SuperLink, and for each client a SuperNode and a process that holds its data.

    Args:
        folder: where everything lies.
        clients: their number.
        slow: SuperNode -> its slowness, see ``program``.
        through: SuperNodes whose connection goes through a ``Proxy``.
    """

    def __init__(self, folder: Path, clients: int = CLIENTS, slow: dict[int, float] | None = None, through=()) -> None:
        torch.set_num_threads(1)
        self.folder, self.keys, self.count = folder, folder / "keys", clients
        self.slow = slow or {}
        make_credentials(self.keys, clients, ["127.0.0.1", "localhost"])
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.settings = (*SETTINGS, f"--federation.clients={clients}", f"--features.cache_dir={folder / 'features'}")
        self.nodes: dict[int, Any] = {}
        self.ports = {i: free_port() for i in range(clients)}
        self.clients: dict[int, Any] = {}
        self.proxies = {i: Proxy(self.port) for i in through}
        self.others: list[Any] = []
        server = self.keys / "server"
        self.engine = (
            *("--engine.kind=flower", f"--engine.address={self.address}", f"--engine.certificate={server / 'ca.pem'}"),
            *(f"--engine.secret={server / 'secret'}", f"--engine.keys={server / 'keys.json'}"),
            *(f"--engine.timeout={LONG}", f"--engine.connect={LONG}", f"--engine.signing={server / 'signing.key'}"),
        )

    def begin(self) -> None:
        """Run the federation in one process, which others are compared with, and start all of its processes."""
        assert main([*self.fit("here"), "--engine.kind=in_process"]) == 0
        self.start_link()
        assert main(["engine", "register", *self.settings, *self.engine]) == 0
        for i in range(self.count):
            self.start_node(i)
            self.start_client(i)
        for i in range(self.count):
            until(self._says(f"node-{i}", "SuperNode ID"), "a SuperNode does not start")
            until(self._says(f"client-{i}", "training and"), "a client does not start")

    def start_link(self) -> None:
        before = self.log("link").count("Uvicorn running")
        self.link = self._link(self.port, self.keys / "server", "link", "--database", str(self.folder / "link.db"))
        until(lambda: self.log("link").count("Uvicorn running") > before, "the SuperLink does not start")

    def _link(self, port: int, server: Path, log: str, *options: str) -> Any:
        args = ["--host", "127.0.0.1", "--port", str(port), "--isolation", "process", "--enable-supernode-auth"]
        args += ["--superexec-auth-secret-file", str(server / "secret"), "--ssl-certfile", str(server / "server.pem")]
        args += ["--ssl-keyfile", str(server / "server.key"), "--ssl-ca-certfile", str(server / "ca.pem"), *options]
        return self._start(program, (LINK, args), log, 0.0, 0.0)

    def another_link(self, server: Path, log: str) -> int:
        """Start a SuperLink besides; its port."""
        port = free_port()
        self._link(port, server, log)
        until(lambda: "Uvicorn running" in self.log(log), "the SuperLink does not start")
        return port

    def _start(self, life: Callable[..., None], before: tuple[Any, ...], log: str, *after: Any) -> Any:
        arguments = (*before, str(self.folder / f"{log}.log"), str(self.folder / "flwr"), *after)
        process = FORK.Process(target=life, args=arguments)
        process.start()
        self.others.append(process)
        return process

    def start_node(self, i: int, key: Path | None = None, log: str = "", clock: float = 0.0) -> Any:
        """Start a SuperNode; with a ``key`` or a ``log``, one besides the client's own."""
        site, own = self.keys / f"site-{i}", not log
        superlink = f"127.0.0.1:{self.proxies[i].port}" if i in self.proxies else self.address
        args = ["--superlink", superlink, "--root-certificates", str(site / "ca.pem"), "--host", "127.0.0.1"]
        args += ["--auth-supernode-private-key", str(key or site / "key"), "--isolation", "process"]
        args += ["--port", str(self.ports[i] if own else free_port())]
        args += ["--superexec-auth-secret-file", str(site / "secret")]
        process = self._start(program, (NODE, args), log or f"node-{i}", self.slow.get(i, 0.0), clock)
        if own:
            self.nodes[i] = process
        return process

    def bring_back_node(self, i: int) -> None:
        """As a supervisor does: the SuperLink lets a node in again when its last sign of life has expired."""
        end, before = time.monotonic() + LONG, self.log(f"node-{i}").count("SuperNode ID")
        while self.log(f"node-{i}").count("SuperNode ID") == before:
            assert time.monotonic() < end, self.log(f"node-{i}")[-2000:]
            if not self.nodes[i].is_alive():
                self.start_node(i)
            time.sleep(0.2)

    def start_client(self, i: int, *options: str, clock: float = 0.0, garbage: bool = False, slow: float = 0.0) -> None:
        site = self.keys / f"site-{i}"
        args = ["client", *self.settings, f"--client={i}", f"--supernode=127.0.0.1:{self.ports[i]}"]
        args += [f"--secret={site / 'secret'}", f"--server_key={site / 'server.pub'}", f"--states={self.states}"]
        self.clients[i] = self._start(command_line, ([*args, *options],), f"client-{i}", clock, garbage, slow)

    @property
    def states(self) -> Path:
        return self.folder / "states"

    def stop(self, process: Any) -> None:
        process.kill()
        process.join()

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def line(self) -> SuperLinkLine:
        """The server's end of a run, not open yet."""
        server = self.keys / "server"
        files = {"certificate": "ca.pem", "secret": "secret", "keys": "keys.json", "signing": "signing.key"}
        paths: Any = {key: str(server / name) for key, name in files.items()}
        return SuperLinkLine(EngineConfig(kind="flower", address=self.address, timeout=LONG, **paths))

    def node_of(self, line: SuperLinkLine, client: int) -> int:
        """The node of a client in a run."""
        until(lambda: client in map(line.owner, line.nodes()), "it is not connected")
        return next(node for node in line.nodes() if line.owner(node) == client)

    def end_early(self, i: int) -> None:
        """A run that ends just as a SuperNode takes an order of it: it is left with the answer to that order."""
        log, hold, client = f"node-{i}", self.folder / f"node-{i}.log.hold", f"client-{i}"
        missed, answered = (self.log(log).count(MISSED), self.log(client).count("query: hello"))
        hold.touch()
        line = self.line()
        line.open()
        line.send(self.node_of(line, i), Order(HELLO, "early"))
        until(lambda: self.log(client).count("query: hello") > answered, "the client gets no order")
        line.close()
        hold.unlink()
        until(lambda: self.log(log).count(MISSED) > missed, lambda: self.log(log)[-2000:])

    def _says(self, log: str, text: str) -> Callable[[], bool]:
        return lambda: text in self.log(log)

    def fit(self, name: str, *options: str) -> list[str]:
        folder = f"--output.dir={self.folder / 'runs'}"
        return ["fit", *self.settings, folder, f"--output.name={name}", *self.engine, *options]

    def start_fit(self, name: str, *options: str) -> Any:
        return self._start(command_line, (self.fit(name, *options),), name, 0.0, False)

    def lines(self, name: str, file: str = "rounds.jsonl") -> list[dict[str, Any]]:
        path = self.folder / "runs" / name / file
        return [{**line, "seconds": None, "line": None} for line in read_jsonl(path)] if path.exists() else []

    def failed(self, name: str, client: int) -> dict[int, str]:
        """Round -> why the client failed in it."""
        return {
            line["round"]: line["failed"][str(client)] for line in self.lines(name) if str(client) in line["failed"]
        }

    def close(self) -> None:
        for process in self.others:
            process.kill()
        for process in self.others:
            process.join()
        for proxy in self.proxies.values():
            proxy.close()


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Sites]:
    """Sites that run, until the end of the block."""
    sites = Sites(folder, **options)
    try:
        sites.begin()
        yield sites
    finally:
        sites.close()
