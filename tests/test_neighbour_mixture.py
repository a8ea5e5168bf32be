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
from torch import Tensor
from toy_client import SCALE, at, same, server_of, toy_client

from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import prepare
from fedmoe.methods import CoOp, NeighbourMixture
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client
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
    method = NeighbourMixture(num_experts=2, start_from=start)
    downlink = method.configure(server(), 0, CONTEXT)
    loadout = method.start(OWN, downlink)
    torch.testing.assert_close(loadout.parameters["prompt"], at(place))
    assert same(loadout.experts, {"prompt": torch.stack([at(1.0), at(3.0)])})
    assert downlink.nbytes == (3 if start == "global" else 2) * 16
    deployed = method.deploy(server(), 0, CONTEXT)
    assert deployed.nbytes == 2 * 16
    assert same(method.inference(OWN, deployed).parameters, {"prompt": at(0.25)})  # it predicts with its own


def made(method: NeighbourMixture, prompt: Tensor, experts: dict[str, Tensor], tilt: float = 0.0) -> Client:
    """A client whose head makes (tilt x, 0) of a text feature (x, y): the identity, then a matrix with one entry. Its
    template has class 0 along the second axis."""
    client = toy_client(method, prompt, Loadout({"prompt": prompt}, experts), {"template": PLANE.flip(0)})
    if method.head_weight:
        head: Any = client.head  # type: ignore[attr-defined]
        with torch.no_grad():
            for tensor in head.parameters():
                tensor.zero_()
            head.value.weight.copy_(torch.eye(2))
            head.output.weight[0, 0] = tilt
    return client


EXPERTS = {"prompt": torch.stack([PLANE.flip(0), 5 * PLANE])}
VOTES = (sigmoid(-0.2 * SCALE), sigmoid(0.2 * SCALE), sigmoid(-1.0 * SCALE))  # for class 0: own, first, second


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_the_prediction_is_a_mixture_of_probabilities(weight: float) -> None:
    """Classifiers of two classes: the differences of their logits are SCALE times 0.6 - 0.8, 0.8 - 0.6, 5 (0.6 - 0.8),
    and of the head 0 - 0.6 * 1.5 + (0.8 - 0.6) / 2 = -0.8."""
    method = NeighbourMixture(num_experts=2, head_weight=weight, gating_dim=2)
    client = made(method, PLANE, EXPERTS, tilt=1.5)
    first = weight * sigmoid(-0.8 * SCALE) + (1 - weight) * sum(VOTES) / 3
    torch.testing.assert_close(method.logits(client, IMAGE).exp(), torch.tensor([[first, 1 - first]]))
    each = (1 - weight) / 3
    torch.testing.assert_close(method.analyse(client, IMAGE)["attention"], torch.tensor([weight + each, each, each]))


@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_prompt_and_head_are_trained_without_the_experts(experts: dict[str, Tensor]) -> None:
    labels = torch.tensor([0])
    bare = NeighbourMixture(num_experts=2, head_weight=0)
    prompt = PLANE.clone().requires_grad_()
    alone = bare.loss(made(bare, prompt, experts), IMAGE, labels)
    assert float(alone.detach()) == pytest.approx(-math.log(VOTES[0]))
    alone.backward()
    expected, prompt.grad = prompt.grad, None
    method = NeighbourMixture(num_experts=2, gating_dim=2)
    both = method.loss(made(method, prompt, experts, tilt=1.5), IMAGE, labels)
    assert float(both.detach()) == pytest.approx(-math.log(VOTES[0]) - math.log(sigmoid(-0.8 * SCALE)))
    both.backward()
    assert expected is not None and prompt.grad is not None
    torch.testing.assert_close(prompt.grad, expected)


def test_without_experts_and_head_the_own_prompt_predicts() -> None:
    method = NeighbourMixture(num_experts=0, head_weight=0)
    client = made(method, PLANE, {})
    torch.testing.assert_close(method.logits(client, IMAGE), (SCALE * IMAGE).log_softmax(dim=-1))
    assert method.analyse(client, IMAGE) == {}
    assert method.configure(server(), 0, CONTEXT).nbytes == 0


def test_the_head_stays_with_the_client() -> None:
    method = NeighbourMixture(num_experts=2, gating_dim=2)
    downlink = method.configure(server(), 0, CONTEXT)
    update, kept = method.finish(made(method, PLANE, EXPERTS, tilt=1.5), OWN, downlink, 7)
    assert set(update.parameters) == {"prompt"}
    maps = ("query", "key", "value", "output")
    assert set(kept.parameters) == {"prompt", *(f"head.{name}.{kind}" for name in maps for kind in ("weight", "bias"))}
    start = method.start(kept, downlink).parameters
    torch.testing.assert_close(start["prompt"], (PLANE + at(1.0) + at(3.0)) / 3)
    assert start["head.output.weight"].tolist() == [[1.5, 0.0], [0.0, 0.0]]  # it is not averaged with anything


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_experts": -1}, "method.num_experts is -1; valid is an integer of at least 0."),
        ({"head_weight": 1.5}, "method.head_weight is 1.5; valid is a number in [0, 1]."),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence.replace('[', '.')[:50]}"):
        NeighbourMixture(**settings)


def test_settings_that_do_not_fit_the_federation_are_refused() -> None:
    with pytest.raises(UserError, match=r"^method.num_experts is 9, but of federation.clients = 9"):
        NeighbourMixture().check(FederationConfig(clients=9), 128)
    with pytest.raises(UserError, match=r"^method.gating_dim is 100, which does not divide"):
        NeighbourMixture(gating_dim=100).check(FederationConfig(clients=10), 128)
    with pytest.raises(UserError, match=r"^method.assignment is 'same_domain', but the data has no domains"):
        NeighbourMixture(assignment="same_domain").check_clients(server())


def test_alone_and_from_its_own_prompt_it_trains_as_coop_does(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    """One round without experts is local training from the common start, to the bit."""
    config = FederationConfig(clients=3, rounds=1, local_epochs=2, batch_size=32)
    digits, cache = Digits(subset=SubsetConfig(train=60, test=30)), FeatureConfig(cache_dir=str(tmp_path))
    data = prepare(digits, Dirichlet(alpha=1.0), embedded_clip, config, cache, seed=5)
    alone, log = build_federation(embedded_clip, data, NeighbourMixture(num_experts=0, head_weight=0), config)
    alone.run()
    coop, other = build_federation(embedded_clip, data, CoOp(epochs=2), config)
    coop.run()
    assert [e.clients for e in log.evaluations] == [e.clients for e in other.evaluations]
    assert log.records[-1].train_loss == other.records[-1].train_loss
