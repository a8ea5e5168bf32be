"""What a client does on the server's orders: local training and evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedmoe.attacks.adversary import Adversary
from fedmoe.client.counts import calibration, confusion, gate_sums, right_and_all
from fedmoe.client.lockstep import Place
from fedmoe.client.module import ClientModule
from fedmoe.client.trainer import light_trainer
from fedmoe.config import FederationConfig, RuntimeConfig
from fedmoe.errors import UserError, require
from fedmoe.features.client_data import ClientData, FeatureBatches, FederatedData
from fedmoe.models.gating import Gate
from fedmoe.protocol.records import About, ClientState, Downlink, Loadout, Scored, ScoreJob, Trained, TrainJob, Update
from fedmoe.seeds import derive, torch_generator

ATTENTION = "attention"  # among the extras of an update: the mean weights of the client's gate, if asked for
BATCH = 1024  # images evaluated at once; bounds the memory of the gate's weights


class ClientFailure(Exception):
    """A client's local training failed; the message says why, without naming the client."""


class Protection:
    """What protects uploads; this base class does nothing."""

    active: ClassVar[bool] = False

    def begin(self, module: ClientModule, state: ClientState, downlink: Downlink, round: int) -> None:
        """Before local training of the client that the module holds."""

    def check(self, module: ClientModule, downlink: Downlink, start: Loadout, update: Update) -> None:
        """After local training, refuse an upload for which the guarantee does not hold.

        Raises:
            UserError: the method does not fit the mechanism.
        """

    def protect(self, module: ClientModule, update: Update, round: int) -> tuple[Update, float]:
        """What to send instead of ``update``, and the standard deviation of the noise in it (or in each step)."""
        return update, 0.0


class ClientWork:
    """Turns the one module into each client, trains and evaluates it. Keeps no client's state.

    Args:
        module: the client, which knows its method.
        data: features and labels of every client.
        config: rounds, epochs and batch size, already adapted by ``Method.schedule``.
        seed: the run's seed; every draw derives from it, the round and the client.
        protection: what protects uploads.
        adversary: the attack, and which clients carry it out; None: all are honest.
        reports: whether clients also upload the mean weights of their gate, for a reputation of experts.

    Raises:
        UserError: momentum is to be shared, but the optimizer has none; or clients are to train together, where they
            cannot.
    """

    def __init__(
        self,
        module: ClientModule,
        data: FederatedData,
        config: FederationConfig,
        seed: int,
        runtime: RuntimeConfig | None = None,
        protection: Protection | None = None,
        adversary: Adversary | None = None,
        reports: bool = False,
    ) -> None:
        self.module, self.method, self.data = module, module.method, data
        self.config, self.seed, self.runtime = config, seed, runtime or RuntimeConfig()
        self.protection = protection or Protection()
        self.adversary, self.reports = adversary, reports
        if self.runtime.precision != "float32" and module.optim.precision == "float16":
            raise UserError(
                f"runtime.precision is {self.runtime.precision!r}, but optim.precision is 'float16', in which products "
                "are taken anyway; valid is float32 for one of them."
            )
        if config.share_momentum and module.optim.optimizer != "sgd":
            raise UserError(
                f"federation.share_momentum is true, but optim.optimizer is {module.optim.optimizer!r}, which has no "
                "momentum of SGD; valid is sgd, or federation.share_momentum = false."
            )
        if self.runtime.cohort_batch > 1:
            reason = self._alone()
            require(reason is None, "runtime.cohort_batch", self.runtime.cohort_batch, f"1 with {reason}")

    def _alone(self) -> str | None:
        """The setting with which one client has to train at a time; None if there is none."""
        if self.config.share_momentum:
            return "federation.share_momentum, where a client starts from what the one before it left"
        if self.method.admits_at_once:
            return "uploads that are admitted before the next client is configured"
        return "a privacy mechanism, which changes each client's gradients" if self.protection.active else None

    def twin(self) -> ClientWork:
        """The same with a module of its own, for a client that trains at the same time."""
        other = copy(self)
        other.module = self.module.twin()
        return other

    def about(self, client_id: int) -> About:
        """What a client tells the server about its data."""
        own = self.data.client(client_id)
        return About(len(own.train_labels), len(own.test_labels), own.domain)

    def train(self, job: TrainJob, state: ClientState, place: Place[Any] | None = None) -> tuple[Trained, ClientState]:
        """Local training (Algorithm 1, step 4): what is sent up, and what the client keeps.

        Args:
            place: among clients that train together with this one.

        Raises:
            ClientFailure: the loss or a trained parameter is not finite, or memory ran out.
            UserError: the method does not fit the privacy mechanism.
        """
        began, module, downlink = time.perf_counter(), self.module, job.downlink
        start = self.method.start(state, downlink)
        own, epochs = self.data.client(job.client_id), self.config.local_epochs
        if self.adversary is not None:
            own = self.adversary.data(own, job.round)
            epochs = self.adversary.epochs(job.client_id, job.round, epochs)
        self.load(job.client_id, start, job.round, job.turn, own)
        self.protection.begin(module, state, downlink, job.round)
        if place is not None:
            module.meet(place)
        again = (job.attempt,) if job.attempt else ()
        loss = self._fit(epochs, ("fit", *again), ("batches", *again), job.round, own)
        update, kept = self.method.finish(module, state, downlink, self.about(job.client_id).train_examples)
        if self.config.share_momentum:
            update = replace(update, extras={**update.extras, **module.momentum()})
        _require_finite([*module.tensors().values(), *update.extras.values()])
        self.protection.check(module, downlink, start, update)
        update, noise_std = self.protection.protect(module, update, job.round)
        if self.reports:
            update = replace(update, extras={**update.extras, **self._report(own)})
        if self.adversary is not None:  # last of all: an attacker keeps to no protocol
            update = self.adversary.upload(update, downlink, job.round)
            _require_finite(update.parameters.values())
        return Trained(update, loss, time.perf_counter() - began, noise_std), kept

    @torch.no_grad()
    def _report(self, own: ClientData) -> dict[str, Tensor]:
        """The mean weights [K + 1] of the gate on the client's training images; nothing without a gate over experts."""
        generator, total = torch_generator(self.seed, "report", own.client_id), torch.zeros(())
        for features, labels in own.training_batches(BATCH, generator):
            found = self._analyse(features).get("attention")
            if found is None:
                return {}
            total = total + len(labels) * found.cpu().double()
        return {ATTENTION: (total / len(own.train_labels)).float()}

    @torch.no_grad()
    def score(self, job: ScoreJob, state: ClientState) -> Scored:
        """The client's evaluation on its own test split."""
        failed = None
        try:
            self.ready(job, state)
        except ClientFailure as failure:
            failed = f"fine-tuning: {failure}"
        own, sums = self.data.client(job.client_id), dict[str, Tensor]()
        entropies: list[Tensor] = []  # of each image, where there is a gate over experts
        for features, labels in FeatureBatches(own.test_features, own.test_labels, BATCH):
            with self._attention_shared():
                logits = self._logits(features)
                found = {name: value.cpu() for name, value in self._analyse(features).items()}
            parts = {"confusion": confusion(logits, labels), "calibration": calibration(logits, labels)}
            if "entropy" in found:
                entropies.append(found["entropy"].double())
                shares = found.pop("entropy"), found.pop("top_share")
                parts["gate"] = gate_sums(*shares, found.pop("without_experts"), labels)
            parts |= {name: len(labels) * mean.double() for name, mean in found.items()}
            sums = {name: sums[name] + part if name in sums else part for name, part in parts.items()}
        correct, total = int(sums["confusion"].trace()), len(own.test_labels)
        if entropies:
            sums["gate_p10"] = torch.cat(entropies).quantile(0.1).unsqueeze(0)
        sums |= self._right_and_all("validation", own.validation_features, own.validation_labels)
        if self.config.evaluate_train:
            generator = torch_generator(self.seed, "train accuracy", job.client_id)
            batches = own.training_batches(BATCH, generator)
            counts = [right_and_all(self._logits(features), labels) for features, labels in batches]
            sums["train"] = torch.stack(counts).sum(dim=0)
        if self.config.evaluate_others:
            sums |= self._right_and_all("others", *self.data.others_test(job.client_id))
        if self.adversary is not None and self.adversary.attack.measured:
            features = self.adversary.test_features(own)
            sums["attack"] = self.adversary.success(features, own.test_labels, self._logits, BATCH)
        return Scored(job.client_id, correct, total, sums, failed)

    def _right_and_all(self, name: str, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """How many images the client gets right, and how many there are [2], by name; nothing without images."""
        batches = FeatureBatches(features, labels, BATCH)
        counts = [right_and_all(self._logits(features), labels) for features, labels in batches]
        return {name: torch.stack(counts).sum(dim=0)} if counts else {}

    def _logits(self, features: Tensor) -> Tensor:
        """Logits [b, C] on the CPU."""
        logits: Tensor = self.module(features.to(self.module.device)).cpu().float()
        valid = (len(features), len(self.module.prompts.class_names))
        if logits.shape != valid:
            raise ValueError(f"logits have shape {list(logits.shape)}; valid is [b, C] = {list(valid)}")
        return logits

    def _attention_shared(self) -> AbstractContextManager[None]:
        gate = self.module.gate
        return gate.attention_shared() if isinstance(gate, Gate) else nullcontext()

    def _analyse(self, features: Tensor) -> Mapping[str, Tensor]:
        return self.method.analyse(self.module, self.module.features(features.to(self.module.device)))

    def ready(self, job: ScoreJob, state: ClientState) -> Loadout:
        """Load what the client predicts with; if the method fine-tunes, fit it to the training split first.

        Raises:
            ClientFailure: that fit failed; the module holds what it started from.
        """
        loadout = self.method.inference(state, job.downlink)
        self.load(job.client_id, loadout, job.round)
        epochs, own = self.method.fine_tune_epochs, self.data.client(job.client_id)
        if epochs and len(own.train_labels):
            try:
                with torch.enable_grad():
                    self._fit(epochs, ("fine-tune",), ("fine-tune batches",), job.round, own)
                    _require_finite(self.module.tensors().values())
            except ClientFailure:
                self.load(job.client_id, loadout, job.round)
                raise
        return loadout

    def load(self, client_id: int, loadout: Loadout, round: int, turn: int = 0, own: ClientData | None = None) -> None:
        """Turn the module into a client in a round, after ``turn`` local fits of the federation; ``own`` is in place of
        the client's data."""
        progress = 0.0  # also for a client that joins after the last round: its schedule starts from the beginning
        if 1 <= round <= self.config.rounds:
            progress = (round - 1) / self.config.rounds
        self.module.load(client_id, loadout, progress, own or self.data.client(client_id), turn)

    def _fit(
        self, epochs: int, draws: tuple[str | int, ...], order: tuple[str | int, ...], round: int, own: ClientData
    ) -> float:
        """Fit the client that the module holds to data; returns the mean loss of its steps. ``draws`` and ``order`` are
        the keys of the seeds for the loss and for the batches."""
        client_id = self.module.client_id
        torch.manual_seed(derive(self.seed, *draws, round, client_id))  # for methods that draw in their loss
        generator = torch_generator(self.seed, *order, round, client_id)
        batches = own.training_batches(self.config.batch_size, generator, self.config.drop_last)
        trainer = light_trainer(self.runtime, max_epochs=epochs)
        try:
            trainer.fit(self.module, batches)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ClientFailure(f"memory ran out with federation.batch_size = {self.config.batch_size}") from error
        finally:
            self.module.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
        loss = self.module.mean_loss()
        if not math.isfinite(loss):
            optim = self.module.optim
            raise ClientFailure(
                f"its training loss became {loss} with optim.prompt_lr = {optim.prompt_lr:g} and optim.gating_lr = "
                f"{optim.gating_lr:g}"
            )
        return loss


def _require_finite(tensors: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ClientFailure("its trained parameters are not finite")
