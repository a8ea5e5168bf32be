"""The round loop on the embedded CLIP and data: isolation, order, determinism, resume, cost.

Everything runs for real: CLIP, Lightning, checkpoints. The expected values are other runs that must agree, or counts
worked out by hand.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from federation_helpers import Backwards, Log, build_federation, differences, results
from torch.nn.functional import cross_entropy

from fedmoe.client.module import ClientModule
from fedmoe.client.trainer import light_trainer
from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig, PromptConfig, RuntimeConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.features.client_data import FeatureBatches, FederatedData, prepare
from fedmoe.federation.callbacks import Callback, Checkpoint, FederationView
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.restore import read_state
from fedmoe.methods import CoOp, FedProx, Method, PFedMoAP, PromptFL, ZeroShot
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.client import Client
from fedmoe.protocol.records import ClientState, RoundContext, Tensors, TrainJob
from fedmoe.runs.checkpoint import StateStore
from fedmoe.seeds import torch_generator

CLIENTS = 8
CONFIG = FederationConfig(clients=CLIENTS, participation=0.5, rounds=3, local_epochs=2, batch_size=32)
METHODS = [ZeroShot, lambda: CoOp(epochs=2), PromptFL, FedProx, lambda: PFedMoAP(num_experts=3)]
PROMPT_BYTES = 16 * 64 * 4  # 16 vectors of 64 float32


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


def build(
    clip: FrozenCLIP, data: FederatedData, method: Method, config: FederationConfig = CONFIG, **settings
) -> tuple[Federation, Log]:
    return build_federation(clip, data, method, config, **settings)


def clients_of(federation: Federation) -> LocalFleet:
    """Where the clients are: here in this process."""
    assert isinstance(federation.fleet, LocalFleet)
    return federation.fleet


@pytest.mark.parametrize("make", METHODS)
def test_client_order_and_repetition_change_no_bit(embedded_clip: FrozenCLIP, data: FederatedData, make) -> None:
    first, log = build(embedded_clip, data, make())
    first.run()
    again, log_again = build(embedded_clip, data, make(), kind=Backwards)
    torch.manual_seed(1234)  # the global generator must not matter
    again.run()
    assert differences(first.state, again.state) == []
    assert results(log) == results(log_again)
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_again.evaluations]


def test_another_seed_is_another_run(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    one, _ = build(embedded_clip, data, PromptFL(), seed=1)
    other, _ = build(embedded_clip, data, PromptFL(), seed=2)
    one.run()
    other.run()
    assert not torch.equal(one.server.shared["prompt"], other.server.shared["prompt"])


@pytest.mark.parametrize("make", METHODS[1:])
def test_a_client_trains_the_same_after_others_as_alone(embedded_clip: FrozenCLIP, data: FederatedData, make) -> None:
    """Nothing leaks: client 3 in a module that others used, and in one of its own."""

    def train(federation: Federation, client_id: int) -> tuple[Tensors, ClientState]:
        context = RoundContext(2, (0, 3, 6), federation.seed)
        downlink = federation.method.configure(federation.server, client_id, context)
        fleet, version = clients_of(federation), federation.server.known(client_id).version
        job = TrainJob(client_id, context.round, version, downlink)
        trained, kept = fleet.work.train(job, fleet.kept.get(client_id, version))
        return trained.update.parameters, kept

    used, _ = build(embedded_clip, data, make())
    for entries in used.server.pool.values():  # of the methods that have a pool
        entries.update({i: torch.randn(16, 64, generator=torch_generator(i)) for i in (0, 3, 6)})
    for other in (0, 6):
        train(used, other)
    used.evaluate(RoundContext(2, (), 5))
    alone, _ = build(embedded_clip, data, make())
    alone.server.pool = used.server.pool
    (sent, one), (sent_alone, two) = train(used, 3), train(alone, 3)
    assert "prompt" in {**sent, **one.parameters}
    for mine, theirs in ((sent, sent_alone), (one.parameters, two.parameters), (one.experts, two.experts)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("make", METHODS[1:])
def test_resuming_changes_no_bit(embedded_clip: FrozenCLIP, data: FederatedData, make, tmp_path: Path) -> None:
    whole, log = build(embedded_clip, data, make())
    whole.run()

    class Stop(Callback):
        def on_client_end(self, run: FederationView, context: RoundContext, client_id: int, loss: float) -> None:
            if context.round == run.config.rounds:  # in the middle of the last round
                raise KeyboardInterrupt

    store = StateStore(tmp_path)
    stopped, first_log = build(embedded_clip, data, make(), callbacks=[Checkpoint(store), Stop()])
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    state = read_state(StateStore(tmp_path))
    assert state is not None
    assert state.round == whole.config.rounds - 1
    resumed, second_log = build(embedded_clip, data, make(), state=state)
    resumed.run()
    assert differences(whole.state, resumed.state) == []
    assert results(log) == results(first_log) + results(second_log)


def test_a_crash_inside_a_round_leaves_the_state_of_the_last(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    class Crash(Callback):
        def on_client_end(self, run: FederationView, context: RoundContext, client_id: int, loss: float) -> None:
            if context.round == 2:
                raise RuntimeError("crash")

    short, _ = build(embedded_clip, data, PFedMoAP(3), replace(CONFIG, rounds=1))
    short.run()
    crashed, _ = build(embedded_clip, data, PFedMoAP(3), callbacks=[Crash()])
    with pytest.raises(RuntimeError, match="crash"):
        crashed.run()
    assert differences(short.state, crashed.state) == []


def test_one_local_fit_is_plain_sgd(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """CoOp on one client against a hand-written loop over open_clip's full text pass."""
    federation, _ = build(embedded_clip, data, CoOp(epochs=2), optim=OptimConfig(prompt_lr=0.02))
    federation.run()
    plain = PromptLearner(embedded_clip, data.class_names, PromptConfig(text_pass="full"), torch_generator(5, "prompt"))
    sgd = torch.optim.SGD([plain["prompt"]], lr=0.02, momentum=0.9, weight_decay=5e-4)
    client = data.client(4)
    batches = FeatureBatches(client.train_features, client.train_labels, 32, torch_generator(5, "batches", 1, 4))
    for _ in range(2):
        for features, labels in batches:
            loss = cross_entropy(embedded_clip.logit_scale * features @ plain().T, labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    trained = federation.state.clients[4].parameters["prompt"]
    assert (trained - clients_of(federation).work.module.prompts.start).norm() > 0.01
    assert torch.allclose(trained, plain["prompt"].detach(), rtol=0, atol=2e-5)


def test_a_fit_does_not_look_through_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RuntimeConfig(accelerator="cpu")
    light_trainer(runtime)  # the first one in a process does

    def again() -> None:
        raise AssertionError("every Trainer looks for callbacks of other packages")

    monkeypatch.setattr(importlib.metadata, "distributions", again)
    light_trainer(runtime)


def test_cost_of_rounds_in_bytes(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, log = build(embedded_clip, data, PromptFL())
    federation.run()
    # Every evaluation, also that before training, sends the global prompt to each of the 8 clients: all have test data.
    assert all(len(data.client(i).test_labels) for i in range(CLIENTS))
    assert log.records[0].bytes == {"down": 0, "up": 0, "evaluate_down": 8 * PROMPT_BYTES}
    for record in log.records[1:]:
        assert record.bytes == {"down": 4 * PROMPT_BYTES, "up": 4 * PROMPT_BYTES, "evaluate_down": 8 * PROMPT_BYTES}
    federation, log = build(embedded_clip, data, CoOp(epochs=1))
    federation.run()
    assert log.records[1].bytes == {"down": 0, "up": 0, "evaluate_down": 0}
    assert log.records[1].cohort == list(range(CLIENTS))


@pytest.mark.parametrize("evaluation_experts", ["fresh", "held"])
def test_who_gets_which_experts_and_what_they_cost(
    embedded_clip: FrozenCLIP, data: FederatedData, evaluation_experts
) -> None:
    federation, log = build(
        embedded_clip, data, PFedMoAP(3, evaluation_experts=evaluation_experts), replace(CONFIG, rounds=6)
    )
    federation.run()
    pool: set[int] = set()
    gated: set[int] = set()
    for record in log.records[1:]:
        cohort = set(record.cohort)
        returning = cohort & pool
        experts = len(returning) * min(3, len(pool) - 1)
        assert record.bytes["down"] == (len(cohort) + experts) * PROMPT_BYTES
        assert record.bytes["up"] == len(cohort) * PROMPT_BYTES
        pool |= cohort
        gated |= returning
        assert record.clients_seen == len(pool) == len(federation.server.pool["prompt"]) or record.round < 6
        assert {int(client) for client in record.experts} == gated
        assert all(int(client) not in ids for client, ids in record.experts.items())
        # Who never took part needs the global prompt; who did has its own. Fresh experts are three prompts for each
        # client with a gate, as four or more clients are in the pool; held ones are on the client already.
        fresh = 3 * len(gated) if evaluation_experts == "fresh" else 0
        assert record.bytes["evaluate_down"] == (CLIENTS - len(pool) + fresh) * PROMPT_BYTES
        if gated:
            assert record.attention is not None
            assert record.attention["local"] + sum(record.attention["experts"]) == pytest.approx(1.0, abs=1e-5)
            assert record.attention["experts"] == sorted(record.attention["experts"], reverse=True)
            assert sum(record.attention["ranked"]) == pytest.approx(sum(record.attention["experts"]), abs=1e-5)
            assert record.attention["ranked"][0] >= record.attention["experts"][0]
    assert gated, "no client took part twice: the test would show nothing"


def test_what_clients_predict_with(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, _ = build(embedded_clip, data, PFedMoAP(3))
    federation.run()
    state, context = federation.state, RoundContext(3, (), 5)
    kinds = set()
    for client_id in range(CLIENTS):
        own = state.clients.get(client_id, ClientState())
        downlink = federation.method.deploy(state.server, client_id, context)
        loadout = federation.method.inference(own, downlink)
        if not own.took_part:
            kinds.add("global")
            assert loadout.parameters["prompt"] is state.server.shared["prompt"]
            assert loadout.experts == {}
        elif own.parameters.keys() == {"prompt"}:
            kinds.add("own prompt alone")
            assert loadout.parameters["prompt"] is own.parameters["prompt"]
            assert loadout.experts == {}
        else:
            kinds.add("mixture")
            assert loadout.parameters["prompt"] is own.parameters["prompt"]
            assert loadout.experts.keys() == {"prompt"}
            assert loadout.experts["prompt"].shape == (3, 16, 64)
    assert kinds == {"global", "own prompt alone", "mixture"}


def test_fedprox_without_pull_is_promptfl_and_with_it_stays_nearer(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    promptfl, log = build(embedded_clip, data, PromptFL())
    without, log_without = build(embedded_clip, data, FedProx(mu=0.0))
    pulled, log_pulled = build(embedded_clip, data, FedProx(mu=5.0))
    for federation in (promptfl, without, pulled):
        federation.run()
    assert differences(promptfl.state, without.state) == []
    assert [r.accuracy for r in log.records] == [r.accuracy for r in log_without.records]
    drifts = [[r.prompt_drift for r in log_.records[1:]] for log_ in (log, log_pulled)]
    assert all(near < far for far, near in zip(*drifts, strict=True))


def test_pfedmoap_without_a_gate_trains_as_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    alone, _ = build(embedded_clip, data, PFedMoAP(gate="none"))
    promptfl, _ = build(embedded_clip, data, PromptFL())
    alone.run()
    promptfl.run()
    assert torch.equal(alone.server.shared["prompt"], promptfl.server.shared["prompt"])
    assert alone.state.clients
    assert all(client.parameters.keys() == {"prompt"} for client in alone.state.clients.values())  # no gate


def test_zero_shot_is_one_evaluation_and_sends_nothing(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, log = build(embedded_clip, data, ZeroShot())
    federation.run()
    assert [record.round for record in log.records] == [0]
    features = torch.cat([data.client(i).test_features for i in range(CLIENTS)])
    labels = torch.cat([data.client(i).test_labels for i in range(CLIENTS)])
    tokens = embedded_clip.tokenize([f"a photo of the digit {name}." for name in data.class_names])
    with torch.no_grad():
        text = embedded_clip.model.encode_text(tokens, normalize=True)  # open_clip's own
    right = (features @ text.T).argmax(1) == labels
    scores = log.evaluations[0].clients
    assert sum(score.correct for score in scores) == int(right.sum())
    assert sum(score.total for score in scores) == len(labels)


def test_evaluation_skips_rounds_but_not_the_last(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config = replace(CONFIG, rounds=5, evaluate_every=2, local_epochs=1)
    federation, log = build(embedded_clip, data, PromptFL(), config)
    federation.run()
    assert [record.round for record in log.records if record.evaluated] == [0, 2, 4, 5]


def test_only_prompt_and_gate_are_in_the_module(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, _ = build(embedded_clip, data, PFedMoAP(3))
    module = clients_of(federation).work.module
    names = {name.split(".")[0] for name, _ in module.named_parameters()}
    assert names == {"prompts", "gate"}
    assert sum(p.numel() for p in module.prompts.parameters()) == 16 * 64
    assert all(not parameter.requires_grad for parameter in embedded_clip.parameters())


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [("constant", 0.5, 0.02), ("cosine_federation", 0.0, 0.02), ("cosine_federation", 0.5, 0.01)],
)
def test_learning_rate_over_the_federation(
    embedded_clip: FrozenCLIP, data: FederatedData, schedule, progress: float, expected: float
) -> None:
    federation, _ = build(embedded_clip, data, PromptFL(), optim=OptimConfig(prompt_lr=0.02, schedule=schedule))
    module = clients_of(federation).work.module
    module.progress = progress
    optimizer = module.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4


def test_cosine_over_the_local_fit(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    rates: list[float] = []

    class Spy(PromptFL):
        def loss(self, client: Client, image_features, labels):
            optimizer = cast(ClientModule, client).optimizers()
            assert not isinstance(optimizer, list)
            rates.append(optimizer.param_groups[0]["lr"])
            return super().loss(client, image_features, labels)

    config = replace(CONFIG, clients=CLIENTS, participation=0.125, rounds=1, local_epochs=3)
    federation, log = build(
        embedded_clip, data, Spy(), config, optim=OptimConfig(prompt_lr=0.02, schedule="cosine_local")
    )
    federation.run()
    steps = 3 * math.ceil(len(data.client(log.records[1].cohort[0]).train_labels) / 32)
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)])
