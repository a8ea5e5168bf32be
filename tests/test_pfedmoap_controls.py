"""The controls of pFedMoAP: what stands in for the experts, the gate alone, no gate, a uniform or an untrained one.

Toys of a few numbers, worked out by hand (``toy_client``: prompts are places on a line, text features the prompts), and
short runs on the embedded CLIP.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from federation_helpers import build_federation, results
from streams import stream
from torch import Tensor
from toy_client import SCALE, at, same, server_of, toy_client

from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.state import FederationState
from fedmoe.methods import PFedMoAP
from fedmoe.models.functional import normalized_entropy, top_share
from fedmoe.models.gating import AttentionGate
from fedmoe.protocol.parameters import ModelSpec
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext
from fedmoe.seeds import torch_generator
from fedmoe.server.state import Known, ServerState

LINE = {0: 0.5, 1: 1.0, 2: 3.0, 3: -4.0}  # client -> its prompt's place, whose l2 norm is twice that
SHARED = {"prompt": at(9.0)}
CONTEXT = RoundContext(6, (0, 1, 2, 3), seed=5)
OWN = ClientState({"prompt": at(0.25), "gate.a": torch.ones(1)}, rounds_seen=2)  # what a client keeps
IMAGE = torch.tensor([[0.6, 0.8]])


def method(**settings: Any) -> PFedMoAP:
    return PFedMoAP(**{"num_experts": 2, "gating_dim": 2, "heads": 1, **settings})


def server(domains: dict[int, str] | None = None, pool: dict[int, float] = LINE) -> ServerState:
    """Everybody has trained twice, the second time with a gate."""
    made = server_of(pool, SHARED, {client: Known(2, gated=True) for client in pool})
    made.domains = domains or {}
    return made


def both(made: PFedMoAP, state: ServerState, client: int) -> list[Downlink]:
    """What is sent for training and for an evaluation."""
    return [made.configure(state, client, CONTEXT), made.deploy(state, client, CONTEXT)]


def test_the_defaults_are_no_controls() -> None:
    made = PFedMoAP()
    assert (made.attention, made.gate_start, made.train_gate) == ("learned", "random", True)


# What stands in for the experts


def test_the_farthest_are_downloaded_farthest_first() -> None:
    for downlink in both(method(assignment="farthest"), server(), 0):
        assert downlink.expert_ids == (3, 2)  # at distances 4.5 and 2.5
        assert same(downlink.experts, {"prompt": torch.stack([at(-4.0), at(3.0)])})


def test_experts_of_the_same_domain_are_the_others_of_the_clients_own() -> None:
    made, domains = method(assignment="same_domain"), {0: "a", 1: "b", 2: "a", 3: "c"}
    for downlink in both(made, server(domains), 0):
        assert downlink.expert_ids == (2,)
        assert same(downlink.experts, {"prompt": torch.stack([at(3.0)])})
    for downlink in both(made, server(domains), 1):  # alone in its domain: the plain local objective
        assert (downlink.experts, downlink.expert_ids) == ({}, ())


def test_experts_of_the_same_domain_are_drawn_for_seed_purpose_round_and_client() -> None:
    pool = {client: float(client) for client in range(9)}
    state = server({client: "odd" if client % 2 else "even" for client in pool}, pool)
    downlinks = both(method(assignment="same_domain", num_experts=3), state, 2)
    for purpose, downlink in zip(("train", "evaluate"), downlinks, strict=True):
        drawn = stream(f'[0,"experts",5,"{purpose}",6,2]').choice(4, size=3, replace=False)
        assert downlink.expert_ids == tuple([0, 4, 6, 8][i] for i in drawn)


def test_a_domain_is_asked_for_before_the_first_round() -> None:
    made = method(assignment="same_domain")
    made.check_clients(server({0: "a", 1: "b"}))
    method().check_clients(server())
    with pytest.raises(UserError) as caught:
        made.check_clients(server())
    assert str(caught.value) == (
        "method.assignment is 'same_domain', but the data has no domains; valid is data with domains (DomainNet, "
        "OfficeCaltech10, or ImageFolder with layout domains), or another assignment."
    )


def test_copies_of_the_own_prompt_are_made_by_the_client_and_cost_nothing() -> None:
    made = method(assignment="own", num_experts=3)
    train, evaluate = both(made, server(), 1)
    assert train.expert_ids == evaluate.expert_ids == (1, 1, 1)
    assert (train.nbytes, evaluate.nbytes) == (16, 0)  # the global prompt's four numbers; nothing
    start, used = made.start(OWN, train), made.inference(OWN, evaluate)
    assert same(start.experts, {"prompt": torch.stack([at(0.25)] * 3)})
    assert torch.equal(start.parameters["prompt"], at(9.0))
    assert same(used.experts, start.experts)
    assert torch.equal(used.parameters["prompt"], at(0.25))


def test_copies_of_the_global_prompt_are_made_from_one() -> None:
    made = method(assignment="global", num_experts=3)
    train, evaluate = both(made, server(), 1)
    for downlink in (train, evaluate):
        assert downlink.expert_ids == ()
        assert same(downlink.experts, {"prompt": torch.stack([at(9.0)])})
    assert (train.nbytes, evaluate.nbytes) == (32, 16)
    start, used = made.start(OWN, train), made.inference(OWN, evaluate)
    for loadout, prompt in ((start, 9.0), (used, 0.25)):
        assert same(loadout.experts, {"prompt": torch.stack([at(9.0)] * 3)})
        assert torch.equal(loadout.parameters["prompt"], at(prompt))


@pytest.mark.parametrize(("assignment", "place"), [("own", 0.25), ("global", 9.0)])
def test_held_copies_are_those_it_trained_with(assignment: Any, place: float) -> None:
    made = method(assignment=assignment, evaluation_experts="held")
    train, evaluate = both(made, server(), 1)
    _, kept = made.finish(toy_client(made, at(1.0)), OWN, train, 10)
    assert same(kept.experts, {"prompt": torch.stack([at(place)] * 2)})
    assert same(evaluate.experts, {})
    used = made.inference(kept, evaluate)
    assert same(used.experts, kept.experts)
    assert torch.equal(used.parameters["prompt"], at(1.0))


def test_noise_has_the_norm_of_the_prompts_that_nearest_would_give() -> None:
    downlinks = both(method(assignment="noise"), server(), 0)
    for purpose, downlink in zip(("train", "evaluate"), downlinks, strict=True):
        draws = stream(f'[0,"noise",5,"{purpose}",6,0]')
        expected = [torch.from_numpy(draws.standard_normal((2, 2))) for _ in range(2)]
        assert downlink.expert_ids == ()
        found = downlink.experts["prompt"]
        assert found.dtype == torch.float32
        assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([2.0, 6.0])  # of clients 1 and 2
        for noise, drawn, norm in zip(found, expected, (2.0, 6.0), strict=True):
            torch.testing.assert_close(noise, (drawn * norm / math.sqrt(float(drawn.square().sum()))).float())


@pytest.mark.parametrize("assignment", ["farthest", "same_domain", "own", "global", "noise"])
@pytest.mark.parametrize("count", [0, 2])
def test_a_control_has_a_gate_when_the_method_does(assignment: Any, count: int) -> None:
    """Not before the client is in the pool, nor while nobody else is."""
    made = method(assignment=assignment, num_experts=count, gate_sharing="averaged")
    gate = {"gate.a": torch.ones(3)}
    for pool, client, gated in (({0: 1.0, 1: 2.0}, 0, True), ({0: 1.0, 1: 2.0}, 2, False), ({0: 1.0}, 0, False)):
        state = server_of(pool, SHARED | gate)
        state.domains = dict.fromkeys(range(3), "a")
        downlink = made.configure(state, client, CONTEXT)
        assert same(downlink.parameters, SHARED | gate if gated else SHARED)
        assert (downlink.experts.keys() == {"prompt"}) == gated


# The gate alone, and none


def test_without_experts_the_gate_comes_and_nothing_else() -> None:
    made = method(num_experts=0)
    train, evaluate = both(made, server(), 1)
    assert (train.nbytes, evaluate.nbytes, train.expert_ids, evaluate.expert_ids) == (16, 0, (), ())
    for downlink in (train, evaluate):
        assert same(downlink.experts, {"prompt": torch.zeros(0, 2, 2)})
    untrained = server_of(LINE, SHARED, {1: Known(1)})
    assert method(num_experts=0).deploy(untrained, 1, CONTEXT).experts == {}


@pytest.mark.parametrize("gate", ["attention", "linear"])
def test_the_gate_alone_maps_the_local_text_feature(gate: Any) -> None:
    """Its one weight is 1. The value map doubles, so that I . T_MoE is 2 I . T; a linear gate has no maps."""
    client = toy_client(
        method(num_experts=0, gate=gate), torch.eye(2), Loadout(experts={"prompt": torch.zeros(0, 2, 2)})
    )
    with torch.no_grad():
        if gate == "attention":
            for map in (client.gate.value, client.gate.output):
                map.bias.zero_()
            client.gate.value.weight.copy_(2 * torch.eye(2))
            client.gate.output.weight.copy_(torch.eye(2))
    factor = 2 if gate == "attention" else 1
    made = method(num_experts=0, gate=gate, lmbda=0.25)
    expected = [SCALE * (factor * place + 0.25 * place) for place in (0.6, 0.8)]
    assert made.logits(client, IMAGE).tolist() == [pytest.approx(expected)]
    assert made.analyse(client, IMAGE)["attention"].tolist() == [1.0]


def test_without_a_gate_nothing_is_declared_but_the_prompt() -> None:
    made = method(gate="none")
    (prompt,) = made.parameters(ModelSpec(at(1.0), 2))
    assert (prompt.name, prompt.keep) == ("prompt", True)
    train, evaluate = both(made, server_of(LINE, SHARED, {1: Known(2)}), 1)
    assert same(train.parameters, SHARED) and same(evaluate.parameters, {})
    assert (train.experts, evaluate.experts, train.expert_ids, evaluate.expert_ids) == ({}, {}, (), ())
    method(gate="none", gating_dim=7).check(FederationConfig(clients=4), 16)  # no gate, so no width


# The attention


@pytest.mark.parametrize("heads", [1, 2])
def test_uniform_attention_is_the_mean_of_the_experts(heads: int) -> None:
    """Value and output maps are the identity: I . T_MoE is the mean similarity of local and two other features."""
    others = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [-1.0, 0.0]]])
    made = method(attention="uniform", heads=heads, lmbda=0.5)
    client = toy_client(made, torch.eye(2), Loadout(experts={"prompt": others}))
    with torch.no_grad():
        for layer in (client.gate.value, client.gate.output):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    expected = [(0.6 + 0.8 + 1.4) / 3 + 0.5 * 0.6, (0.8 + 0.6 - 0.6) / 3 + 0.5 * 0.8]
    assert made.logits(client, IMAGE).tolist() == [pytest.approx([SCALE * value for value in expected])]
    assert made.analyse(client, IMAGE)["attention"].tolist() == pytest.approx([1 / 3] * 3)


def started(**settings: Any) -> AttentionGate:
    """The gate as the method starts it."""
    made = method(gating_dim=4, heads=2, **settings)
    start = next(part.start for part in made.parameters(ModelSpec(torch.zeros(2, 4), 4)) if part.name == "gate")
    assert start is not None
    gate = start(torch.Generator().manual_seed(3))
    assert isinstance(gate, AttentionGate)
    return gate


def test_a_start_of_the_identity_weighs_experts_by_their_similarity() -> None:
    gate, random = started(gate_start="identity", attention_scale=2.0), started()
    image = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    text = torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.5]]])  # local and one other, one class
    weights = gate.attention(image, text)[0, 0]  # [h, K + 1]; each head has two of the four coordinates
    assert weights.tolist() == [
        pytest.approx([math.e**2 / (math.e**2 + 1), 1 / (math.e**2 + 1)]),
        pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)]),
    ]
    for name in ("value.weight", "value.bias", "output.weight", "output.bias"):
        assert torch.equal(gate.state_dict()[name], random.state_dict()[name])


def test_uniform_and_learned_attention_start_with_the_same_maps() -> None:
    uniform, learned = started(attention="uniform").state_dict(), started().state_dict()
    assert same(uniform, learned)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": "uniform"}, "method.attention is 'uniform'"),
        ({"gate_start": "identity"}, "method.gate_start is 'identity'"),
    ],
)
@pytest.mark.parametrize("gate", ["linear", "none"])
def test_settings_of_the_attention_need_one(settings: dict[str, Any], said: str, gate: Any) -> None:
    with pytest.raises(UserError, match=rf"^{said}, which only method\.gate = attention has; valid is \w+\.$"):
        method(gate=gate, **settings)


# In federations

CONFIG = FederationConfig(clients=4, participation=1.0, rounds=3, local_epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def data(embedded_clip: Any, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("settings", [{}, {"num_experts": 0}, {"gate": "linear"}])
def test_an_untrained_gate_stays_at_its_start(
    embedded_clip: Any, data: FederatedData, trained: bool, settings: dict[str, Any]
) -> None:
    made = PFedMoAP(**{"num_experts": 2, "gating_dim": 32, "heads": 4, "train_gate": trained, **settings})
    federation, _ = build_federation(embedded_clip, data, made, CONFIG)
    federation.run()
    start = next(part.start for part in made.parameters(ModelSpec(torch.zeros(16, 64), 128)) if part.name == "gate")
    assert start is not None
    for client_id, client in federation.state.clients.items():
        drawn: Any = start(torch_generator(5, "personal", client_id))
        kept: dict[str, Tensor] = {f"gate.{name}": tensor for name, tensor in drawn.state_dict().items()}
        equal = {name: torch.equal(client.parameters[name], tensor) for name, tensor in kept.items()}
        assert client.parameters.keys() == {"prompt", *kept}
        assert all(equal.values()) if not trained else not all(equal.values())
        assert not torch.equal(client.parameters["prompt"], federation.server.shared["prompt"])


def test_the_gate_alone_changes_what_is_learned(embedded_clip: Any, data: FederatedData) -> None:
    alone, none = (
        build_federation(embedded_clip, data, PFedMoAP(gating_dim=32, heads=4, **settings), CONFIG)
        for settings in ({"num_experts": 0}, {"num_experts": 0, "gate": "none"})
    )
    for federation, _ in (alone, none):
        federation.run()
    assert results(alone[1])[:2] == results(none[1])[:2]  # round 0 and the first, in which nobody has a gate
    assert alone[1].records[2].train_loss != none[1].records[2].train_loss
    assert {record.bytes["down"] for record in alone[1].records[1:]} == {4 * 16 * 64 * 4}  # global prompts alone


def test_the_server_and_a_checkpoint_know_of_a_gate_without_ids_of_experts(
    embedded_clip: Any, data: FederatedData
) -> None:
    made = PFedMoAP(num_experts=0, gating_dim=32, heads=4)
    federation, _ = build_federation(embedded_clip, data, made, CONFIG)
    federation.run()
    assert {known.gated for known in federation.server.clients.values()} == {True}
    assert {known.expert_ids for known in federation.server.clients.values()} == {()}
    read = FederationState.unflatten(*federation.state.flatten())
    assert read.server.clients == federation.server.clients
    again, _ = build_federation(embedded_clip, data, made, CONFIG, state=read)
    assert again.evaluate(CONTEXT).accuracy == federation.evaluate(CONTEXT).accuracy


# Whether the gate mixes


def test_entropy_and_largest_weight_by_hand() -> None:
    """Two images, two classes, one head, four experts: entropies 0, log 2 and log 4 over log 4."""
    one, two, four = [1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.25] * 4
    weights = torch.tensor([[[one], [two]], [[four], [four]]])
    assert normalized_entropy(weights).tolist() == pytest.approx([0.25, 1.0])
    assert top_share(weights).tolist() == pytest.approx([0.75, 0.25])
    heads = torch.tensor([[[two, four]]])  # one image and class, two heads
    assert normalized_entropy(heads).tolist() == pytest.approx([0.75])
    assert top_share(heads).tolist() == pytest.approx([0.375])


def test_what_a_gate_says_of_its_experts() -> None:
    """A linear gate of weights (1/4, 3/4): the other expert has the classes exchanged, and outvotes the local one."""
    other = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    made = method(gate="linear", num_experts=1, lmbda=0.25)
    client = toy_client(made, torch.eye(2), Loadout(experts={"prompt": other[None]}))
    with torch.no_grad():
        client.gate.projection.weight.zero_()
        client.gate.projection.bias.copy_(torch.tensor([0.0, math.log(3)]))
    found = made.analyse(client, IMAGE.expand(3, 2))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert found["entropy"].tolist() == pytest.approx([entropy] * 3)
    assert found["top_share"].tolist() == pytest.approx([0.75] * 3)
    assert found["without_experts"].tolist() == [pytest.approx([SCALE * 1.25 * 0.6, SCALE * 1.25 * 0.8])] * 3
    with_experts = made.logits(client, IMAGE)
    assert int(with_experts.argmax()) == 0 and int(found["without_experts"][0].argmax()) == 1


@pytest.mark.parametrize("gate", ["attention", "linear"])
def test_without_experts_is_as_if_each_were_a_copy_of_the_local_one(gate: Any) -> None:
    made = method(gate=gate, num_experts=3)
    others = torch.rand(3, 2, 2, generator=torch_generator(4))
    client = toy_client(made, torch.eye(2), Loadout(experts={"prompt": others}))
    alone = made.analyse(client, IMAGE)["without_experts"]
    client.expert_text = torch.eye(2).expand(3, 2, 2)
    torch.testing.assert_close(made.logits(client, IMAGE), alone)
