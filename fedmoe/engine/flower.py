"""What simulation and deployment share: Flower's messages, and a sentence where Flower is missing."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any

from fedmoe.engine.line import Answer, Order
from fedmoe.errors import UserError

if TYPE_CHECKING:
    from flwr.app import Message

VERSION = "1.42."
_NONCE = 8
"""Random bytes in each message: Flower names stored objects by their contents, and where two messages to a node are
equal, taking the first one deletes what the second one needs."""
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def require_flower(kind: str) -> None:
    """Prepare this process for Flower: no telemetry, no look for updates, no installation, few words.

    Raises:
        UserError: Flower is not installed, or another version of it.
    """
    install = "pip install --constraint constraints-flower.txt 'fedmoe[flower]'"
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("flwr")
        from importlib.metadata import version

        found = version("flwr")
    except ImportError as error:
        raise UserError(f"engine.kind is {kind!r}, which needs Flower: {install}.") from error
    if not found.startswith(VERSION):
        raise UserError(f"engine.kind is {kind!r}, which needs Flower {VERSION}x, not {found}: {install}.")
    logging.getLogger("flwr").setLevel(logging.ERROR)


def order_message(node: int, order: Order, ttl: float | None = None) -> Message:
    """An order as Flower's message."""
    from flwr.app import ConfigRecord, Message, RecordDict

    record: dict[str, Any] = {"ask": order.ask, "run": order.run, "body": order.body, "signature": order.signature}
    content = RecordDict({"order": ConfigRecord({**record, "nonce": secrets.token_bytes(_NONCE)})})
    return Message(content, dst_node_id=node, message_type=order.ask, ttl=ttl)


def answer_message(answer: Answer, asked: Message) -> Message:
    """An answer as Flower's message."""
    from flwr.app import ConfigRecord, Message, RecordDict

    record: dict[str, Any] = {"kind": answer.kind, "body": answer.body, "nonce": secrets.token_bytes(_NONCE)}
    return _timeless(Message(RecordDict({"answer": ConfigRecord(record)}), reply_to=asked), asked)


def error_message(reason: str, asked: Message) -> Message:
    """Flower's message that there is no answer, and why."""
    from flwr.app import Error, Message

    return _timeless(Message(Error(code=0, reason=reason), reply_to=asked), asked)


def _timeless(reply: Message, asked: Message) -> Message:
    """The reply as if made when it was asked for: a client's clock need not be right for the SuperLink to take it."""
    times = {"_created_at": asked.metadata.created_at, "_ttl": asked.metadata.ttl}
    reply.metadata.__dict__.update(times)
    return reply


def read_order(message: Message) -> Order:
    """The order in a message.

    Raises:
        ValueError: there is none.
    """
    found = _record(message, "order", {"ask": str, "run": str, "body": bytes, "signature": bytes})
    return Order(**found)


def read_answer(message: Message) -> Answer | str:
    """The answer in a message, or why there is none."""
    if message.has_error():
        return " ".join(str(message.error.reason).split())[:500] or "its node sent an error without a reason"
    try:
        return Answer(**_record(message, "answer", {"kind": str, "body": bytes}))
    except ValueError as error:
        return f"its answer was refused: {error}"


def _record(message: Message, name: str, types: dict[str, type]) -> dict[str, Any]:
    content = message.content
    if set(content.config_records) != {name} or len(content) != 1:
        raise ValueError(f"the message holds no {name} alone")
    record = dict(content.config_records[name])
    record.pop("nonce", None)
    if record.keys() != types.keys() or any(type(record[key]) is not kind for key, kind in types.items()):
        raise ValueError(f"the message's {name} has other fields")
    return record
