"""pFedPrompt: its attention by hand, and federations on the embedded CLIP and data against PromptFL's.

Shape letters: b images, C classes, d feature width, n stored examples, V views.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import Log, assert_same_bits, build_federation, differences, results, work_of
from torch import Tensor
from torch.nn.functional import normalize

from fedmoe.config import FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data import Digits, Dirichlet, Pathological
from fedmoe.errors import UserError
from fedmoe.features.client_data import ClientData, FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import Method, PFedPrompt, PromptFL
from fedmoe.methods.pfedprompt import stored_attention
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import Loadout, RoundContext

CLIENTS = 5
CONFIG = FederationConfig(clients=CLIENTS, participation=0.6, rounds=3, local_epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, cache: FeatureConfig) -> FederatedData:
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


def run(clip: FrozenCLIP, data: FederatedData, method: Method, **more) -> tuple[Federation, Log]:
    federation, log = build_federation(clip, data, method, CONFIG, **more)
    federation.run()
    return federation, log


def own(features: Tensor, labels: Tensor, **more) -> ClientData:
    return ClientData(
        0, features, labels, torch.zeros(0, features.shape[-1]), torch.zeros(0, dtype=torch.int64), **more
    )


def test_the_attention_by_hand() -> None:
    """Three stored examples of classes 0, 2 and 2 among three classes; cosines 0.6, 0.8 and 1 with the image."""
    image = torch.tensor([[0.6, 0.8]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    values = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    expected = [math.exp(-5.5 * 0.4), 0.0, math.exp(-5.5 * 0.2) + 1]
    assert stored_attention(image, keys, values, beta=5.5)[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert stored_attention(image, keys, values, beta=0.0).tolist() == [[1.0, 0.0, 2.0]]  # counts


def test_logits_by_hand(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """Two stored examples, of the first two classes, and one test image."""
    federation, _ = build_federation(embedded_clip, data, PFedPrompt(alpha=2.0, beta=3.0), CONFIG)
    module, method, start = work_of(federation).module, federation.method, Loadout(federation.server.shared)
    stored, image = data.client(0).train_features[:2], data.client(1).test_features[:1]
    module.load(0, start, data=own(stored, torch.tensor([0, 1])))
    with torch.no_grad():
        ours, text = method.logits(module, image)[0], module.prompts()
    expected = [embedded_clip.logit_scale * float(image[0] @ row) for row in text]
    for label, key in enumerate(stored):
        expected[label] += 2.0 * math.exp(-3.0 * (1 - float(image[0] @ key)))
    assert ours.tolist() == pytest.approx(expected, rel=1e-5)
    # Without data, as for classes that no client has examples of, it is PromptFL.
    module.load(0, start)
    with torch.no_grad():
        assert torch.equal(method.logits(module, image), PromptFL().logits(module, image))


def test_of_cached_views_the_normalized_mean_is_the_key(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, _ = build_federation(embedded_clip, data, PFedPrompt(), CONFIG)
    module, start = work_of(federation).module, Loadout(federation.server.shared)
    features, images = data.client(0).train_features, data.client(1).test_features
    labels = torch.tensor([3, 1, 3])
    views = torch.stack([features[:3], features[3:6]], dim=1)  # [3, 2, d]
    means = torch.stack([one + other for one, other in zip(features[:3], features[3:6], strict=True)])
    means = torch.stack([mean / mean.square().sum().sqrt() for mean in means])
    found = []
    for stored in (own(views, labels, views=True), own(means, labels)):
        module.load(0, start, data=stored)
        with torch.no_grad():
            found.append(federation.method.logits(module, images))
    torch.testing.assert_close(*found)


def test_with_alpha_zero_it_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    ours, log_ours = run(embedded_clip, data, PFedPrompt(alpha=0.0))
    assert differences(promptfl.state, ours.state) == []
    assert results(log) == results(log_ours)
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_ours.evaluations]


def test_rounds_are_promptfls_and_nothing_of_the_data_is_sent_or_kept(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    ours, log_ours = run(embedded_clip, data, PFedPrompt())
    assert differences(promptfl.state, ours.state) == []  # all that a checkpoint holds
    for plain, other in zip(log.records, log_ours.records, strict=True):
        assert (plain.bytes, plain.train_loss, plain.prompt_drift) == (
            other.bytes,
            other.train_loss,
            other.prompt_drift,
        )
    assert len(ours.state.clients) >= 3
    for client in ours.state.clients.values():
        assert client.parameters == {} and client.experts == {}
    downlink = ours.method.deploy(ours.server, 0, RoundContext(3, (), 5))
    assert (downlink.parameters.keys(), downlink.experts, downlink.extras) == ({"prompt"}, {}, {})
    assert downlink.parameters["prompt"] is ours.server.shared["prompt"]


def test_each_client_is_scored_with_its_own_images(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    _, log = run(embedded_clip, data, PromptFL())
    federation, log_ours = run(embedded_clip, data, PFedPrompt(alpha=4.0, beta=8.0))
    with torch.no_grad():
        text = work_of(federation).module.prompts(federation.server.shared["prompt"])
    differ = 0
    for client_id in range(CLIENTS):
        client = data.client(client_id)
        logits = embedded_clip.logit_scale * client.test_features @ text.T
        for key, label in zip(client.train_features, client.train_labels.tolist(), strict=True):
            logits[:, label] += 4.0 * (8.0 * (client.test_features @ key - 1)).exp()
        correct = int((logits.argmax(1) == client.test_labels).sum())
        assert log_ours.evaluations[-1].clients[client_id].correct == correct
        differ += correct != log.evaluations[-1].clients[client_id].correct
    assert differ >= 3
    plain, personal = log.records[-1].accuracy, log_ours.records[-1].accuracy
    assert plain is not None and personal is not None
    assert personal["mean"] > plain["mean"] + 5


def test_neither_order_nor_the_global_generator_nor_an_interruption_changes_a_bit(
    embedded_clip: FrozenCLIP, data: FederatedData, tmp_path: Path
) -> None:
    stopped = build_federation(embedded_clip, data, PFedPrompt(), replace(CONFIG, rounds=2))
    stopped[0].run()
    assert_same_bits(lambda **how: run(embedded_clip, data, PFedPrompt(), **how), stopped, tmp_path)
    assert stopped[0].rounds_done == 2


@pytest.mark.parametrize("kind", ["cached", "online"])
def test_views_are_stored_or_refused_before_training(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, kind: Any
) -> None:
    views = ViewsConfig(kind=kind, count=2)
    digits = Digits(shots=2)
    config = replace(CONFIG, clients=2, participation=1.0, rounds=1)
    data = prepare(digits, Pathological(), embedded_clip, config, cache, seed=0, views=views)
    federation, log = build_federation(embedded_clip, data, PFedPrompt(), config)
    if kind == "online":
        message = r"views\.kind is 'online', where no training features are stored, .*; valid is none or cached\."
        with pytest.raises(UserError, match=message):
            federation.run()
        assert log.records == []  # found in the evaluation before the first round
        return
    federation.run()
    client = data.client(1)
    assert client.train_features.shape == (10, 2, embedded_clip.feature_dim)
    keys = normalize(client.train_features.sum(1), dim=1)
    with torch.no_grad():
        text = work_of(federation).module.prompts(federation.server.shared["prompt"])
        logits = embedded_clip.logit_scale * client.test_features @ text.T
    for key, label in zip(keys, client.train_labels.tolist(), strict=True):
        logits[:, label] += (5.5 * (client.test_features @ key - 1)).exp()
    assert log.evaluations[-1].clients[1].correct == int((logits.argmax(1) == client.test_labels).sum())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, r"method\.alpha is -1\.0; valid is a number of at least 0"),
        ({"beta": -0.5}, r"method\.beta is -0\.5; valid is a number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PFedPrompt(**settings)
