"""The round loop: one round of Algorithm 1 from top to bottom.

The server samples the cohort (1); each client downloads the shared parameters and its experts (2, 3), trains (4) and
uploads; the server admits each upload and averages (5); every client is evaluated (6); callbacks log and checkpoint.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor

from fedmoe.client.module import MOMENTUM
from fedmoe.client.work import ClientFailure
from fedmoe.config import FederationConfig
from fedmoe.defences.guard import Defences
from fedmoe.errors import UserError
from fedmoe.federation.accuracy import standard_error
from fedmoe.federation.callbacks import Callback
from fedmoe.federation.evaluation import Evaluation, evaluate
from fedmoe.federation.fleet import Fleet, known_after
from fedmoe.federation.state import FederationState
from fedmoe.privacy.mechanism import Privacy
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import Failed, RoundContext, Trained, TrainJob, Update
from fedmoe.runs.records import Failure, RoundRecord
from fedmoe.seeds import numpy_generator
from fedmoe.server.state import Known, ServerState

_EVERYBODY = -1  # in place of a client's number


class Federation:
    """Runs a method on a fleet of clients.

    Args:
        method: what is sent, trained, averaged and predicted.
        fleet: where the clients are.
        config: rounds, participation, epochs; already adapted by ``method.schedule``.
        server: the server's initial state.
        seed: the run's seed. Every draw derives from it, the round and the client, so that neither the order of
            clients nor an interruption changes a bit.
        callbacks: called in this order.
        privacy: keeps account of the privacy budget; None: uploads are not protected.
        defences: the server's against bad clients; None: it trusts everybody.
        attackers: clients that attack, for the record alone: neither server nor method sees it.
        clients: the contents of partition.json, for callbacks.
        name: the data set's name, for callbacks.
    """

    def __init__(
        self,
        method: Method,
        fleet: Fleet,
        config: FederationConfig,
        server: ServerState,
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        privacy: Privacy | None = None,
        defences: Defences | None = None,
        attackers: frozenset[int] = frozenset(),
        clients: dict[str, Any] | None = None,
        name: str = "",
    ) -> None:
        self.method, self.config, self.seed = method, config, seed
        self.fleet, self.server = fleet, server
        self.rounds_done = -1
        self._lost: set[int] = set()  # clients that have lost their state in the current round
        self.callbacks = callbacks
        self.privacy = privacy or Privacy(None, config, seed)
        self.defences, self.attackers = defences or Defences(), attackers
        self.clients, self.name = clients or {}, name

    def meet(self) -> None:
        """Learn the clients' domains, once they can be reached.

        Raises:
            UserError: the method does not fit these clients.
        """
        domains = {i: self.fleet.about(i).domain for i in range(self.config.clients)}
        self.server.domains = {i: domain for i, domain in domains.items() if domain is not None}
        self.method.check_clients(self.server)

    @property
    def state(self) -> FederationState:
        """The state after the last finished round."""
        return self.state_of(None)

    def state_of(self, clients: Collection[int] | None) -> FederationState:
        """The state after the last finished round, of clients only the parts of these; None: of all."""
        known = self.server.clients
        chosen = known if clients is None else {i: known[i] for i in clients if i in known}
        own = self.fleet.states(chosen)
        return FederationState(self.rounds_done, self.config.clients, self.server, own, clients)

    def release(self, clients: Sequence[int], replaced: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensors of some clients, in the pool and in their states, by others of the same values."""
        for entries in self.server.pool.values():
            entries.update({i: replaced(entries[i]) for i in clients if i in entries})
        self.fleet.release({i: self.server.known(i) for i in clients if i in self.server.clients}, replaced)

    def restore(self, state: FederationState) -> None:
        """Continue from a checkpoint."""
        self.rounds_done, self.server, state.server.domains = state.round, state.server, self.server.domains
        self.fleet.restore(state.server.clients, state.clients)

    def run(self) -> None:
        """Run all rounds that are not done yet; round 0 is the evaluation before training."""
        self.meet()
        self._call("on_run_start", self)
        if self.rounds_done < 0:
            self._call("on_round_end", self, self._before_training())
        for number in range(self.rounds_done + 1, self.config.rounds + 1):
            self._call("on_round_end", self, self.round(number))
        self._call("on_run_end", self)

    def round(self, number: int) -> RoundRecord:
        """One round of Algorithm 1. The state changes only at its end, so an error within leaves the last round's.

        A client that fails keeps its old state and pool entry, and has no weight in the mean; if all fail, the shared
        parameters stay unchanged.
        """
        began, server, config = time.perf_counter(), self.server, self.config
        cohort = self.method.cohort(server, config, self.seed, number)  # step 1
        context = RoundContext(number, cohort, self.seed)
        record = RoundRecord(round=number, cohort=list(cohort))
        trained = self._train(context, record)  # steps 2 to 4
        if config.share_momentum:  # in the order of training: the next round begins with what the last client left
            for result, _ in trained.values():
                server.extras.update(result.update.extras)
        results = [trained[client_id] for client_id in cohort if client_id in trained]
        updates = [result.update for result, _ in results]
        if config.secure_aggregation:
            updates = self._sum(updates, record, context)
            trained = {client_id: found for client_id, found in trained.items() if str(client_id) not in record.failed}
            results = [trained[client_id] for client_id in cohort if client_id in trained]
        for update in updates:  # step 5
            self.method.admit(server, update)
        if updates:
            self.method.aggregate(server, self.defences.combine(server, updates), context)
            self.defences.learn(server, updates, {i: known for i, (_, known) in trained.items()})
        server.clients.update({client_id: known for client_id, (_, known) in trained.items()})
        for client_id in self._lost & server.clients.keys():
            del server.clients[client_id]  # it begins anew
        self.rounds_done = number
        self._describe(record, [result for result, _ in results])
        if number % config.evaluate_every == 0 or number == config.rounds:
            self._evaluate(record, context)  # step 6
        record.line = self.fleet.crossed()
        record.seconds["other"] = time.perf_counter() - began - sum(record.seconds.values())
        return record

    def order(self, cohort: Sequence[int]) -> Sequence[int]:
        """The order in which the cohort is trained; it does not affect the result, unless clients are ``serial``."""
        return cohort

    @property
    def serial(self) -> bool:
        """Whether what a client is sent depends on the answer of the one before it, so that one trains at a time."""
        return self.method.admits_at_once or self.config.share_momentum

    def evaluate(self, context: RoundContext) -> Evaluation:
        """Evaluate clients that take part in rounds on their own test splits: those that
        ``federation.evaluate_clients`` asks for, or all, as after the last round."""
        participants: Sequence[int] = range(self.config.participants)
        asked = self.config.evaluate_clients
        sampled = bool(context.cohort) and context.round < self.config.rounds and asked != "all"
        if sampled:
            participants = context.cohort if asked == "cohort" else self._sample(int(asked), context.round)
        place = (self.fleet, self.method, self.server, context, self.config.clients, participants, sampled)
        return evaluate(*place, defences=self.defences, attackers=self.attackers)

    def _sample(self, count: int, round: int) -> Sequence[int]:
        number = self.config.participants
        drawn = numpy_generator(self.seed, "evaluated", round).choice(number, min(count, number), replace=False)
        return sorted(int(client) for client in drawn)

    def _train(self, context: RoundContext, record: RoundRecord) -> dict[int, tuple[Trained, Known]]:
        """Local training of the cohort under the policy ``federation.on_failure``; what came of it and what is known of
        the client from then on. Downlinks are not kept: a cohort's experts would fill the memory.

        Raises:
            UserError: a mistake in the settings; or a failure, if failures are to stop the run.
        """
        # What serial clients leave for the next one goes to a copy: the server itself changes at the end of the round.
        server = self.server.copy() if self.serial else self.server
        order = self.order(context.cohort)
        server.ahead = () if self.serial else order
        place = {client_id: i for i, client_id in enumerate(context.cohort)}
        turns = (context.round - 1) * len(context.cohort)  # local fits before this round
        seconds, began = {"train": 0.0, "evaluate": 0.0}, time.perf_counter()
        self._lost = set()
        attempts = 1 + (self.config.retries if self.config.on_failure == "retry" else 0)
        served = self.defences.served(server)
        waiting = deque((client_id, 0) for client_id in order)
        trained: dict[int, tuple[Trained, Known]] = {}
        record.bytes = {"down": 0, "up": 0, "evaluate_down": 0}

        def jobs() -> Iterator[TrainJob]:
            while waiting:
                client_id, attempt = waiting.popleft()
                self._call("on_client_start", self, context, client_id)
                now = self.defences.served(server) if self.serial else served
                downlink = self.method.configure(now.to(client_id), client_id, context)
                if self.config.share_momentum:
                    momentum = {name: held for name, held in server.extras.items() if name.startswith(MOMENTUM)}
                    downlink = replace(downlink, extras={**downlink.extras, **momentum})
                if not attempt:
                    record.bytes["down"] += downlink.nbytes
                version = server.known(client_id).version
                yield TrainJob(client_id, context.round, version, downlink, attempt, turns + place[client_id])

        while waiting:
            for job, result in self.fleet.train(islice(jobs(), 1) if self.serial else jobs()):
                seconds["train"] += result.seconds
                if isinstance(result, Trained):
                    trained[job.client_id] = (result, known_after(server, job))
                    if self.method.admits_at_once:
                        self.method.admit(server, result.update)
                    if self.config.share_momentum:
                        server.extras.update(result.update.extras)
                    self._call("on_client_end", self, context, job.client_id, result.loss)
                    continue
                self._fail(job.client_id, job.attempt, result, context)
                if result.lost:
                    self._lost.add(job.client_id)
                if job.attempt + 1 < attempts:
                    waiting.appendleft((job.client_id, job.attempt + 1))
                else:
                    record.failed[str(job.client_id)] = result.reason
        # Where clients train at the same time, their seconds add up to more than have passed.
        record.seconds = {**seconds, "train": min(seconds["train"], time.perf_counter() - began)}
        record.failed = {str(i): record.failed[str(i)] for i in context.cohort if str(i) in record.failed}
        return trained

    def _sum(self, updates: Sequence[Update], record: RoundRecord, context: RoundContext) -> list[Update]:
        """One upload that stands for all: their weighted mean, of which alone the server learns; nothing if there is
        none. Clients that are not in it have failed."""
        found = self.fleet.sum(updates, context.round)
        record.bytes["up"] = found.nbytes
        for client_id, why in found.missing.items():
            self._fail(client_id, 0, Failed(why, ""), context)
            record.failed[str(client_id)] = why
        return [Update(_EVERYBODY, found.parameters, found.num_examples)] if found.num_examples else []

    def _fail(self, client_id: int, attempt: int, failed: Failed, context: RoundContext) -> None:
        if self.config.on_failure == "stop":
            if failed.error is not None and not isinstance(failed.error, ClientFailure):
                raise failed.error
            raise UserError(
                f"Client {client_id} failed in round {context.round}: {failed.reason}; valid are settings with "
                "which it does not, or federation.on_failure = drop."
            ) from failed.error
        failure = Failure(
            round=context.round,
            client=client_id,
            attempt=attempt,
            reason=failed.reason,
            traceback=failed.traceback,
        )
        self._call("on_client_failed", self, context, failure)

    def _describe(self, record: RoundRecord, trained: Sequence[Trained]) -> None:
        """Record what the cohort did."""
        updates = [done.update for done in trained]
        if trained:
            record.train_loss = math.fsum(done.loss for done in trained) / len(trained)
        record.prompt_drift = self._drift(updates)
        if not self.config.secure_aggregation:
            record.bytes["up"] = sum(update.nbytes for update in updates)
        record.metrics = _weighted_metrics(updates)
        known = self.server.clients.values()
        most_rounds = max((client.rounds_seen for client in known), default=0)
        record.privacy = self.privacy.record(most_rounds, [done.noise_std for done in trained])
        record.clients_seen = len(known)

    def _before_training(self) -> RoundRecord:
        record = RoundRecord(round=0, bytes={"down": 0, "up": 0, "evaluate_down": 0})
        record.seconds = {"train": 0.0, "evaluate": 0.0}
        self.rounds_done = 0
        began = time.perf_counter()
        self._evaluate(record, RoundContext(0, (), self.seed))
        record.line = self.fleet.crossed()
        record.seconds["other"] = time.perf_counter() - began - record.seconds["evaluate"]
        return record

    def _evaluate(self, record: RoundRecord, context: RoundContext) -> None:
        began = time.perf_counter()
        evaluation = self.evaluate(context)
        record.seconds["evaluate"] = time.perf_counter() - began
        record.evaluated = True
        record.accuracy = evaluation.accuracy
        evaluated = sum(client.accuracy is not None for client in evaluation.clients)
        if self.config.evaluate_clients != "all" and evaluated < self.config.participants:
            error = standard_error(record.accuracy["std"], evaluated, self.config.participants)
            record.accuracy = {**record.accuracy, "standard_error": error}
        record.accuracy_per_domain = evaluation.accuracy_per_domain
        record.experts, record.attention = evaluation.experts, evaluation.attention
        record.bytes["evaluate_down"] = evaluation.bytes_down
        record.failed = {**evaluation.failed, **record.failed}
        record.metrics = {**record.metrics, **evaluation.metrics}
        record.validation, record.quality = evaluation.validation, evaluation.quality
        record.accuracy_others, record.gate = evaluation.accuracy_others, evaluation.gate
        record.generalization, record.attack = evaluation.generalization, evaluation.attack
        self._call("on_evaluation_end", self, evaluation)

    def _drift(self, updates: Sequence[Update]) -> float | None:
        """Mean l2 distance of the cohort's prompts from the new global one."""
        if "prompt" not in self.server.shared or self.config.secure_aggregation:
            return None
        mean = self.server.shared["prompt"].double()
        prompts = [update.parameters["prompt"] for update in updates if "prompt" in update.parameters]
        distances = [float((prompt.double() - mean).norm()) for prompt in prompts]
        return math.fsum(distances) / len(distances) if distances else None

    def _call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*args)


def _weighted_metrics(updates: Sequence[Update]) -> dict[str, float]:
    """The mean of each of the method's own metrics over the clients that have it, weighted by n_i."""
    means = {}
    for name in dict.fromkeys(name for update in updates for name in update.metrics):
        having = [update for update in updates if name in update.metrics]
        total = math.fsum(update.num_examples * update.metrics[name] for update in having)
        means[name] = total / sum(update.num_examples for update in having)
    return means
