"""Late clients: the last ``federation.late_clients`` take part in no round of a run.

Each is scored on arrival, and again after it has trained for some rounds by itself: it downloads what the method sends,
trains, and has its upload admitted like everyone else, so that it may get experts in its next round. Nothing is
averaged: the shared parameters and the other clients stay unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmoe.config import FederationConfig
from fedmoe.defences.guard import Defences
from fedmoe.errors import UserError
from fedmoe.federation.accuracy import summarize
from fedmoe.federation.evaluation import evaluate
from fedmoe.federation.fleet import Fleet, known_after
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import Failed, RoundContext, TrainJob
from fedmoe.server.state import ServerState


@dataclass(frozen=True)
class LateScores:
    """Accuracy over the late clients in percent, on arrival and after ``rounds`` rounds of ``epochs`` epochs."""

    clients: Sequence[int]
    rounds: int
    epochs: int
    as_they_come: dict[str, float]
    joined: dict[str, float]
    each: Sequence[float]  # of as_they_come, client by client; those without test examples are left out


def score_late_clients(
    fleet: Fleet,
    method: Method,
    server: ServerState,
    config: FederationConfig,
    done: RoundContext,
    rounds: int,
    defences: Defences | None = None,
) -> LateScores:
    """Score the late clients on their own test splits, before and after each joins by itself.

    Args:
        server: as the run left it; not changed.
        config: as adapted by ``method.schedule``. A method that never trains (zero-shot) gets the same score twice.
        done: the run's last round.
        rounds: number of rounds that each client trains for.

    Raises:
        UserError: a client's training fails, or no late client has test examples.
    """
    guard, late = defences or Defences(), list(range(config.participants, config.clients))
    before = evaluate(fleet, method, server, done, config.clients, late, defences=guard)
    after: list[float] = []
    for client_id in late:
        joined, last = server.copy(), done.round
        for _ in range(rounds if config.rounds else 0):
            last += 1
            _train_alone(fleet, method, joined, client_id, RoundContext(last, (client_id,), done.seed), guard)
        context = RoundContext(last, done.cohort, done.seed)
        one = evaluate(fleet, method, joined, context, config.clients, [client_id], defences=guard)
        score = one.clients[client_id]
        after.append(score.correct / score.total if score.total else float("nan"))
    each = [score.accuracy for score in before.clients if score.client in late and score.accuracy is not None]
    return LateScores(late, rounds, config.local_epochs, before.accuracy, summarize(after), each)


def _train_alone(
    fleet: Fleet, method: Method, server: ServerState, client_id: int, context: RoundContext, guard: Defences
) -> None:
    """A round of a single client, whose upload is admitted but not averaged."""
    downlink = method.configure(guard.served(server).to(client_id), client_id, context)
    known = server.known(client_id)
    order = TrainJob(client_id, context.round, known.version, downlink, turn=known.rounds_seen)
    for job, trained in fleet.train([order]):
        if isinstance(trained, Failed):
            raise UserError(f"Client {client_id} could not join: {trained.reason}.") from trained.error
        method.admit(server, trained.update)
        server.clients[client_id] = known_after(server, job)
