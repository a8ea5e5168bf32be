"""A client at its site: a process that stays, beside a SuperNode, and holds data, CLIP and the client's state.

It takes messages from the SuperNode as Flower's own ClientApp processes do, but it is one process for all of them, and
it executes nothing of the app that comes with a run. An order is tensors and numbers, which its own configuration
explains.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import httpx

from fedmoe.engine.connection import CLIENT, beating, read_secret, runtime_client, sentences
from fedmoe.engine.flower import answer_message, error_message, read_order, require_flower
from fedmoe.engine.line import NUDGE, Answer, Order
from fedmoe.engine.nudge import WATCH
from fedmoe.engine.signing import verifier
from fedmoe.engine.site import Site
from fedmoe.errors import UserError

log = logging.getLogger(__name__)
_POLL = 0.2  # seconds between two looks for a message
_AGAIN = 5.0  # seconds before a SuperNode that is away is tried again
_PATIENCE = 30.0  # seconds for a SuperNode to take an answer


def serve(site: Site, supernode: str, secret: str | None, server_key: str | None, say: Callable[[str], None]) -> None:
    """Answer the SuperNode's messages until Ctrl-C or SIGTERM. A SuperNode that goes away is waited for.

    Args:
        supernode: HOST:PORT of its Runtime API, on this machine.
        secret: file with the secret that the SuperNode was started with; None: it was started with none.
        server_key: file with the server's public key; None: whoever can reach the SuperLink can give orders.

    Raises:
        UserError: the address is not on this machine, or the SuperNode refuses the secret.
    """
    require_flower("flower")
    _require_here(supernode)
    known = None if secret is None else read_secret("secret", secret)
    if known is None:
        log.warning("No secret is given: any user of this machine can take messages from %s.", supernode)
    verify: Callable[[Order], None] = lambda order: None  # noqa: E731
    if server_key is not None:
        verify = verifier("server_key", server_key)
    else:
        log.warning("No server_key is given: whoever can reach the SuperLink can give this client orders.")
    tasks, away = _Tasks(runtime_client(supernode, True, None, known)), False
    while True:
        try:
            with sentences(f"The SuperNode at {supernode}", "one that runs there", "its certificate", "secret"):
                token = tasks.next()
            if away:
                say(f"connected to the SuperNode at {supernode} again")
            away = False
        except UserError as error:
            if isinstance(error.__cause__, httpx.HTTPStatusError) and error.__cause__.response.status_code < 500:
                raise
            if not away:
                say(f"waiting: {error}")
            away = True
            time.sleep(_AGAIN)
            continue
        if token:
            _answer(site, supernode, token, tasks, verify, say)
        else:
            time.sleep(_POLL)


class _Gone(Exception):
    """The message of a task will never come, or its answer is not waited for."""


class _Tasks:
    """The tasks that a SuperNode announces.

    It does so some moments before a message and its parts can be taken, and forgets the task if the message's run ends
    in between. It does one after the other, so once it announces the next one, the message of the last one that has
    not come never will.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._next, self._lock = client, "", threading.Lock()

    def next(self) -> str:
        """The token of the next task; empty: there is none now."""
        with self._lock:
            token, self._next = self._next or self._acquire(), ""
        return token

    def wait(self) -> None:
        """Wait a little for something of the present task.

        Raises:
            _Gone: it will never come, as another task is announced.
        """
        with self._lock, suppress(httpx.HTTPError):
            self._next = self._next or self._acquire()
        if self._next:
            raise _Gone
        time.sleep(_POLL)

    def _acquire(self) -> str:
        from flwr.proto.runtime_pb2 import AcquireTaskRequest

        found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[CLIENT]))
        return str(found.token) if found.HasField("task") else ""


def _answer(
    site: Site,
    supernode: str,
    token: str,
    tasks: _Tasks,
    verify: Callable[[Order], None],
    say: Callable[[str], None],
) -> None:
    """Take one message, and send its answer.

    A SuperNode waits for the answer to a message and does nothing else meanwhile, for ever if its task ends as failed
    without an answer. So a task that cannot be answered is left to expire: then the SuperNode answers by itself.
    """
    from flwr.proto.runtime_pb2 import PushTaskOutputRequest

    client, ended = runtime_client(supernode, True, None, None, token), threading.Event()
    beat = threading.Thread(target=beating(client), args=(ended,), daemon=True)
    beat.start()
    began = time.perf_counter()
    try:
        message, context = _take(client, tasks)
        _push(client, _reply(site, message, tasks, verify, say, began), context)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))
    except _Gone:
        with suppress(httpx.HTTPError):
            details = "its run has ended, or its answer is not waited for"
            client.PushTaskOutput(PushTaskOutputRequest(sub_status="failed", details=details))
    except Exception as error:
        say(f"a message was not answered ({type(error).__name__}: {' '.join(str(error).split())[:500]})")
    finally:
        ended.set()
        beat.join(1)
        client.close()


def _reply(
    site: Site,
    message: Any,
    tasks: _Tasks,
    verify: Callable[[Order], None],
    say: Callable[[str], None],
    began: float,
) -> Any:
    """The reply to a message: an answer, or an error that says why there is none.

    Raises:
        _Gone: there is to be none, see ``nudge.py``.
    """
    try:
        order = read_order(message)
        verify(order)
        if order.ask == NUDGE and order.body:
            _watch(tasks, say)
        answer = site.answer(order)
    except ValueError as error:
        say(f"refused: {error}")
        return error_message(str(error), message)
    say(f"{message.metadata.message_type}: {_words(answer)} in {time.perf_counter() - began:.1f} s")
    return answer_message(answer, message)


def _watch(tasks: _Tasks, say: Callable[[str], None]) -> None:
    """Wait for the next task.

    Raises:
        _Gone: it was announced, so the SuperNode does not wait for the answer to the present one. It is to get none,
            since the SuperNode would hold it back until the next order, and all later ones as well.
    """
    try:
        for _ in range(round(WATCH / _POLL)):
            tasks.wait()
    except _Gone:
        say("the SuperNode held answers back; it does so no more")
        raise


def _push(client: Any, reply: Any, context: Any) -> None:
    """Send a reply, again where a connection breaks: a SuperNode waits for ever for one that came in part."""
    from flwr.supernode.runtime.run_clientapp import push_message

    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return push_message(client, reply, context)
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
            time.sleep(_POLL)


def _take(client: Any, tasks: _Tasks) -> tuple[Any, Any]:
    """The message and the context of a task.

    As Flower's ``pull_task_input``, which does not wait for a message, and waits for its parts for two hours.
    """
    from flwr.app import Message
    from flwr.common.serde import context_from_proto
    from flwr.proto.node_pb2 import Node
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest
    from flwr.supercore.inflatable import inflatable_protobuf_utils as parts
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectUnavailableError,
        inflate_object_from_contents,
    )
    from flwr.supercore.task_identity import TaskIdentity

    found = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = found.task_id, found.run.run_id
    TaskIdentity.node_id = found.context.node_id
    context = context_from_proto(found.context)
    while not (pulled := client.PullMessages(PullAppMessagesRequest())).messages_list:
        tasks.wait()
    node, tree = Node(node_id=context.node_id), pulled.message_object_trees[0]
    pull = parts.make_pull_object_fn_protobuf(client.PullObject, node, context.run_id)
    contents: dict[str, bytes] = {}
    for name in dict.fromkeys(part.object_id for part in iterate_object_tree(tree)):
        while name not in contents:
            try:
                contents[name] = pull(name)
            except ObjectUnavailableError:
                tasks.wait()
    parts.make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, context.run_id)(tree.object_id)
    message = inflate_object_from_contents(tree.object_id, contents, keep_object_contents=False)
    if not isinstance(message, Message):
        raise ValueError("a message is of another kind")
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message, context


def _words(answer: Answer) -> str:
    return f"{answer.kind} ({len(answer.body):,} bytes)"


def _require_here(supernode: str) -> None:
    host, _, port = supernode.rpartition(":")
    here = host == "localhost"
    with suppress(ValueError):
        here = here or ip_address(host.strip("[]")).is_loopback
    if not here or not port.isdecimal():
        raise UserError(
            f"supernode is {supernode}; valid is HOST:PORT of a SuperNode on this machine, such as 127.0.0.1:9094, "
            "since this connection is not encrypted."
        )
