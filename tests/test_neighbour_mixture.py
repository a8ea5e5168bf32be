"""Neighbour mixture on toys of a few numbers, worked out by hand, and a short run on the embedded CLIP.

Prompts are places on a line and text features the prompts themselves (``toy_client``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import build_federation
from toy_client import SCALE, at, same, server_of, toy_client

from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import prepare
from fedmoe.methods import CoOp, NeighbourMixture
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import ClientState, Loadout, RoundContext
from fedmoe.server.state import Known, ServerState

LINE = {0: 0.5, 1: 1.0, 2: 3.0, 3: -4.0}  # client -> its prompt's place
SHARED = {"prompt": at(9.0)}
CONTEXT = RoundContext(6, (0, 1, 2, 3), seed=5)
OWN = ClientState({"prompt": at(0.25)}, rounds_seen=2)
PLANE = torch.eye(2)  # class 0 along the first axis, class 1 along the second
IMAGE = torch.tensor([[0.6, 0.8]])


def server() -> ServerState:
    return server_of(LINE, SHARED, {client: Known(2) for client in LINE})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_client_downloads_its_neighbours_and_nothing_else() -> None:
    method = NeighbourMixture(num_experts=2)
    for downlink in (method.configure(server(), 0, CONTEXT), method.deploy(server(), 0, CONTEXT)):
        assert downlink.expert_ids == (1, 2)  # at distances 0.5 and 2.5; client 3 is 4.5 away
        assert same(downlink.experts, {"prompt": torch.stack([at(1.0), at(3.0)])})
        assert downlink.parameters == {}
        assert downlink.nbytes == 2 * 4 * 4  # two prompts of four float32 numbers


def test_a_newcomer_downloads_the_global_prompt() -> None:
    method = NeighbourMixture(num_experts=2)
    for downlink in (method.configure(server(), 7, CONTEXT), method.deploy(server(), 7, CONTEXT)):
        assert same(downlink.parameters, SHARED) and downlink.experts == {}
        for loadout in (method.start(ClientState(), downlink), method.inference(ClientState(), downlink)):
            assert same(loadout.parameters, SHARED) and loadout.experts == {}


@pytest.mark.parametrize(
    ("start", "place"),
    [
        ("neighbours", (0.25 + 1.0 + 3.0) / 3),  # the mean of what it keeps and what its neighbours sent
        ("own", 0.25),
        ("global", 9.0),
    ],
)
def test_where_local_training_starts(start: Any, place: float) -> None:
    method = NeighbourMixture(num_experts=2, start=start)
    downlink = method.configure(server(), 0, CONTEXT)
    loadout = method.start(OWN, downlink)
    torch.testing.assert_close(loadout.parameters["prompt"], at(place))
    assert same(loadout.experts, {"prompt": torch.stack([at(1.0), at(3.0)])})
    assert downlink.nbytes == (3 if start == "global" else 2) * 16
    deployed = method.deploy(server(), 0, CONTEXT)
    assert deployed.nbytes == 2 * 16
    assert same(method.inference(OWN, deployed).parameters, {"prompt": at(0.25)})  # it predicts with its own


@pytest.mark.parametrize(("own_weight", "own"), [(None, 1 / 3), (0.5, 0.5), (0.0, 0.0), (1.0, 1.0)])
def test_the_prediction_is_a_mixture_of_probabilities(own_weight: float | None, own: float) -> None:
    """Three classifiers of two classes: the difference of their logits is SCALE * (0.6 - 0.8) and so on."""
    experts = torch.stack([PLANE.flip(0), 5 * PLANE])
    method = NeighbourMixture(num_experts=2, own_weight=own_weight)
    client = toy_client(method, PLANE, Loadout({"prompt": PLANE}, {"prompt": experts}))
    logs = method.logits(client, IMAGE)
    first = own * sigmoid(-0.2 * SCALE) + (1 - own) / 2 * (sigmoid(0.2 * SCALE) + sigmoid(-1.0 * SCALE))
    torch.testing.assert_close(logs.exp(), torch.tensor([[first, 1 - first]]))
    weights = method.analyse(client, IMAGE)["attention"]
    torch.testing.assert_close(weights, torch.tensor([own, (1 - own) / 2, (1 - own) / 2]))


def test_training_sees_the_own_prompt_alone() -> None:
    method = NeighbourMixture(num_experts=2)
    labels, expected = torch.tensor([0]), -math.log(sigmoid(-0.2 * SCALE))
    for experts in ({}, {"prompt": torch.stack([PLANE.flip(0), 5 * PLANE])}):
        client = toy_client(method, PLANE, Loadout({"prompt": PLANE}, experts))
        assert float(method.loss(client, IMAGE, labels)) == pytest.approx(expected)


def test_without_experts_the_own_prompt_predicts() -> None:
    method = NeighbourMixture(num_experts=0)
    client = toy_client(method, PLANE, Loadout({"prompt": PLANE}))
    torch.testing.assert_close(method.logits(client, IMAGE), SCALE * IMAGE)
    assert method.analyse(client, IMAGE) == {}
    assert method.configure(server(), 0, CONTEXT).nbytes == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_experts": -1}, "method.num_experts is -1; valid is an integer of at least 0."),
        ({"own_weight": 1.5}, "method.own_weight is 1.5; valid is null or a number in [0, 1]."),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence.replace('[', '.')[:50]}"):
        NeighbourMixture(**settings)


def test_settings_that_do_not_fit_the_federation_are_refused() -> None:
    with pytest.raises(UserError, match=r"^method.num_experts is 9, but of federation.clients = 9"):
        NeighbourMixture().check(FederationConfig(clients=9), 128)
    with pytest.raises(UserError, match=r"^method.assignment is 'same_domain', but the data has no domains"):
        NeighbourMixture(assignment="same_domain").check_clients(server())


def test_alone_and_from_its_own_prompt_it_trains_as_coop_does(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    """One round without experts is local training from the common start, to the bit."""
    config = FederationConfig(clients=3, rounds=1, local_epochs=2, batch_size=32)
    digits, cache = Digits(subset=SubsetConfig(train=60, test=30)), FeatureConfig(cache_dir=str(tmp_path))
    data = prepare(digits, Dirichlet(alpha=1.0), embedded_clip, config, cache, seed=5)
    alone, log = build_federation(embedded_clip, data, NeighbourMixture(num_experts=0), config)
    alone.run()
    coop, other = build_federation(embedded_clip, data, CoOp(epochs=2), config)
    coop.run()
    assert [e.clients for e in log.evaluations] == [e.clients for e in other.evaluations]
    assert log.records[-1].train_loss == other.records[-1].train_loss
