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

import httpx

from fedmoe.engine.deployment import _CLIENT, beating, read_secret, runtime_client, sentences
from fedmoe.engine.flower import answer_message, read_order, require_flower
from fedmoe.engine.line import Answer, Order
from fedmoe.engine.signing import verifier
from fedmoe.engine.site import Site
from fedmoe.errors import UserError

log = logging.getLogger(__name__)
_POLL = 0.2  # seconds between two looks for a message
_AGAIN = 5.0  # seconds before a SuperNode that is away is tried again


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
    from flwr.proto.runtime_pb2 import AcquireTaskRequest

    client, away = runtime_client(supernode, True, None, known), False
    while True:
        try:
            with sentences(f"The SuperNode at {supernode}", "one that runs there", "its certificate", "secret"):
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[_CLIENT]))
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
        if found.HasField("task") and found.token:
            _answer(site, supernode, str(found.token), verify, say)
        else:
            time.sleep(_POLL)


def _answer(
    site: Site, supernode: str, token: str, verify: Callable[[Order], None], say: Callable[[str], None]
) -> None:
    """Take one message, and send its answer."""
    from flwr.app import Error, Message
    from flwr.proto.runtime_pb2 import PushTaskOutputRequest
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

    client, ended = runtime_client(supernode, True, None, None, token), threading.Event()
    beat = threading.Thread(target=beating(client), args=(ended,), daemon=True)
    beat.start()
    began = time.perf_counter()
    try:
        message, context, _, _ = pull_task_input(client)
        try:
            order = read_order(message)
            verify(order)
            answer = site.answer(order)
            reply = answer_message(answer, message)
            say(f"{message.metadata.message_type}: {_words(answer)} in {time.perf_counter() - began:.1f} s")
        except ValueError as error:
            say(f"refused: {error}")
            reply = Message(Error(code=0, reason=str(error)), reply_to=message)
        push_message(client, reply, context)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))
    except (httpx.HTTPError, RuntimeError) as error:
        log.warning("A message was not answered: %s", error)
        with suppress(httpx.HTTPError):
            client.PushTaskOutput(PushTaskOutputRequest(sub_status="failed", details="not answered"))
    finally:
        ended.set()
        beat.join(1)
        client.close()


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
