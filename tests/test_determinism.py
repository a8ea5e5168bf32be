"""Two runs with other numbers of workers and other orders of clients, from images to the last bit of the state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federation_helpers import Backwards, build_federation, differences, results

from fedmoe.config import FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.data.subset import SubsetConfig
from fedmoe.features.client_data import prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP

CONFIG = FederationConfig(clients=5, participation=0.6, rounds=3, local_epochs=1, batch_size=16)
DATA = Digits(subset=SubsetConfig(train=120, test=60))


@pytest.mark.parametrize("views", ["none", "cached", "online"])
def test_workers_and_order_change_no_bit(embedded_clip: FrozenCLIP, tmp_path: Path, views: str) -> None:
    finished, logs = [], []
    for workers, kind, noise in ((0, Federation, 1), (2, Backwards, 2)):
        torch.manual_seed(noise)  # the global generator plays no part
        features = FeatureConfig(cache_dir=str(tmp_path / str(workers)), workers=workers, batch_size=32)
        settings = ViewsConfig(kind=views, count=2)  # type: ignore[arg-type]
        data = prepare(DATA, Dirichlet(0.5, 5), embedded_clip, CONFIG, features, seed=0, views=settings)
        federation, log = build_federation(embedded_clip, data, PFedMoAP(2), CONFIG, kind=kind)
        federation.run()
        finished.append(federation.state)
        logs.append(results(log))
    assert differences(*finished) == []
    assert logs[0] == logs[1]


def test_another_seed_is_another_run(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    """The comparison above could fail."""
    features = FeatureConfig(cache_dir=str(tmp_path))
    data = prepare(DATA, Dirichlet(0.5, 5), embedded_clip, CONFIG, features, seed=0)
    prompts = []
    for seed in (5, 6):
        federation, _ = build_federation(embedded_clip, data, PFedMoAP(2), replace(CONFIG, rounds=1), seed=seed)
        federation.run()
        prompts.append(federation.server.shared["prompt"])
    assert not torch.equal(*prompts)
