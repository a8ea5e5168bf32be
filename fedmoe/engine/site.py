"""The client's end of the line: executes orders, and says nothing but what the records hold.

An order is tensors and numbers; nothing in it is executed. The client works with its own configuration.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection

from fedmoe.client.disk import StateLost
from fedmoe.client.states import ClientStates
from fedmoe.client.work import ClientWork
from fedmoe.engine.hello import say_hello
from fedmoe.engine.line import EVALUATE, HELLO, NUDGE, TRAIN, Answer, Order
from fedmoe.engine.withheld import STEPS, Withheld
from fedmoe.errors import UserError
from fedmoe.federation.fleet import reason
from fedmoe.protocol.records import Failed, Scored, ScoreJob, SumJob, TrainJob
from fedmoe.protocol.wire import from_bytes, to_bytes


class Site:
    """Answers for one client or for several.

    Args:
        work: what the clients do.
        clients: whom it answers for.
        states: run -> where the clients' states of that run are.
        tracebacks: whether the server gets tracebacks, which may show values of the client's data.
        withholds: whether uploads are sent in no other way than masked, in a secure aggregation.
    """

    def __init__(
        self,
        work: ClientWork,
        clients: Collection[int],
        states: Callable[[str], ClientStates],
        tracebacks: bool = False,
        withholds: bool = False,
    ) -> None:
        self.work, self.clients, self.states, self.tracebacks = work, clients, states, tracebacks
        self._withheld = Withheld() if withholds else None

    def answer(self, order: Order) -> Answer:
        """The answer to an order; never an exception, except for Ctrl-C and the like."""
        began = time.perf_counter()
        try:
            return self._answers()[order.ask](order)
        except UserError as error:
            return Answer("mistake", str(error).encode())
        except StateLost as error:
            return self._failed(error, began, lost=True)
        except Exception as error:
            return self._failed(error, began)

    def _answers(self) -> dict[str, Callable[[Order], Answer]]:
        steps = dict.fromkeys(STEPS, self._sum) if self._withheld else {}
        idle = {NUDGE: lambda order: Answer("nothing")}
        return {HELLO: self._hello, TRAIN: self._train, EVALUATE: self._score, **idle, **steps}

    def _hello(self, order: Order) -> Answer:
        return Answer("hello", say_hello(self.work, self.clients))

    def _train(self, order: Order) -> Answer:
        job, states = from_bytes(TrainJob, order.body), self.states(order.run)
        self._require_own(job.client_id)
        state = states.get(job.client_id, job.version)
        trained, kept = self.work.train(job, state)
        states.put(job.client_id, job.round, kept)
        if self._withheld:
            trained = self._withheld.keep(order.run, job.round, trained)
        return Answer("trained", to_bytes(trained))

    def _sum(self, order: Order) -> Answer:
        job = from_bytes(SumJob, order.body)
        self._require_own(job.client_id)
        assert self._withheld is not None
        return Answer("summand", to_bytes(self._withheld.answer(order.ask, order.run, job)))

    def _score(self, order: Order) -> Answer:
        job = from_bytes(ScoreJob, order.body)
        self._require_own(job.client_id)
        return Answer("scored", to_bytes(self.work.score(job, self.states(order.run).get(job.client_id, job.version))))

    def _require_own(self, client_id: int) -> None:
        if client_id not in self.clients:
            raise ValueError(f"the order is for client {client_id}, who is not here")

    def _failed(self, error: Exception, began: float, lost: bool = False) -> Answer:
        text = traceback.format_exc() if self.tracebacks else ""
        why = str(error) if lost else reason(error)
        return Answer("failed", to_bytes(Failed(why, text, time.perf_counter() - began, lost=lost)))


def nothing(client_id: int, why: str) -> Scored:
    """The score of a client that gave none."""
    return Scored(client_id, 0, 0, {}, why)
