"""Fixtures of the tests of tracking."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import build_federation
from wandb_server import WandbServer

from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig, PrivacyConfig, TrackingConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.callbacks import Checkpoint, RunLog
from fedmoe.federation.restore import read_state
from fedmoe.io import write_json_atomic
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.runs.checkpoint import StateStore
from fedmoe.tracking.trackers import trackers
from tracking.helpers import CLIENTS, ROUNDS, SETTINGS, At, log_in


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody's key, settings or sweep; W&B's process does not outlive the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    yield
    if "wandb" in sys.modules:
        try:
            sys.modules["wandb"].teardown()
        except Exception as error:  # the test has killed W&B's process
            print(error)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    server = WandbServer()
    log_in(monkeypatch, server.url)
    yield server
    server.close()


@pytest.fixture(scope="session")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, FederationConfig(clients=CLIENTS), cache, seed=0)


@pytest.fixture
def fit(embedded_clip: FrozenCLIP, data: FederatedData, tmp_path: Path) -> Callable[..., Path]:
    """Runs pFedMoAP into a folder, or goes on where it stopped."""

    def fit(
        tracking: TrackingConfig,
        at: At | None = None,
        name: str = "run",
        rounds: int = ROUNDS,
        kind: type[PFedMoAP] = PFedMoAP,
    ) -> Path:
        folder = tmp_path / name
        config = FederationConfig(clients=CLIENTS, participation=0.8, rounds=rounds, local_epochs=1)
        method = kind(num_experts=2)
        store = StateStore(folder / "state")
        write_json_atomic(folder / "partition.json", data.summary())
        tracked = trackers(tracking, folder, SETTINGS)
        callbacks = [RunLog(folder), Checkpoint(store), *tracked, *([at] if at else [])]
        settings: dict[str, Any] = {"seed": 0, "callbacks": callbacks, "privacy": PrivacyConfig("upload")}
        federation, _ = build_federation(
            embedded_clip, data, method, config, OptimConfig(), read_state(store), **settings
        )
        try:
            federation.run()
        except KeyboardInterrupt:
            pass
        finally:
            for tracker in tracked:
                tracker.close()
        return folder

    return fit
