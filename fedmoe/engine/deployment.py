"""The server's end of a deployment: it drives a run on a Flower SuperLink, whose SuperNodes stand before the clients.

The SuperLink runs with ``--isolation process``, so it starts no app of its own: this process registers a run, acquires
its task as Flower's own ServerApp process would, and sends and receives through Flower's ``HttpGrid``. The app that a
run must have holds no code of ours: a SuperNode with ``--isolation process`` hands messages to ``worker.py``, which
does not look at the app.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from fedmoe.config import EngineConfig
from fedmoe.engine.connection import SERVER, beating, read_certificate, read_secret, runtime_client, sentences
from fedmoe.engine.flower import order_message, read_answer, require_flower
from fedmoe.engine.line import Answer, Order
from fedmoe.engine.nudge import PAIR, Nudges
from fedmoe.engine.public_keys import as_pem, canonical, read_keys
from fedmoe.engine.signing import signer
from fedmoe.errors import UserError

log = logging.getLogger(__name__)
_POLL = 0.2  # seconds between two looks for answers
_REFRESH = 2.0  # seconds that a list of nodes is good for
_PATIENCE = 20.0  # seconds for the SuperLink to hand out the task of a new run
_FAREWELL = 10.0  # seconds for answers to nudges at the end

_APP = {
    "pyproject.toml": b"""[project]
name = "fedmoe"
version = "1.0.0"
dependencies = ["flwr>=1.42,<1.43"]

[tool.flwr.app]
publisher = "fedmoe"

[tool.flwr.app.components]
serverapp = "nothing:app"
clientapp = "nothing:app"
""",
    "nothing.py": b'app = None\nraise RuntimeError("fedmoe runs no code of an app: use --isolation process")\n',
    "LICENSE": b"The licence of fedmoe is its owner's to choose, and is not chosen yet.\n",
}


class SuperLinkLine:
    """The line through a SuperLink.

    Args:
        config: address, certificate, secret and the clients' keys.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.where = f"engine.address = {config.address}"
        self._sign = signer("engine.signing", config.signing) if config.signing else lambda order: order
        self._owners = {} if config.insecure else read_keys(Path(config.keys or ""))
        self._grid: Any = None
        self._admin: Any = None
        self._nodes: dict[int, Any] = {}
        self._looked = 0.0
        self._ended = threading.Event()
        self._refused: set[int] = set()
        self._nudges = Nudges()

    def open(self) -> None:
        if self._grid is not None:
            return
        require_flower("flower")
        if self.config.insecure:
            log.warning(
                "engine.insecure is true: whoever can reach %s can read and change everything that server and clients "
                "send, and can answer for any client.",
                self.config.address,
            )
        with self._sentences():
            self._connect()

    def _connect(self) -> None:
        from flwr.common.serde import run_from_proto
        from flwr.proto.runtime_pb2 import PullTaskInputRequest
        from flwr.supercore.task_identity import TaskIdentity
        from flwr.superlink.grid import HttpGrid

        certificate = None if self.config.insecure else read_certificate(self.config.certificate)
        run_id = self._start_run(certificate)
        token = self._acquire(certificate, run_id)
        assert self.config.address is not None
        grid = HttpGrid(self.config.address, self.config.insecure, certificate, token=token)
        grid._retry_invoker.max_time = _PATIENCE
        found = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = found.task_id, found.run.run_id
        TaskIdentity.node_id = found.context.node_id
        grid.set_run(run_from_proto(found.run))
        self._grid, self._admin = grid, self._control(certificate)
        beat = beating(grid._runtime_client)
        threading.Thread(target=beat, args=(self._ended,), daemon=True).start()

    def _start_run(self, certificate: bytes | None) -> int:
        import hashlib

        from flwr.cli.build import build_fab_from_files
        from flwr.common.serde import fab_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        content = build_fab_from_files(_APP)[0]
        client = self._control(certificate)
        try:
            self._register(client)
            fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
            return int(client.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id)
        finally:
            client.close()

    def register(self) -> int:
        """Make the clients' keys known to the SuperLink; how many there are.

        Raises:
            UserError: it cannot be reached.
        """
        require_flower("flower")
        with self._sentences():
            client = self._control(None if self.config.insecure else read_certificate(self.config.certificate))
            try:
                self._register(client)
            finally:
                client.close()
        return len(self._owners)

    def _control(self, certificate: bytes | None) -> Any:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        parts = [RuntimeVersionHttpInterceptor(component_name="flwr-cli")]
        return ControlHttpClient.from_server_address(
            self.config.address or "", self.config.insecure, certificate, parts
        )

    def _register(self, client: Any) -> None:
        """Make the clients' keys known to the SuperLink, which then lets their SuperNodes in."""
        from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest

        known = {canonical(node.public_key) for node in client.ListNodes(ListNodesRequest()).nodes_info}
        for key in self._owners.keys() - known:
            client.RegisterNode(RegisterNodeRequest(public_key=as_pem(key)))

    def _acquire(self, certificate: bytes | None, run_id: int) -> str:
        """The token of the run's task. Tasks of runs that nobody drives any more are ended."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest

        secret = None if self.config.secret is None else read_secret("engine.secret", self.config.secret)
        client = runtime_client(self.config.address or "", self.config.insecure, certificate, secret)
        end = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < end:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[SERVER]))
                if found.HasField("task") and found.task.run_id == run_id:
                    return str(found.token)
                if not found.HasField("task"):
                    time.sleep(_POLL)
        finally:
            client.close()
        raise UserError(
            f"The SuperLink at {self.where} does not hand its run to this process; valid is a flower-superlink that "
            "was started with --isolation process."
        )

    def nodes(self) -> Collection[int]:
        if time.monotonic() - self._looked > _REFRESH:
            with self._sentences():
                found = self._grid.get_nodes()
            self._nodes = {node.node_id: node for node in found if node.status in ("", "online")}
            self._looked = time.monotonic()
            for node in self._nodes:
                if not self.config.insecure and self.owner(node) is None and node not in self._refused:
                    self._refused.add(node)
                    log.warning("Node %d has a key that is not in engine.keys; it is not asked for anything.", node)
        return [node for node in self._nodes if self.config.insecure or self.owner(node) is not None]

    def info(self) -> Mapping[int, Any]:
        """What the SuperLink knows of the nodes."""
        return self._nodes

    def owner(self, node: int) -> int | None:
        info = self._nodes.get(node)
        return None if info is None else self._owners.get(canonical(info.public_key))

    def send(self, node: int, order: Order) -> str:
        name = self._send(node, order)
        self._nudges.sent(node, name)
        return name

    def _send(self, node: int, order: Order) -> str:
        with self._sentences():
            (name,) = self._grid.push_messages([order_message(node, self._sign(order), ttl=2 * self.config.timeout)])
        return name or f"never sent to {node}"

    def receive(self, names: Collection[str]) -> Sequence[tuple[str, Answer | str]]:
        """As in ``Line``. Nodes that owe an answer and are silent for long are nudged, which ``traffic`` counts."""
        for node in self._nudges.due(names):
            self._nudges.nudged(node, [self._send(node, order) for order in PAIR])
        asked = [*names, *self._nudges.names]
        unsent = [name for name in asked if name.startswith("never")]
        if unsent:
            return self._nudges.sift([(name, "the SuperLink did not take the order") for name in unsent])
        with self._sentences():
            found = list(self._grid.pull_messages(asked))
        if not found:
            time.sleep(_POLL)
        return self._nudges.sift([(message.metadata.reply_to_message_id, read_answer(message)) for message in found])

    def traffic(self) -> tuple[int, int] | None:
        """As the SuperLink counts between itself and the SuperNodes."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._sentences():
            run_id = self._grid.run.run_id
            run = self._admin.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
        return int(run.bytes_sent), int(run.bytes_recv)

    def close(self) -> None:
        if self._grid is None:
            self._ended.set()
            return
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest

        self._grid._retry_invoker.max_tries = 1
        with suppress(UserError):
            self._hear_out()
        self._ended.set()
        grid, self._grid = self._grid, None
        with suppress(httpx.HTTPError):
            grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))
        grid.close()
        self._admin.close()

    def _hear_out(self) -> None:
        """Wait for answers to nudges: a run that ends between the two would leave an answer behind again."""
        end = time.monotonic() + _FAREWELL
        while self._nudges.answering and time.monotonic() < end:
            self.receive([])

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn errors of the connection into one sentence."""
        with sentences(self.where, "a flower-superlink that runs there", "engine.certificate", "engine.secret"):
            yield
