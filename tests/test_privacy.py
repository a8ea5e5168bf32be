"""Differential privacy of whole federations, on the embedded CLIP and data: what is sent, refused, spent and kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from federation_helpers import Backwards, build_federation, results, work_of
from privacy_helpers import CLIENTS, CONFIG, OPTIM, ROUNDS, deviation
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.config import FeatureConfig, PrivacyConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import CoOp, FedAMP, FedPer, FedPGP, FedProx, PFedMoAP, PFedPrompt, PromptFL, PromptFLFT, ZeroShot
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client
from fedmoe.protocol.parameters import ModelSpec, Parameter, select
from fedmoe.protocol.records import Downlink, RoundContext, Update
from fedmoe.server.state import ServerState

UPLOAD = PrivacyConfig("upload")
OPEN = PrivacyConfig("upload", epsilon=None, clip=None)  # neither noise nor clipping


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


class Wire:
    """Listens in on what goes up and down."""

    def __init__(self) -> None:
        self.up: list[Update] = []
        self.down: list[Downlink] = []


class Tapped(PFedMoAP):
    """pFedMoAP on a wire."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(num_experts=2)
        self.wire = wire

    def configure(self, *args: Any) -> Downlink:
        self.wire.down.append(super().configure(*args))
        return self.wire.down[-1]

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        self.wire.up += updates
        super().aggregate(server, updates, context)


def test_nothing_but_the_noised_prompt_is_sent(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    wire = Wire()
    federation, _ = build_federation(embedded_clip, data, Tapped(wire), CONFIG, OPTIM, privacy=UPLOAD)
    wire.up.clear(), wire.down.clear()  # of the rehearsal
    draws = []
    for number in range(1, ROUNDS + 1):
        before = len(wire.up)
        record = federation.round(number)
        stds = []
        for update in wire.up[before:]:
            values = [getattr(update, f.name) for f in fields(update)]
            inside = [item for value in values for item in (value.values() if isinstance(value, Mapping) else [value])]
            found = [item for item in inside if isinstance(item, Tensor)]
            assert len(found) == 1 and found[0] is update.parameters["prompt"] and update.metrics == {}
            kept = federation.state.clients[update.client_id]
            stds.append(deviation(CONFIG.local_epochs * math.ceil(update.num_examples / CONFIG.batch_size), UPLOAD))
            draws.append((update.parameters["prompt"] - kept.parameters["prompt"]).flatten() / stds[-1])
        assert len(stds) == 3 and record.privacy is not None
        assert record.privacy["noise_std"] == pytest.approx(max(stds), rel=1e-6)
    noise = torch.cat(draws).double()
    count = noise.numel()
    assert count == ROUNDS * 3 * 16 * 64
    assert abs(noise.mean()) < 5 / math.sqrt(count) and abs(noise.std() - 1) < 5 / math.sqrt(2 * count)
    assert (noise.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.03)  # a normal distribution
    # Every coordinate of every upload has a draw of its own.
    table = torch.stack(draws)
    correlations = torch.corrcoef(table) - torch.eye(len(table))
    assert correlations.abs().max() < 5 / math.sqrt(table.shape[1])
    # What the server holds and hands out is made of uploads alone.
    sent = [update.parameters["prompt"] for update in wire.up]
    pool = federation.server.pool["prompt"]
    assert pool and all(any(prompt is one for one in sent) for prompt in pool.values())
    assert federation.server.pool.keys() == federation.server.shared.keys() == {"prompt"}
    assert federation.server.extras == {}
    experts = [expert for downlink in wire.down for stack in downlink.experts.values() for expert in stack]
    assert experts and all(any(torch.equal(expert, one) for one in sent) for expert in experts)
    last = wire.up[-3:]
    weights = [update.num_examples for update in last]
    mean = sum(w * u.parameters["prompt"].double() for w, u in zip(weights, last, strict=True)) / sum(weights)
    torch.testing.assert_close(federation.server.shared["prompt"].double(), mean, rtol=1e-5, atol=1e-7)
    gates = [t for client in federation.state.clients.values() for t in select(client.parameters, ["gate"]).values()]
    assert gates and not any(torch.equal(gate, one) for gate in gates for one in sent if gate.shape == one.shape)


def tensors(federation: Federation) -> dict[str, Tensor]:
    return federation.state.flatten()[0]


@pytest.mark.parametrize("make", [PromptFL, lambda: PFedMoAP(num_experts=2)], ids=["PromptFL", "pFedMoAP"])
def test_no_noise_and_no_clipping_are_no_privacy_to_the_bit(
    embedded_clip: FrozenCLIP, data: FederatedData, make: Any
) -> None:
    plain, plain_log = build_federation(embedded_clip, data, make(), CONFIG, OPTIM)
    open_, open_log = build_federation(embedded_clip, data, make(), CONFIG, OPTIM, privacy=OPEN)
    plain.run(), open_.run()
    assert tensors(plain).keys() == tensors(open_).keys()
    assert all(torch.equal(value, tensors(open_)[name]) for name, value in tensors(plain).items())
    assert [{**r, "privacy": None} for r in results(open_log)] == results(plain_log)
    assert [r.privacy for r in plain_log.records] == [None] * (ROUNDS + 1)
    assert open_log.records[-1].privacy == {"epsilon": None, "noise_std": 0.0}


def test_dpsgd_without_noise_and_clipping_is_no_privacy_but_for_rounding(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    config = replace(CONFIG, rounds=2)
    method = PFedMoAP(num_experts=2)
    plain, _ = build_federation(embedded_clip, data, method, config, OPTIM)
    other, _ = build_federation(embedded_clip, data, method, config, OPTIM, privacy=replace(OPEN, mechanism="dpsgd"))
    plain.run(), other.run()
    for name, value in tensors(plain).items():
        torch.testing.assert_close(tensors(other)[name], value, rtol=1e-3, atol=1e-5)


def test_upload_clips_the_prompt_and_leaves_the_gate(
    embedded_clip: FrozenCLIP, data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, Tensor]] = []

    def listen(client: ClientModule, optimizer: Any) -> None:
        steps.append({name: p.grad.clone() for name, p in client.named_parameters() if p.grad is not None})

    monkeypatch.setattr(ClientModule, "on_before_optimizer_step", listen)
    clip = 0.01
    found = []
    for privacy in (OPEN, PrivacyConfig("upload", epsilon=None, clip=clip)):
        config = replace(CONFIG, rounds=2)
        federation, _ = build_federation(embedded_clip, data, PFedMoAP(num_experts=2), config, OPTIM, privacy=privacy)
        steps.clear()
        federation.round(1), federation.round(2)
        found.append(list(steps))
    prompt, output = "prompts.learned.prompt", "gate.output.weight"
    first, clipped = found[0][0][prompt], found[1][0][prompt]  # both from the same start
    torch.testing.assert_close(clipped, clip * first / first.norm(), rtol=1e-3, atol=1e-9)
    assert max(step[prompt].norm().item() for step in found[1]) <= clip * (1 + 1e-6)
    gates = [step[output].norm().item() for step in found[1] if output in step]
    assert max(gates) > clip


def test_fine_tuning_for_a_prediction_is_neither_clipped_nor_noised(
    embedded_clip: FrozenCLIP, data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = []
    step = ClientModule.training_step

    def listen(client: ClientModule, *args: Any) -> Tensor:
        rules.append((evaluating, type(client.gradients).__name__))
        return step(client, *args)

    evaluating = False
    monkeypatch.setattr(ClientModule, "training_step", listen)
    mechanism: Any
    for mechanism, rule in (("upload", "ClippedShared"), ("dpsgd", "NoisySum")):
        rules.clear()
        config = replace(CONFIG, rounds=1, evaluate_every=10, local_epochs=1)
        privacy = PrivacyConfig(mechanism)
        federation, _ = build_federation(embedded_clip, data, PromptFLFT(1), config, OPTIM, privacy=privacy)
        score = federation.evaluate

        def watched(context: Any, score: Any = score) -> Any:
            nonlocal evaluating
            evaluating = True
            try:
                return score(context)
            finally:
                evaluating = False

        federation.evaluate = watched  # type: ignore[method-assign]
        federation.run()
        assert set(rules) == {(False, rule), (True, "NoneType")}


def test_noise_depends_on_seed_round_and_client_only(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    for privacy in (UPLOAD, PrivacyConfig("dpsgd", epsilon=8.0)):
        config = replace(CONFIG, rounds=2, local_epochs=1)
        one, _ = build_federation(embedded_clip, data, PromptFL(), config, OPTIM, privacy=privacy)
        two, _ = build_federation(embedded_clip, data, PromptFL(), config, OPTIM, privacy=privacy, kind=Backwards)
        torch.manual_seed(1), one.run()
        torch.manual_seed(2), two.run()
        assert all(torch.equal(value, tensors(two)[name]) for name, value in tensors(one).items())


# What is refused


class Leaky(PromptFL):
    """Uploads something else from some round on, or another prompt than it trains."""

    def __init__(self, kind: str, after: int = 0) -> None:
        self.kind, self.after = kind, after

    def finish(self, client: Client, state: Any, downlink: Downlink, num_examples: int) -> Any:
        update, kept = super().finish(client, state, downlink, num_examples)
        if state.rounds_seen < self.after:
            return update, kept
        if self.kind == "extras":
            return replace(update, parameters={**update.parameters, "counts": torch.ones(3)}), kept
        return replace(update, parameters={"prompt": update.parameters["prompt"] + 1}), kept


@pytest.mark.parametrize("kind", ["extras", "prompt"])
def test_a_leak_is_refused_before_the_first_round(embedded_clip: FrozenCLIP, data: FederatedData, kind: str) -> None:
    name = {"extras": "counts", "prompt": "prompt"}[kind]
    with pytest.raises(UserError, match=f"a client of Leaky does not train and upload the {name} that the server sent"):
        build_federation(embedded_clip, data, Leaky(kind), CONFIG, privacy=UPLOAD)
    with pytest.raises(UserError, match=f"protects trained parameters only, but {name} of Leaky's upload"):
        build_federation(embedded_clip, data, Leaky(kind), CONFIG, privacy=PrivacyConfig("dpsgd"))


def test_a_leak_in_a_later_round_stops_the_run(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config = replace(CONFIG, participation=1.0, local_epochs=1)
    federation, log = build_federation(embedded_clip, data, Leaky("extras", after=2), config, privacy=UPLOAD)
    with pytest.raises(UserError, match="a client of Leaky does not train and upload the counts that the server sent"):
        federation.run()
    assert [record.round for record in log.records] == [0, 1, 2]


def test_a_start_of_the_clients_own_is_refused_for_the_upload(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    with pytest.raises(UserError, match="a client of FedAMP does not train and upload the prompt that the server sent"):
        build_federation(embedded_clip, data, FedAMP(), CONFIG, privacy=UPLOAD)
    build_federation(embedded_clip, data, FedAMP(), CONFIG, privacy=PrivacyConfig("dpsgd"))  # its prompts are private


def test_an_averaged_gate_is_refused_for_the_upload_and_protected_by_dpsgd(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    method = PFedMoAP(num_experts=2, gate_sharing="averaged")
    with pytest.raises(UserError, match=r"PFedMoAP also uploads gate\.key\.bias"):
        build_federation(embedded_clip, data, method, CONFIG, privacy=UPLOAD)
    config = replace(CONFIG, rounds=2, local_epochs=1)
    federation, _ = build_federation(embedded_clip, data, method, config, OPTIM, privacy=PrivacyConfig("dpsgd"))
    federation.run()
    start = select(work_of(federation).module.shared_start(), ["gate"])
    assert start and any(not torch.equal(federation.server.shared[name], tensor) for name, tensor in start.items())


class Late(PromptFL):
    """Starts from the client's own prompt, if it has one."""

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        return [replace(part, keep=True) for part in super().parameters(model)]

    def start(self, state: Any, downlink: Downlink) -> Any:
        loadout = super().start(state, downlink)
        return replace(loadout, parameters=state.parameters) if state.took_part else loadout


def test_a_start_of_the_clients_own_in_its_second_round_is_found_before_the_first(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    with pytest.raises(UserError, match="a client of Late does not train and upload the prompt that the server sent"):
        build_federation(embedded_clip, data, Late(), CONFIG, privacy=UPLOAD)


class Neighbours(PromptFL):
    """A loss that looks at all of the client's data."""

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        assert client.data is not None
        return super().loss(client, image_features, labels) + client.data.train_features.mean()


def test_dpsgd_refuses_a_loss_that_looks_at_other_examples(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, _ = build_federation(embedded_clip, data, Neighbours(), CONFIG, privacy=PrivacyConfig("dpsgd"))
    with pytest.raises(UserError, match="looks at all of a client's data at once"):
        federation.run()
    config = replace(CONFIG, rounds=1)
    build_federation(embedded_clip, data, Neighbours(), config, privacy=UPLOAD)[0].run()  # for the whole data set


@pytest.mark.parametrize("mechanism", ["upload", "dpsgd"])
@pytest.mark.parametrize("make", [FedPer, FedPGP, FedProx, PFedPrompt, PromptFLFT, CoOp, ZeroShot])
def test_other_methods_fit(embedded_clip: FrozenCLIP, data: FederatedData, make: Any, mechanism: Any) -> None:
    config = replace(CONFIG, rounds=1, local_epochs=1, clients=2, participation=1.0)
    method = CoOp(epochs=1) if make is CoOp else make()
    federation, _ = build_federation(embedded_clip, data, method, config, OPTIM, privacy=PrivacyConfig(mechanism))
    federation.run()
    most_rounds = max((client.rounds_seen for client in federation.server.clients.values()), default=0)
    assert most_rounds == (0 if make is ZeroShot else 1)
    found = federation.privacy.summary(most_rounds)
    assert found is not None
    nothing = make is ZeroShot or (make is CoOp and mechanism == "upload")
    assert (found["total_epsilon"] == 0) == nothing == ("nothing was sent" in found["text"])


class Watched(FedPer):
    """Notes what each client has trained, and what then comes up."""

    def __init__(self, personal_vectors: int) -> None:
        super().__init__(personal_vectors)
        self.trained: dict[int, Any] = {}
        self.sent: dict[int, Any] = {}

    def finish(self, client: Client, state: Any, downlink: Downlink, num_examples: int) -> Any:
        self.trained[client.client_id] = client.export()
        return super().finish(client, state, downlink, num_examples)

    def admit(self, server: ServerState, update: Update) -> None:
        self.sent[update.client_id] = update.parameters
        super().admit(server, update)


def test_fedper_noises_the_shared_vectors_and_keeps_its_own(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config, method = replace(CONFIG, rounds=1, participation=1.0), Watched(4)
    federation, _ = build_federation(embedded_clip, data, method, config, OPTIM, privacy=UPLOAD)
    method.trained.clear(), method.sent.clear()  # of the rehearsal
    federation.round(1)
    assert list(method.sent) == list(range(CLIENTS))
    for client_id, sent in method.sent.items():
        assert sent.keys() == {"prompt"}
        noise = sent["prompt"] - method.trained[client_id]["prompt"]
        own = federation.state.clients[client_id].parameters
        assert own.keys() == {"own"} and torch.equal(own["own"], method.trained[client_id]["own"])
        steps = config.local_epochs * math.ceil(len(data.client(client_id).train_labels) / config.batch_size)
        assert noise.shape == (12, 64)
        assert noise.std().item() == pytest.approx(deviation(steps, UPLOAD), rel=5 / math.sqrt(2 * noise.numel()))
