"""PromptFolio: its release's values, its arithmetic by hand, and the two methods that it is at the ends of theta."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from federation_helpers import build_federation, work_of
from golden_helpers import case_client, difference, fit, gradients, read_case
from toy_client import SCALE, server_of, toy_client

from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import FedPer, PromptFL, PromptFolio
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed
from fedmoe.protocol.records import Loadout, RoundContext, Update

CONFIG = FederationConfig(clients=5, participation=0.6, rounds=2, local_epochs=1, batch_size=32)
PLANE = torch.eye(2)


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


@pytest.mark.parametrize("backbone", ["rn", "vit"])
def test_values_are_the_releases(golden_clips: dict[str, FrozenCLIP], backbone: str) -> None:
    settings, golden = read_case(f"promptfolio_{backbone}")
    method = PromptFolio(settings["theta"])
    module = case_client(golden_clips[backbone], settings, method, settings["n_ctx"])
    module.load(0, Loadout({"prompt": golden["ctx"][0], "local": golden["ctx"][1]}))
    images, labels = golden["image_features"], golden["labels"].long()
    with torch.no_grad():
        assert difference(module.text_features(), golden["text_features"]) < 1e-5
        assert difference(module(images), golden["logits"]) < 1e-5
        for theta, name in ((0.0, "logits_global_only"), (1.0, "logits_local_only")):
            method.theta = theta
            assert difference(module(images), golden[name]) < 1e-5
        method.theta = settings["theta"]
    loss = method.loss(module, images, labels)
    assert difference(loss[None], golden["loss"]) < 1e-5
    found = gradients(module, loss)
    assert difference(torch.stack([found["prompt"], found["local"]]), golden["grad.ctx"]) < 1e-5
    fit(module, images, labels, settings["steps"])
    assert difference(torch.stack(module.losses), golden["after.losses"]) < 1e-5
    after = module.export()
    assert difference(torch.stack([after["prompt"], after["local"]]), golden["after.ctx"]) < 1e-5
    assert difference(golden["ctx"], golden["after.ctx"]) > 1e-3  # the steps were not too small to tell
    with torch.no_grad():
        assert difference(module(images), golden["after.logits"]) < 1e-5

    server = server_of({}, {"prompt": golden["ctx"][0]})
    updates = [
        Update(i, {"prompt": ctx[0]}, count)
        for i, (ctx, count) in enumerate(zip(golden["server.in.ctx"], settings["client_samples"], strict=True))
    ]
    method.aggregate(server, updates, RoundContext(1, (0, 1, 2), 0))
    assert difference(server.shared["prompt"], golden["server.global"][0]) < 1e-6
    for out, before in zip(golden["server.out.ctx"], golden["server.in.ctx"], strict=True):
        sent = method.configure(server, 0, RoundContext(2, (0, 1, 2), 0))
        assert set(sent.parameters) == {"prompt"}
        assert difference(sent.parameters["prompt"], out[0]) < 1e-6
        assert torch.equal(before[1], out[1])


def test_the_mixture_by_hand_is_not_normalized_again() -> None:
    """Global text e_0, e_1; local text e_1, e_0; theta = 1/4: an image (0.6, 0.8) has the logits
    s (0.75 * 0.6 + 0.25 * 0.8) = 0.65 s and s (0.75 * 0.8 + 0.25 * 0.6) = 0.75 s."""
    method = PromptFolio(theta=0.25)
    client = toy_client(method, PLANE, Loadout({"prompt": PLANE, "local": PLANE.flip(0)}))
    image = torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(method.logits(client, image), SCALE * torch.tensor([[0.65, 0.75]]))
    loss = method.loss(client, image, torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(0.1 * SCALE)), rel=1e-5)


def test_at_theta_zero_it_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    runs = [build_federation(embedded_clip, data, method, CONFIG) for method in (PromptFL(), PromptFolio(theta=0.0))]
    for federation, _ in runs:
        federation.run()
    (plain, plain_log), (ours, our_log) = runs
    assert torch.equal(plain.server.shared["prompt"], ours.server.shared["prompt"])
    for one, other in zip(plain_log.records, our_log.records, strict=True):
        assert (one.bytes, one.train_loss, one.accuracy) == (other.bytes, other.train_loss, other.accuracy)


class FromTheCommonStart(PromptFolio):
    """Its local prompt starts as FedPer's: at the common initial value, and with the prompt's rate."""

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        return [super().parameters(model)[0], Parameter("local", Scope.PERSONAL, fixed(model.prompt))]


def test_at_theta_one_it_is_local_training(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """FedPer with all vectors personal; and what is averaged was never trained."""
    runs = [build_federation(embedded_clip, data, m, CONFIG) for m in (FedPer(16), FromTheCommonStart(theta=1.0))]
    for federation, _ in runs:
        federation.run()
    (per, per_log), (ours, our_log) = runs
    for client, state in per.state.clients.items():
        assert torch.equal(state.parameters["own"], ours.state.clients[client].parameters["local"])
    assert [record.accuracy for record in per_log.records] == [record.accuracy for record in our_log.records]
    start = work_of(ours).module.shared_start()["prompt"]
    torch.testing.assert_close(ours.server.shared["prompt"], start, rtol=0, atol=0)


@pytest.mark.parametrize(("settings", "said"), [({"theta": 1.5}, "theta"), ({"std": -1}, "std")])
def test_mistakes_are_told(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{said} is"):
        PromptFolio(**settings)
