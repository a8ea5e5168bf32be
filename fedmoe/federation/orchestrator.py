"""The round loop.

sample the cohort -> for each client: configure (prompt, experts) -> load -> fit -> export -> the server takes the
updates -> aggregate -> evaluate every client -> callbacks (log, checkpoint, progress).
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientFailure, LocalWork, Trained
from fedmoe.config import FederationConfig, PrivacyConfig, RuntimeConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.callbacks import Callback
from fedmoe.federation.evaluation import evaluate
from fedmoe.privacy.mechanism import rehearse
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import ClientUpdate, Downlink, Evaluation, Failure, RoundContext, RoundRecord
from fedmoe.runs.checkpoint import FederationState
from fedmoe.server.state import sample_cohort


class Federation:
    """Runs a method on clients, one Lightning fit for each client of each round's cohort.

    Args:
        method: what is sent, trained, averaged and predicted.
        module: the client; ``load`` turns it into any of them.
        data: features and labels of every client.
        config: rounds, participation, epochs; already adapted by ``method.schedule``.
        state: where to start; ``FederationState.fresh`` or a checkpoint.
        seed: the run's seed. Every draw derives from it, the round and the client, so that neither the order of
            clients nor an interruption changes a bit.
        callbacks: called at the end of clients and rounds.
        privacy: what protects uploads; None: nothing.

    Raises:
        UserError: the method does not fit the privacy mechanism.
    """

    def __init__(
        self,
        method: Method,
        module: ClientModule,
        data: FederatedData,
        config: FederationConfig,
        state: FederationState,
        *,
        seed: int = 0,
        runtime: RuntimeConfig | None = None,
        callbacks: Sequence[Callback] = (),
        privacy: PrivacyConfig | None = None,
    ) -> None:
        self.method, self.module, self.data = method, module, data
        self.config, self.state, self.seed = config, state, seed
        self.runtime = runtime or RuntimeConfig()
        self.callbacks = callbacks
        self.local = LocalWork(method, module, data, config, seed, self.runtime, privacy)
        rehearse(self.local, state.initial, range(min(2, config.participants)))

    def run(self) -> None:
        """All rounds that are not done yet; round 0 is the evaluation before training."""
        self._call("on_run_start", self)
        if self.state.round < 0:
            self._call("on_round_end", self, self._before_training())
        for number in range(self.state.round + 1, self.config.rounds + 1):
            self._call("on_round_end", self, self.round(number))
        self._call("on_run_end", self)

    def round(self, number: int) -> RoundRecord:
        """One round of Algorithm 1. The state changes only at its end, so an error inside leaves the last round's.

        A client that fails keeps its old state and pool entry, and has no weight in the mean; where all fail, the
        global prompt stays.
        """
        clock, state, config = _Clock(), self.state, self.config
        cohort = sample_cohort(config.participants, config.participation, self.seed, number)
        context = RoundContext(number, cohort, self.seed)
        record = RoundRecord(number, list(cohort))
        trained: dict[int, Trained] = {}
        down = 0
        for client_id in self.order(context.cohort):
            self._call("on_client_start", self, context, client_id)
            downlink = self.method.configure(state.server, client_id, context)
            with clock.phase("train"):
                result = self._train(client_id, downlink, context)
            down += downlink.nbytes
            if isinstance(result, Trained):
                trained[client_id] = result
                self._call("on_client_end", self, context, client_id, result.loss)
            else:
                record.failed[str(client_id)] = result.reason
        updates = [trained[client_id].update for client_id in context.cohort if client_id in trained]
        if updates:
            self.method.aggregate(state.server, updates)
            record.train_loss = math.fsum(done.loss for done in trained.values()) / len(trained)
        for client_id, done in trained.items():
            state.clients[client_id] = done.kept
        state.round = number
        record.prompt_drift = self._drift(updates)
        record.bytes = {"down": down, "up": sum(update.nbytes for update in updates), "evaluate_down": 0}
        if number % config.evaluate_every == 0 or number == config.rounds:
            with clock.phase("evaluate"):
                self._record_evaluation(record, self.evaluate(context))
        record.privacy = self.local.privacy.record(state, list(trained.values()))
        record.clients_seen = sum(client.took_part for client in state.clients)
        record.seconds = clock.seconds()
        return record

    def order(self, cohort: Sequence[int]) -> Sequence[int]:
        """The order in which the cohort is trained; it changes no result."""
        return cohort

    def evaluate(self, context: RoundContext) -> Evaluation:
        """Every client that takes part in rounds, on its own test split."""
        return evaluate(self.local, self.state, context, range(self.config.participants))

    def _train(self, client_id: int, downlink: Downlink, context: RoundContext) -> Trained | Failure:
        """Local training under the policy ``federation.on_failure``.

        Raises:
            UserError: a mistake in the settings; or a failure, where it is to stop the run.
        """
        attempts = 1 + (self.config.retries if self.config.on_failure == "retry" else 0)
        for attempt in range(attempts):
            try:
                return self.local.train(client_id, self.state.clients[client_id], downlink, context, attempt)
            except UserError:
                raise
            except Exception as error:
                if self.config.on_failure == "stop":
                    if not isinstance(error, ClientFailure):
                        raise
                    raise UserError(
                        f"Client {client_id} failed in round {context.round}: {error}; valid are settings with which "
                        "it does not, or federation.on_failure = drop."
                    ) from error
                failure = Failure(context.round, client_id, attempt, _reason(error), traceback.format_exc())
                self._call("on_client_failed", self, context, failure)
        return failure

    def _before_training(self) -> RoundRecord:
        clock, record = _Clock(), RoundRecord(0, bytes={"down": 0, "up": 0, "evaluate_down": 0})
        self.state.round = 0
        with clock.phase("evaluate"):
            self._record_evaluation(record, self.evaluate(RoundContext(0, (), self.seed)))
        record.seconds = clock.seconds()
        return record

    def _record_evaluation(self, record: RoundRecord, evaluation: Evaluation) -> None:
        record.evaluated = True
        record.accuracy = evaluation.accuracy
        record.accuracy_per_domain = evaluation.accuracy_per_domain
        record.experts, record.attention = evaluation.experts, evaluation.attention
        record.bytes["evaluate_down"] = evaluation.bytes_down
        record.failed = {**evaluation.failed, **record.failed}
        self._call("on_evaluation_end", self, evaluation)

    def _drift(self, updates: Sequence[ClientUpdate]) -> float | None:
        mean = self.state.server.prompt.double()
        prompts = [update.prompt for update in updates if update.prompt is not None]
        distances = [float((prompt.double() - mean).norm()) for prompt in prompts if prompt.shape == mean.shape]
        if not distances:
            return None
        return math.fsum(distances) / len(distances)

    def _call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*args)


def _reason(error: Exception) -> str:
    """One line: what failed."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, ClientFailure) else f"{type(error).__name__}{f': {text}' if text else ''}"


class _Clock:
    """Seconds of a round by phase; ``other`` is what lies outside all phases."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases = {"train": 0.0, "evaluate": 0.0}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._phases[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        whole = time.perf_counter() - self._start
        return {**self._phases, "other": whole - sum(self._phases.values())}
