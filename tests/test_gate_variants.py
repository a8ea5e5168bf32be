"""The gates of tables 7 and 9 in pFedMoAP: linear projection, averaged over clients, other pooling.

Expected values are worked out by hand, come from torch, or are another method's run that must agree to the bit.

Shape letters: b images, C classes, d feature width, g gating width, K non-local experts, n <= K + 1 experts at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import Backwards, Log, build_federation, differences, results, work_of
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.state import FederationState
from fedmoe.methods import Method, PFedMoAP, PromptFL
from fedmoe.models.functional import average_pool, pool
from fedmoe.models.gating import LinearGate
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, part_of, select
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext, Tensors, Update
from fedmoe.runs.checkpoint import StateStore
from fedmoe.seeds import torch_generator
from fedmoe.server.sampling import sample_cohort
from fedmoe.server.state import ServerState

CLIENTS, SEED = 5, 5
CONFIG = FederationConfig(clients=CLIENTS, participation=0.6, rounds=4, local_epochs=1, batch_size=32)
PROMPT_BYTES = 16 * 64 * 4  # 16 vectors of 64 float32
GATE_BYTES = 4 * 32 * 33 * 4  # four maps 32 -> 32 with bias, float32
VARIANTS = [
    {"gate": "linear"},
    {"gate_sharing": "averaged"},
    {"gate": "linear", "gate_sharing": "averaged", "evaluation_experts": "held", "pooling": "average"},
    {"pooling": "average"},
]
CONTROLS = [
    {"num_experts": 0},
    {"assignment": "own", "evaluation_experts": "held"},
    {"assignment": "global"},
    {"assignment": "noise", "evaluation_experts": "held"},
    {"attention": "uniform"},
]


def method(**settings) -> PFedMoAP:
    return PFedMoAP(**{"num_experts": 2, "gating_dim": 32, "heads": 4, **settings})


def features(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch_generator(seed)), dim=-1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def data(embedded_clip, cache: FeatureConfig) -> FederatedData:
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


def run(clip, data: FederatedData, method: Method, config: FederationConfig = CONFIG, **more) -> tuple[Federation, Log]:
    federation, log = build_federation(clip, data, method, config, **more)
    federation.run()
    return federation, log


class Recorded(PFedMoAP):
    """Keeps everything that crosses the line between client and server."""

    def __init__(self, **settings) -> None:
        super().__init__(**{"num_experts": 2, "gating_dim": 32, "heads": 4, **settings})
        self.down: list[Downlink] = []
        self.deployed: list[Downlink] = []
        self.up: list[list[Update]] = []

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        self.down.append(super().configure(server, client_id, context))
        return self.down[-1]

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        self.up.append(list(updates))
        super().aggregate(server, updates, context)

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        self.deployed.append(super().deploy(server, client_id, context))
        return self.deployed[-1]


def gate_of(tensors: Tensors) -> dict[str, Tensor]:
    """The gate's among named tensors."""
    return select(tensors, ["gate"])


def without_gates(state: FederationState) -> FederationState:
    """The state without the gates of the server and of all clients."""

    def others(tensors: Tensors) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if part_of(name) != "gate"}

    clients = {i: replace(client, parameters=others(client.parameters)) for i, client in state.clients.items()}
    return replace(state, server=replace(state.server, shared=others(state.server.shared)), clients=clients)


# The linear gate


def test_the_linear_gate_by_hand() -> None:
    """Two experts, two classes, d = 4 and g = 2: coordinates 0 and 2 are kept."""
    gate = LinearGate(4, 2, num_experts=1)
    with torch.no_grad():
        gate.projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        gate.projection.bias.copy_(torch.tensor([0.0, math.log(3.0)]))
    image = torch.tensor([[1.0, 9.0, 1.0, 9.0], [math.log(6.0), 9.0, 0.0, 9.0]])
    # Weights: softmax(1, 1 + log 3) = (1, 3) / 4 and softmax(log 6, log 3) = (2, 1) / 3.
    text = torch.tensor(
        [
            [[4.0, 9.0, 0.0, 9.0], [0.0, 9.0, 12.0, 9.0]],  # local
            [[0.0, 9.0, 8.0, 9.0], [8.0, 9.0, 0.0, 9.0]],
        ]
    )
    expected = torch.tensor([[[1.0, 6.0], [6.0, 3.0]], [[8 / 3, 8 / 3], [8 / 3, 8.0]]])
    torch.testing.assert_close(gate(image, text), expected)
    # pool(I) is (1, 1) and (log 6, 0).
    similarity = torch.tensor([[7.0, 9.0], [8 / 3 * math.log(6.0), 8 / 3 * math.log(6.0)]])
    torch.testing.assert_close(gate.similarity(image, text), similarity)
    weights = torch.tensor([[0.25, 0.75], [2 / 3, 1 / 3]])
    for c in range(2):  # the same for all classes
        torch.testing.assert_close(gate.attention(image, text)[:, c, 0], weights)


def test_missing_experts_are_left_out_of_the_softmax() -> None:
    gate = LinearGate(64, 32, num_experts=4, generator=torch_generator(1))
    image, text = features(5, 64), features(5, 6, 64, seed=1)
    whole = gate.attention(image, text)
    assert whole.shape == (5, 6, 1, 5)
    for at_hand in (1, 3):
        weights = gate.attention(image, text[:at_hand])
        expected = whole[..., :at_hand] / whole[..., :at_hand].sum(-1, keepdim=True)  # renormalized
        torch.testing.assert_close(weights, expected)
        mixed = torch.einsum("bn,ncg->bcg", expected[:, 0, 0], pool(text[:at_hand], 32))
        torch.testing.assert_close(gate(image, text[:at_hand]), mixed)
    # A place has its weight, whoever stands there.
    swapped = text[[1, 0, 2, 3, 4]]
    assert torch.equal(gate.attention(image, swapped), whole)
    assert not torch.allclose(gate(image, swapped), gate(image, text), atol=1e-4)


@pytest.mark.parametrize(("pooling", "reduce"), [("stride", pool), ("average", average_pool)])
@pytest.mark.parametrize("at_hand", [2, 4])
def test_the_linear_gates_similarity_is_that_of_its_mixture(pooling: str, reduce, at_hand: int) -> None:
    gate = LinearGate(64, 16, 3, torch_generator(2), pooling).double()
    image, text = features(5, 64).double(), features(at_hand, 6, 64, seed=1).double().requires_grad_()
    inputs = [text, *gate.parameters()]
    plain = torch.einsum("bg,bcg->bc", reduce(image, 16), gate(image, text))
    direct = gate.similarity(image, text)
    torch.testing.assert_close(direct, plain, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(5, 6, generator=torch_generator(3), dtype=torch.float64)
    found, expected = (torch.autograd.grad(value, inputs, upstream) for value in (direct, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert bool(one.abs().sum() > 0)


def test_the_linear_gate_starts_as_torchs_linear_does() -> None:
    gate = LinearGate(64, 32, num_experts=9, generator=torch.Generator().manual_seed(11))
    torch.manual_seed(11)
    expected = nn.Linear(32, 10)
    assert torch.equal(gate.projection.weight, expected.weight)
    assert torch.equal(gate.projection.bias, expected.bias)
    assert sum(p.numel() for p in gate.parameters()) == 10 * 33


# Settings


@pytest.mark.parametrize("gate", ["attention", "linear"])
def test_widths_that_do_not_divide_are_refused_before_a_run(gate: str) -> None:
    with pytest.raises(UserError, match=r"method\.gating_dim is 100, .* CLIP's feature width 1024; valid are 1, 2, 4"):
        method(gate=gate, gating_dim=100).check(CONFIG, feature_dim=1024)
    for gating_dim in (32, 64, 128, 256, 512, 1024):  # table 9
        method(gate=gate, gating_dim=gating_dim).check(CONFIG, feature_dim=1024)


def test_heads_concern_only_attention() -> None:
    with pytest.raises(UserError, match=r"method\.heads is 7, which does not divide method\.gating_dim = 32"):
        method(heads=7).check(CONFIG, feature_dim=64)
    method(heads=7, gate="linear").check(CONFIG, feature_dim=64)


# In federations


@pytest.mark.parametrize("settings", [*VARIANTS, *CONTROLS])
def test_neither_order_nor_the_global_generator_nor_an_interruption_changes_a_bit(
    embedded_clip, data: FederatedData, settings: dict, tmp_path: Path
) -> None:
    whole, log = run(embedded_clip, data, method(**settings))
    torch.manual_seed(1234)
    again, log_again = run(embedded_clip, data, method(**settings), kind=Backwards)
    assert differences(whole.state, again.state) == []
    assert results(log) == results(log_again)
    averaged = settings.get("gate_sharing") == "averaged"
    for rounds in (2, 3):  # a gate is first trained in the second
        stopped, first_log = run(embedded_clip, data, method(**settings), replace(CONFIG, rounds=rounds))
        shared, start = gate_of(stopped.server.shared), work_of(stopped).module.shared_start()
        assert bool(shared) == averaged
        assert any(not torch.equal(tensor, start[name]) for name, tensor in shared.items()) == averaged
        assert stopped.server.extras == {}
        StateStore(tmp_path / str(rounds)).save(rounds, *stopped.state.flatten())
        state = StateStore(tmp_path / str(rounds)).load(FederationState.unflatten)
        assert state is not None and state.round == rounds
        resumed, second_log = run(embedded_clip, data, method(**settings), state=state)
        assert differences(whole.state, resumed.state) == []
        assert results(log) == results(first_log) + results(second_log)


class OwnPrompt(PromptFL):
    """PromptFL's rounds; who took part predicts with the prompt that it trained last. The server keeps uploads."""

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        return [replace(part, keep=True, pool=True) for part in super().parameters(model)]

    def inference(self, state: ClientState, downlink: Downlink) -> Loadout:
        return Loadout(state.parameters if state.took_part else downlink.parameters)


@pytest.mark.parametrize("settings", [{}, *VARIANTS[1:]])
def test_without_a_gate_only_the_plain_local_objective_is_left(
    embedded_clip, data: FederatedData, settings: dict
) -> None:
    plain, log = run(embedded_clip, data, OwnPrompt())
    alone, log_alone = run(embedded_clip, data, method(**{**settings, "gate": "none"}))
    assert all(not gate_of(client.parameters) for client in alone.state.clients.values())
    assert gate_of(alone.server.shared) == gate_of(work_of(alone).module.shared_start()) == {}
    assert differences(plain.state, alone.state) == []
    assert results(log) == results(log_alone)
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_alone.evaluations]


@pytest.mark.parametrize("settings", [{}, *[s for s in VARIANTS if "gate_sharing" not in s], CONTROLS[0]])
def test_nothing_of_a_local_gate_is_ever_sent(embedded_clip, data: FederatedData, settings: dict) -> None:
    ours = Recorded(**settings)
    federation, log = run(embedded_clip, data, ours)
    updates = [update for cohort in ours.up for update in cohort]
    assert len(updates) == 4 * 3
    assert all(update.parameters.keys() == {"prompt"} for update in updates)
    assert all(update.parameters["prompt"].shape == (16, 64) and update.metrics == {} for update in updates)
    assert all(update.nbytes == PROMPT_BYTES for update in updates)
    for downlink in [*ours.down, *ours.deployed]:
        assert downlink.extras == {}
        assert downlink.parameters.keys() <= {"prompt"} and downlink.experts.keys() <= {"prompt"}
    assert federation.server.extras == {}
    assert federation.server.shared.keys() == federation.server.pool.keys() == {"prompt"}
    gates = [gate_of(client.parameters) for client in federation.state.clients.values()]
    gated = [gate for gate in gates if gate]
    assert len(gated) > 1, "without a trained gate the test would show nothing"
    assert any(not torch.equal(gated[0][name], gated[1][name]) for name in gated[0])
    attention = log.records[-1].attention
    assert attention is not None
    assert attention["local"] + sum(attention["experts"]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("evaluation_experts", ["fresh", "held"])
def test_an_averaged_gate_goes_up_is_averaged_and_comes_down(
    embedded_clip, data: FederatedData, evaluation_experts: str
) -> None:
    ours = Recorded(gate_sharing="averaged", evaluation_experts=evaluation_experts)
    federation, log = run(embedded_clip, data, ours)
    examples = [len(data.client(i).train_labels) for i in range(CLIENTS)]
    gate: dict[str, Tensor] = {}  # the averaged one, by hand
    pool: set[int] = set()
    gated: set[int] = set()
    downlinks = iter(ours.down)
    for record, updates in zip(log.records[1:], ours.up, strict=True):
        returning = [i for i in record.cohort if i in pool]
        for client_id in record.cohort:
            sent = gate_of(next(downlinks).parameters)
            assert bool(sent) == (client_id in returning)
            if sent and gate:
                assert all(torch.equal(sent[name], gate[name]) for name in gate)
        gates = {update.client_id: gate_of(update.parameters) for update in updates}
        uploads = {client_id: sent for client_id, sent in gates.items() if sent}
        assert list(uploads) == returning
        if uploads:
            total = sum(examples[i] for i in uploads)
            names = next(iter(uploads.values()))
            gate = {
                name: (torch.stack([examples[i] * uploads[i][name].double() for i in uploads]).sum(0) / total).float()
                for name in names
            }
            assert sum(tensor.nbytes for tensor in gate.values()) == GATE_BYTES
        experts = len(returning) * min(2, max(len(pool) - 1, 0))
        down = (len(record.cohort) + experts) * PROMPT_BYTES + len(returning) * GATE_BYTES
        pool |= set(record.cohort)
        gated |= set(returning)
        each = GATE_BYTES + (2 * PROMPT_BYTES if evaluation_experts == "fresh" else 0)
        # For an evaluation: the gate and fresh experts to clients with a gate, the prompt to those that never trained.
        assert record.bytes == {
            "down": down,
            "up": len(record.cohort) * PROMPT_BYTES + len(returning) * GATE_BYTES,
            "evaluate_down": len(gated) * each + (CLIENTS - len(pool)) * PROMPT_BYTES,
        }
    assert len(ours.up[-1]) == 3 and len(gated) > 3, "too few gates to average: the test would show little"
    server = federation.server
    assert gate_of(server.shared).keys() == gate.keys()
    for name, tensor in gate.items():
        torch.testing.assert_close(server.shared[name], tensor, rtol=1e-6, atol=1e-7)
    for client_id in range(CLIENTS):
        own = federation.state.clients.get(client_id, ClientState())
        downlink = ours.deploy(server, client_id, RoundContext(4, (), SEED))
        used = gate_of(ours.inference(own, downlink).parameters)
        assert used.keys() == (gate.keys() if client_id in gated else set())
        assert all(tensor is server.shared[name] for name, tensor in used.items())


def test_the_common_start_of_an_averaged_gate_comes_from_the_server(embedded_clip, data: FederatedData) -> None:
    ours = Recorded(gate_sharing="averaged")
    run(embedded_clip, data, ours, replace(CONFIG, participation=1.0, rounds=2))
    first = [gate_of(downlink.parameters) for downlink in ours.down if gate_of(downlink.parameters)]
    assert len(first) == CLIENTS
    assert all(torch.equal(first[0][name], sent[name]) for sent in first for name in first[0])
    other = Recorded(gate_sharing="averaged")
    run(embedded_clip, data, other, replace(CONFIG, participation=1.0, rounds=2), seed=6)
    assert not torch.equal(first[0]["gate.query.weight"], other.down[-1].parameters["gate.query.weight"])


class CommonStart(PFedMoAP):
    """Local gates that all start where the averaged one does."""

    seed = SEED

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        prompt, gate, experts = super().parameters(model)
        assert (gate.name, gate.scope) == ("gate", Scope.PERSONAL)
        start = gate.start
        assert start is not None
        common = replace(gate, start=lambda own: start(torch_generator(self.seed, "gate")))
        return [prompt, common, experts]


@pytest.mark.parametrize("gate", ["attention", "linear"])
def test_where_one_client_trains_the_gate_the_averaged_one_is_its_own(
    embedded_clip, cache: FeatureConfig, gate: str
) -> None:
    config = replace(CONFIG, clients=2, participation=0.5, rounds=4)
    cohorts = [(1,), (0,), (0,), (0,)]  # client 0 has a gate from the third round on, client 1 never
    seed = next(s for s in range(200) if [sample_cohort(2, 0.5, s, r) for r in range(1, 5)] == cohorts)
    data = prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, config, cache, seed=0)
    settings: dict[str, Any] = {"num_experts": 1, "gating_dim": 32, "heads": 4, "gate": gate}
    common = CommonStart(**settings)
    common.seed = seed
    local, log = run(embedded_clip, data, common, config, seed=seed)
    averaged, log_averaged = run(embedded_clip, data, PFedMoAP(**settings, gate_sharing="averaged"), config, seed=seed)
    own, shared = gate_of(local.state.clients[0].parameters), gate_of(averaged.server.shared)
    assert own and own.keys() == shared.keys()
    assert all(torch.equal(own[name], shared[name]) for name in own)
    assert not gate_of(local.state.clients[1].parameters)
    assert differences(without_gates(local.state), without_gates(averaged.state)) == []
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_averaged.evaluations]


def test_with_more_clients_averaged_and_local_gates_part(embedded_clip, data: FederatedData) -> None:
    config = replace(CONFIG, participation=1.0)
    local, log = run(embedded_clip, data, CommonStart(2, gating_dim=32, heads=4), config)
    averaged, log_averaged = run(embedded_clip, data, method(gate_sharing="averaged"), config)
    # Through the second round, in which the gates are first trained, both train alike, but evaluate differently.
    assert [r.train_loss for r in log.records[1:3]] == [r.train_loss for r in log_averaged.records[1:3]]
    assert log.records[1].accuracy == log_averaged.records[1].accuracy
    assert log.records[2].accuracy != log_averaged.records[2].accuracy
    assert log.records[3].train_loss != log_averaged.records[3].train_loss
    assert not torch.equal(local.server.shared["prompt"], averaged.server.shared["prompt"])


@pytest.mark.parametrize("settings", [{"gate": "linear"}, {"pooling": "average"}])
def test_another_gate_is_another_run(embedded_clip, data: FederatedData, settings: dict) -> None:
    config = replace(CONFIG, participation=1.0, rounds=2)
    one, _ = run(embedded_clip, data, method(), config)
    other, _ = run(embedded_clip, data, method(**settings), config)
    assert not torch.equal(one.server.shared["prompt"], other.server.shared["prompt"])


def test_at_the_full_width_nothing_is_pooled(embedded_clip, data: FederatedData) -> None:
    config = replace(CONFIG, participation=1.0, rounds=2)
    width = embedded_clip.feature_dim
    one, log = run(embedded_clip, data, method(gating_dim=width), config)
    other, log_other = run(embedded_clip, data, method(gating_dim=width, pooling="average"), config)
    assert differences(one.state, other.state) == []
    assert results(log) == results(log_other)
