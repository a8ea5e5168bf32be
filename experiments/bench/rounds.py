"""The share of a federated round that is spent outside model mathematics.

Mathematics are forward, backward, optimizer steps and evaluation logits; the rest is Lightning, sampling, aggregation,
logs and checkpoints.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.bench.measure import Spread
from experiments.bench.setting import RandomFeatures, federation
from fedmoe.client.module import ClientModule
from fedmoe.config import FederationConfig
from fedmoe.federation.callbacks import Callback, Checkpoint, FederationView, RunLog
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.records import RoundRecord


class _Timed(PFedMoAP):
    """pFedMoAP that adds up the seconds of its own mathematics."""

    mathematics = 0.0

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        start = time.perf_counter()
        loss = super().loss(client, image_features, labels)
        self.mathematics += time.perf_counter() - start
        return loss

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # counted in loss
            return super().logits(client, image_features)
        start = time.perf_counter()
        logits = super().logits(client, image_features)
        self.mathematics += time.perf_counter() - start
        return logits

    def analyse(self, client: Client, image_features: Tensor) -> dict[str, Tensor]:
        start = time.perf_counter()
        result = dict(super().analyse(client, image_features))
        self.mathematics += time.perf_counter() - start
        return result


class _TimedClient(ClientModule):
    """Times backward and optimizer step by Lightning's hooks, and the experts' text features in ``load``."""

    def load(self, *args: object, **kwargs: object) -> None:
        start = time.perf_counter()
        super().load(*args, **kwargs)  # type: ignore[arg-type]
        self.method.mathematics += time.perf_counter() - start  # type: ignore[attr-defined]

    def backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        start = time.perf_counter()
        super().backward(loss, *args, **kwargs)
        self.method.mathematics += time.perf_counter() - start  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        sgd: torch.optim.Optimizer = super().configure_optimizers()
        begun, inside = [0.0], [0.0]

        def before(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            closure = kwargs["closure"]  # Lightning's forward and backward, which are counted above

            def timed() -> Any:
                start = time.perf_counter()
                result = closure()
                inside[0] = time.perf_counter() - start
                return result

            begun[0] = time.perf_counter()
            return args, {**kwargs, "closure": timed}

        def after(*_: object) -> None:
            own = time.perf_counter() - begun[0] - inside[0]
            self.method.mathematics += own  # type: ignore[attr-defined]

        sgd.register_step_pre_hook(before)
        sgd.register_step_post_hook(after)
        return sgd


def bench_round(clip: FrozenCLIP, classes: int, rounds: int = 2) -> dict[str, Any]:
    """Seconds of a round with 4 clients of 6 steps each and 8 evaluated ones, and the share outside mathematics."""
    config = FederationConfig(clients=8, participation=0.5, rounds=rounds, local_epochs=3)
    method = _Timed(num_experts=5)
    dataset = RandomFeatures(classes=classes, clients=config.clients)
    shares: list[float] = []
    seconds: list[float] = []

    class Share(Callback):
        def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
            whole = sum(record.seconds.values()) + time.perf_counter() - logged[0]
            shares.append(1 - method.mathematics / whole)
            seconds.append(whole)
            method.mathematics = 0.0

    class LogStart(Callback):
        def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
            logged[0] = time.perf_counter()

    logged = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        files: list[Callback] = [RunLog(Path(folder)), Checkpoint(StateStore(Path(folder) / "state"))]
        federation(clip, method, dataset, config, [LogStart(), *files, Share()], kind=_TimedClient).run()
    # Round 0 has no training.
    return {
        "outside_mathematics": asdict(Spread.of(shares[1:])),
        "wall_seconds": asdict(Spread.of(seconds[1:])),
        "local_steps": 24,
        "evaluated_clients": config.clients,
    }
