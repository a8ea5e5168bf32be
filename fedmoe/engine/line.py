"""The line between the server and clients elsewhere: named messages of bytes, whatever carries them.

Standard library only: the command line and the tests use it without Flower.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

HELLO, TRAIN, EVALUATE = "query", "train", "evaluate"
"""What the server asks; Flower's names of the types of messages."""
KEYS, SHARES, MASKED, UNMASK = "query.keys", "query.shares", "query.masked", "query.unmask"
"""The four steps of a secure aggregation."""
NUDGE = "query.nudge"
"""To do nothing, see ``nudge.py``."""


@dataclass(frozen=True)
class Order:
    """From the server. ``run`` names the run, since a client keeps states apart by runs; ``signature`` is the server's,
    where clients are on other machines (``signing.py``)."""

    ask: str
    run: str
    body: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True)
class Answer:
    """From a client; ``kind`` names what ``body`` holds: hello, trained, scored, summand, failed, mistake (a
    UserError), or nothing."""

    kind: str
    body: bytes = b""


class Line(Protocol):
    """Carries orders to nodes and answers back. A node answers for one client, or for several."""

    def open(self) -> None:
        """Start or reach what carries the messages.

        Raises:
            UserError: that is impossible.
        """

    def nodes(self) -> Collection[int]:
        """The nodes that can be reached now."""

    def owner(self, node: int) -> int | None:
        """The client that a node's key is bound to; None where nothing proves who a node is."""

    def send(self, node: int, order: Order) -> str:
        """Send an order; what its answer is called."""

    def receive(self, names: Collection[str]) -> Sequence[tuple[str, Answer | str]]:
        """Answers to some of these orders, or why there will be none; waits a little where there are none yet.

        Raises:
            UserError: there will be none at all.
        """

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that all messages of the run took so far, down and up, with what carries them; None: not counted."""

    def close(self) -> None:
        """Stop what ``open`` started; more than one call does no harm."""


def as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def from_json(data: bytes) -> dict[str, Any]:
    """The object in a message.

    Raises:
        ValueError: there is none.
    """
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def as_hex(values: Mapping[int, bytes]) -> dict[str, str]:
    """Bytes by client, as JSON can hold them."""
    return {str(client): value.hex() for client, value in values.items()}


def from_hex(values: Mapping[str, str]) -> dict[int, bytes]:
    """The inverse of ``as_hex``.

    Raises:
        ValueError: that is no number, or not hexadecimal.
    """
    return {int(client): bytes.fromhex(value) for client, value in values.items()}
