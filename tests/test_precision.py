"""Mixed precision of local training (runtime.precision), through Lightning, against torch's own autocast."""

from __future__ import annotations

import pytest
import torch
from federation_helpers import build_federation, work_of

from fedmoe.cli import main
from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig, RuntimeConfig
from fedmoe.data import IID, Digits
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import LocalAdapter
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import ClientState, Downlink, RoundContext, ScoreJob

CONFIG = FederationConfig(clients=1, rounds=1, local_epochs=1, batch_size=64)  # one step
HALF = RuntimeConfig(accelerator="cpu", precision="bfloat16")


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(shots=6), IID(), embedded_clip, CONFIG, cache, seed=0)


def test_a_step_is_taken_in_bfloat16_and_all_that_lasts_is_float32(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    own, method = data.client(0), LocalAdapter()
    federation, log = build_federation(embedded_clip, data, method, CONFIG, runtime=HALF)
    module, server = work_of(federation).module, federation.server
    work_of(federation).load(0, method.start(ClientState(), Downlink(dict(server.shared))), 1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = method.loss(module, own.train_features, own.train_labels).item()
    plain = method.loss(module, own.train_features, own.train_labels).item()
    federation.run()
    assert log.records[-1].train_loss == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(plain, abs=1e-5) and expected == pytest.approx(plain, rel=0.02)
    assert {tensor.dtype for tensor in federation.state.flatten()[0].values()} == {torch.float32}
    after = ScoreJob(0, 1, 1, method.deploy(server, 0, RoundContext(1, (), 5)))
    work_of(federation).ready(after, federation.fleet.states(server.clients)[0])
    with torch.no_grad():  # evaluated without autocast
        logits = module(own.test_features)
    assert logits.dtype == torch.float32
    assert log.evaluations[-1].clients[0].correct == (logits.argmax(1) == own.test_labels).sum().item()


def test_two_kinds_of_half_precision_are_refused(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    with pytest.raises(UserError, match=r"^runtime.precision is 'bfloat16', but optim.precision is 'float16'"):
        build_federation(embedded_clip, data, LocalAdapter(), CONFIG, OptimConfig(precision="float16"), runtime=HALF)


def test_more_devices_are_the_simulations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["partition", "--runtime.devices=2"]) == 2
    told = capsys.readouterr().err
    assert "runtime.devices is 2; valid is 1" in told and "engine.kind = flower_simulation with engine.gpus" in told
