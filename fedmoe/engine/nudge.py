"""Orders that free an answer which a SuperNode holds back, and end its holding answers back.

Where a run ends just as a Flower SuperNode takes an order of it, that SuperNode does not wait for the answer, and is
left with it. On the next order it finds that answer, sends it, and waits for no other: from then on it sends each
answer only once another order has come. Nothing that a server sees tells this from a client that trains for long.

So a node that is silent for long, while it owes an answer, is sent a pair of orders to do nothing (``NUDGE``). The
first frees the answer that is held back. Its client waits some seconds before it answers it: only a SuperNode that
waits for no answer announces the second one meanwhile. Then the client leaves the first one unanswered, so the
SuperNode waits for the answer to the second one, and from now on for all others. Behind a SuperNode that waits, a
client answers both.

A client that is merely slow does this when it is done, and loses ``WATCH`` seconds once. It gets no second pair before
it has answered the first, since one is enough: it either lies at the SuperLink still, as the SuperNode waits for the
answer that is owed; or it was taken, and has freed what was held. Another pair helps only where the last one came
before the order, or where the client was told of the second order too late. Each doubles the silence that the next one
takes, so that a node gets few in a run. They are not accounted, but part of ``wire_down`` and ``wire_up``, as hellos.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from fedmoe.engine.line import NUDGE, Answer, Order

SILENCE = 10.0
"""Seconds without an answer before the first pair: SuperNodes ask every 3 s, and short phases take 3 to 7 s."""
WATCH = 5.0
"""Seconds in which a SuperNode sends what it holds back and announces the next order."""
PAIR = (Order(NUDGE, "", b"watch"), Order(NUDGE, ""))
"""The first one says that another follows."""


class Nudges:
    """When which nodes are to be nudged, and which answers are to that.

    Args:
        now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._owed: dict[str, int] = {}  # order -> node
        self._since: dict[int, float] = {}  # node -> when it was last sent an order, or heard
        self._silence: dict[int, float] = {}  # node -> the silence that the next pair takes
        self._pairs: dict[int, Sequence[str]] = {}  # node -> the pair that it has not answered

    @property
    def names(self) -> list[str]:
        """What nodes were nudged with and may still answer."""
        return [name for pair in self._pairs.values() for name in pair]

    @property
    def answering(self) -> bool:
        """Whether a node that owes nothing else is about to answer a nudge."""
        return bool(self._pairs.keys() - set(self._owed.values()))

    def sent(self, node: int, name: str) -> None:
        """A node owes the answer to an order."""
        self._owed[name], self._since[node] = node, self._now()

    def due(self, names: Collection[str]) -> list[int]:
        """The nodes to nudge now, of those that owe the answer to one of these orders."""
        owing = {self._owed[name] for name in names if name in self._owed} - self._pairs.keys()
        return sorted(node for node in owing if self._now() - self._since[node] > self._silence.get(node, SILENCE))

    def nudged(self, node: int, pair: Sequence[str]) -> None:
        """A node was sent this pair."""
        self._pairs[node], self._since[node] = pair, self._now()
        self._silence[node] = 2 * self._silence.get(node, SILENCE)

    def sift(self, answers: Sequence[tuple[str, Answer | str]]) -> list[tuple[str, Answer | str]]:
        """Those of the answers that are to orders, and none to nudges."""
        of = {name: node for node, pair in self._pairs.items() for name in pair}
        found = [(name, answer) for name, answer in answers if name not in of]
        for name, _ in answers:
            if (node := of[name] if name in of else self._owed.pop(name, None)) is not None:
                self._since[node] = self._now()
        # The first of a pair may stay unanswered; once the second one is answered, it will.
        heard = {name for name, _ in answers}
        self._pairs = {node: pair for node, pair in self._pairs.items() if pair[-1] not in heard}
        return found
