"""pFedMoAP on toys of a few numbers: whose prompts each client receives, who gets the gate, what predicts.

Prompts are points on a line (``toy_client.at``), text features are the prompts themselves; all values by hand.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from streams import stream
from torch import Tensor
from toy_client import SCALE, at, same, server_of, toy_client

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.methods import PFedMoAP
from fedmoe.methods.pfedmoap import _without_gate
from fedmoe.protocol.client import Client
from fedmoe.protocol.parameters import ModelSpec, Scope
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext
from fedmoe.server.state import Known, ServerState

LINE = {0: 0.0, 1: 1.0, 2: 3.0}  # client -> its prompt's place: 1 lies between, nearer to 0
GATE = {"gate.weight": torch.ones(2)}
SHARED = {"prompt": at(9.0), **GATE}
CONTEXT = RoundContext(6, (0, 1, 2), seed=5)


def method(**settings: Any) -> PFedMoAP:
    return PFedMoAP(**{"num_experts": 1, "gating_dim": 2, "heads": 1, **settings})


def ids_of(draw: Any, pool: dict[int, float], count: int) -> tuple[int, ...]:
    """What configure or deploy gives, checked: the experts are the pool's prompts of the ids, in their order."""
    downlink: Downlink = draw
    assert len(downlink.expert_ids) == count
    assert same(downlink.experts, {"prompt": torch.stack([at(pool[i]) for i in downlink.expert_ids])})
    return downlink.expert_ids


def test_the_defaults_are_the_papers() -> None:
    made = PFedMoAP()
    assert (made.num_experts, made.lmbda, made.gating_dim, made.heads, made.attention_scale) == (9, 0.5, 128, 8, 10.0)
    assert (made.assignment, made.evaluation_experts) == ("nearest", "fresh")
    assert (made.gate, made.pooling, made.gate_sharing) == ("attention", "stride", "local")


# Whose prompts


@pytest.mark.parametrize(
    ("count", "expected"), [(1, {0: (1,), 1: (0,), 2: (1,)}), (2, {0: (1, 2), 1: (0, 2), 2: (1, 0)})]
)
def test_the_nearest_are_downloaded_nearest_first(count: int, expected: dict[int, tuple[int, ...]]) -> None:
    server = server_of(LINE, SHARED, {client: Known(1, (9,)) for client in LINE})
    for client, ids in expected.items():
        assert ids_of(method(num_experts=count).configure(server, client, CONTEXT), LINE, count) == ids
        assert ids_of(method(num_experts=count).deploy(server, client, CONTEXT), LINE, count) == ids


def test_random_experts_are_distinct_others_each_about_equally_often() -> None:
    server = server_of(LINE, SHARED)
    one, two = method(assignment="random"), method(assignment="random", num_experts=2)
    for client in LINE:
        others = set(LINE) - {client}
        counts: Counter[int] = Counter()
        for round in range(1, 401):
            context = RoundContext(round, (0, 1, 2), seed=5)
            counts.update(ids_of(one.configure(server, client, context), LINE, 1))
            assert set(ids_of(two.configure(server, client, context), LINE, 2)) == others
        assert set(counts) == others
        assert all(abs(count - 200) < 60 for count in counts.values())  # six standard deviations of B(400, 1/2)


def test_random_experts_are_drawn_for_seed_purpose_round_and_client() -> None:
    pool = {client: float(client) for client in range(8)}
    server, randomly = server_of(pool, SHARED, {2: Known(1, (9,))}), method(assignment="random", num_experts=3)
    others = [0, 1, 3, 4, 5, 6, 7]
    for purpose, hook in (("train", randomly.configure), ("evaluate", randomly.deploy)):
        drawn = stream(f'[0,"experts",5,"{purpose}",6,2]').choice(7, size=3, replace=False)
        assert ids_of(hook(server, 2, CONTEXT), pool, 3) == tuple(others[i] for i in drawn)


# Who gets the gate


def test_for_training_the_gate_comes_with_the_experts() -> None:
    server = server_of({0: 0.0, 1: 1.0}, SHARED)
    assert same(method().configure(server, 0, CONTEXT).parameters, SHARED)
    assert method().configure(server, 0, CONTEXT).parameters is not server.shared
    newcomer = method().configure(server, 2, CONTEXT)  # not in the pool yet
    assert same(newcomer.parameters, {"prompt": at(9.0)})
    assert (newcomer.experts, newcomer.expert_ids, newcomer.extras) == ({}, (), {})
    alone = method().configure(server_of({0: 0.0}, SHARED), 0, CONTEXT)  # nobody else in the pool
    assert same(alone.parameters, {"prompt": at(9.0)})
    assert (alone.experts, alone.expert_ids) == ({}, ())


@pytest.mark.parametrize("kind", ["fresh", "held"])
def test_what_is_sent_for_an_evaluation(kind: Any) -> None:
    """Client 0 never took part, 1 trained without experts, 2 with client 0's prompt of that time."""
    known = {1: Known(1, ()), 2: Known(2, (0,))}
    server, deploy = server_of({1: 1.0, 2: 3.0}, SHARED, known), method(evaluation_experts=kind).deploy
    never, plain, mixed = (deploy(server, client, CONTEXT) for client in range(3))
    assert same(never.parameters, {"prompt": at(9.0)})  # the global prompt
    assert same(plain.parameters, {})  # it has its own prompt, and no trained gate
    assert same(mixed.parameters, GATE)  # of the averaged gate; it has its own prompt
    for downlink in (never, plain):
        assert (downlink.experts, downlink.expert_ids) == ({}, ())
    if kind == "held":  # the client has client 0's prompt already
        assert (mixed.experts, mixed.expert_ids) == ({}, (0,))
    else:  # from the current pool, in which client 0 is not
        assert ids_of(mixed, {1: 1.0}, 1) == (1,)


def test_the_declaration() -> None:
    def parts(**settings: Any) -> dict[str, Any]:
        return {part.name: part for part in method(**settings).parameters(ModelSpec(at(1.0), 2))}

    local, averaged, held = parts(), parts(gate_sharing="averaged"), parts(evaluation_experts="held")
    assert list(local) == list(averaged) == list(held) == ["prompt", "gate", "experts"]
    for made in (local, averaged, held):
        prompt = made["prompt"]
        assert (prompt.scope, prompt.rate, prompt.keep, prompt.pool) == (Scope.SHARED, "prompt_lr", True, True)
        assert torch.equal(prompt.start(torch.Generator()), at(1.0))
        assert (made["gate"].rate, made["gate"].keep, made["gate"].pool) == ("gating_lr", False, False)
        assert (made["experts"].scope, made["experts"].start) == (Scope.EXPERT, None)
    assert (local["gate"].scope, averaged["gate"].scope) == (Scope.PERSONAL, Scope.SHARED)
    assert (local["experts"].keep, held["experts"].keep) == (False, True)


@pytest.mark.parametrize("settings", [{}, {"gate_sharing": "averaged"}, {"evaluation_experts": "held"}])
def test_what_is_uploaded_and_kept_after_training(settings: dict[str, Any]) -> None:
    made = method(**settings)
    experts = {"prompt": torch.stack([at(3.0)])}
    client = toy_client(made, at(1.0))
    gate = {name: tensor for name, tensor in client.export().items() if name.startswith("gate.")}
    assert len(gate) == 8
    prompt = {"prompt": at(1.0)}
    update, kept = made.finish(client, ClientState(rounds_seen=2), Downlink(experts=experts), 30)
    assert (update.client_id, update.num_examples, kept.rounds_seen) == (4, 30, 3)
    averaged, held = "gate_sharing" in settings, "evaluation_experts" in settings
    assert same(update.parameters, prompt | gate if averaged else prompt)
    assert same(kept.parameters, prompt if averaged else prompt | gate)
    assert same(kept.experts, experts if held else {})
    update, kept = made.finish(client, ClientState(rounds_seen=2), Downlink(), 30)  # the gate was not trained
    assert (update.client_id, update.num_examples, kept.rounds_seen) == (4, 30, 3)
    assert same(update.parameters, prompt)
    assert same(kept.parameters, prompt)
    assert same(kept.experts, {})


def test_training_starts_from_the_global_prompt_and_the_clients_own_gate() -> None:
    own = ClientState({"prompt": at(1.0), "gate.weight": torch.zeros(2)}, {"prompt": torch.stack([at(5.0)])}, 1)
    experts = {"prompt": torch.stack([at(3.0)])}
    start = method().start(own, Downlink({"prompt": at(9.0)}, experts, expert_ids=(2,)))
    assert same(start.parameters, {"prompt": at(9.0), "gate.weight": torch.zeros(2)})
    assert same(start.experts, experts)
    held = method(evaluation_experts="held").inference(own, Downlink(expert_ids=(2,)))
    assert same(held.parameters, own.parameters)
    assert same(held.experts, own.experts)


def test_the_gate_is_told_by_its_name_alone() -> None:
    tensors = {"prompt": at(0.0), "gate.a": at(1.0), "gate": at(2.0), "gates": at(3.0), "agate.b": at(4.0)}
    assert same(_without_gate(tensors), {name: tensors[name] for name in ("prompt", "gates", "agate.b")})


# What predicts


def with_gate(values: dict[str, Tensor], experts: list[Tensor], **settings: Any) -> Client:
    """A client of prompt [[1, 0], [0, 1]], these experts, and a gate whose tensors are these, else zero."""
    client = toy_client(method(**settings), torch.eye(2), Loadout(experts={"prompt": torch.stack(experts)}))
    with torch.no_grad():
        for name, parameter in client.gate.named_parameters():
            parameter.copy_(values[name]) if name in values else parameter.zero_()
    return client


IMAGE = torch.tensor([[0.6, 0.8]])


def test_without_experts_the_prompt_predicts_alone() -> None:
    client = toy_client(method(), torch.eye(2))
    assert method().logits(client, IMAGE).tolist() == [pytest.approx([SCALE * 0.6, SCALE * 0.8])]
    assert method().analyse(client, IMAGE) == {}


@pytest.mark.parametrize("lmbda", [0.0, 0.25, 2.0])
def test_a_linear_gate_and_lambda_weigh_the_logits(lmbda: float) -> None:
    """Weights softmax(0, ln 3) = (1/4, 3/4) of the local text features and the expert's."""
    other = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # similarities with the image: 0.8, 0.6; the local ones: 0.6, 0.8
    client = with_gate({"projection.bias": torch.tensor([0.0, math.log(3)])}, [other], gate="linear", lmbda=lmbda)
    mixed = [0.25 * 0.6 + 0.75 * 0.8, 0.25 * 0.8 + 0.75 * 0.6]
    expected = [SCALE * (mixed[0] + lmbda * 0.6), SCALE * (mixed[1] + lmbda * 0.8)]
    made = method(gate="linear", lmbda=lmbda)
    assert made.logits(client, IMAGE).tolist() == [pytest.approx(expected, rel=1e-6)]
    analysis = made.analyse(client, IMAGE.expand(5, 2))
    assert analysis.keys() == {"attention", "entropy", "top_share", "without_experts"}
    assert analysis["attention"].tolist() == pytest.approx([0.25, 0.75], rel=1e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("heads", [1, 2])
def test_an_attention_gate_weighs_by_scaled_similarity(scale: float, heads: int) -> None:
    """All maps the identity, so query, key and value are the features; with two heads, one for each coordinate."""
    maps = {f"{name}.weight": torch.eye(2) for name in ("query", "key", "value", "output")}
    other = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    client = with_gate(maps, [other], attention_scale=scale, heads=heads, lmbda=0.5)
    image, texts = IMAGE[0].tolist(), [torch.eye(2).tolist(), other.tolist()]
    logits, weights = [], []
    for label in range(2):
        similarity = 0.0
        for part in ([[0, 1]], [[0], [1]])[heads - 1]:  # the coordinates of each head
            own = [sum(image[i] * text[label][i] for i in part) for text in texts]
            total = sum(math.exp(scale * value) for value in own)
            weights.append([math.exp(scale * value) / total for value in own])
            similarity += sum(weight * value for weight, value in zip(weights[-1], own, strict=True))
        logits.append(SCALE * (similarity + 0.5 * image[label]))
    made = method(attention_scale=scale, heads=heads, lmbda=0.5)
    assert made.logits(client, IMAGE).tolist() == [pytest.approx(logits, rel=1e-6)]
    mean = [sum(column) / len(weights) for column in zip(*weights, strict=True)]
    assert made.analyse(client, IMAGE)["attention"].tolist() == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("gate", ["attention", "linear"])
def test_the_gate_is_the_one_that_the_settings_ask_for(gate: Any) -> None:
    """Width 4 pooled to 2, and a start drawn from the generator: U(-1/sqrt(2), 1/sqrt(2)), weight before bias."""
    made = method(gate=gate, pooling="average", num_experts=2, heads=2)
    start = next(part.start for part in made.parameters(ModelSpec(torch.zeros(2, 4), 4)) if part.name == "gate")
    assert start is not None
    found: Any = start(torch.Generator().manual_seed(3))
    first = found.query if gate == "attention" else found.projection
    outputs = 2 if gate == "attention" else 3
    generator, bound = torch.Generator().manual_seed(3), 1 / math.sqrt(2)
    assert torch.equal(first.weight, torch.empty(outputs, 2).uniform_(-bound, bound, generator=generator))
    assert torch.equal(first.bias, torch.empty(outputs).uniform_(-bound, bound, generator=generator))
    assert found.pool(torch.tensor([1.0, 3.0, 5.0, 9.0])).tolist() == [2.0, 7.0]


# What is refused


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


def test_settings_that_do_not_fit() -> None:
    config = FederationConfig(clients=3)
    method(num_experts=2).check(config, 2)
    method(num_experts=0).check(config, 2)
    assert refusal(method(num_experts=3).check, config, 2) == (
        "method.num_experts is 3, but of federation.clients = 3 a client has only 2 others; valid is 0 to 2."
    )
    assert "method.gating_dim is 2, which does not divide CLIP's feature width 3" in refusal(method().check, config, 3)
    assert "method.heads is 3, which does not divide" in refusal(method(heads=3).check, config, 2)
    assert refusal(PFedMoAP, -1) == "method.num_experts is -1; valid is an integer of at least 0."


def test_a_server_is_not_changed_by_sending() -> None:
    server: ServerState = server_of(LINE, SHARED, {2: Known(1, (1,))})
    before = server.copy()
    method().configure(server, 2, CONTEXT), method().deploy(server, 2, CONTEXT)
    assert (server.pool.keys(), server.clients) == (before.pool.keys(), before.clients)
    assert same(server.shared, before.shared) and same(server.extras, {})
