"""PromptFL + FT, FedPer, FedAMP and FedPGP: their arithmetic, and federations on the embedded CLIP and data.

Expected values are worked out in the test, come from FedPGP's release (tests/golden), or are another method's run that
must agree to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federation_helpers import Backwards, Log, build_federation, build_module, differences, results, work_of
from safetensors.torch import load_file
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.client.trainer import light_trainer
from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig, PromptConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.state import FederationState, fresh_server
from fedmoe.methods import CoOp, FedAMP, FedPer, FedPGP, Method, PromptFL, PromptFLFT
from fedmoe.methods.fedamp import message_weights
from fedmoe.methods.fedpgp import contrastive
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext, Update
from fedmoe.runs.checkpoint import StateStore
from fedmoe.seeds import torch_generator
from fedmoe.server.state import ServerState

CLIENTS = 5
CONFIG = FederationConfig(clients=CLIENTS, participation=0.6, rounds=3, local_epochs=1, batch_size=32)
METHODS = [lambda: PromptFLFT(epochs=1), FedPer, FedAMP, FedPGP]
GOLDEN = Path(__file__).parent / "golden"
VECTOR_BYTES = 64 * 4  # one vector of 64 float32


class LocalRounds(CoOp):
    """Local training in the federation's rounds, with nothing sent."""

    def schedule(self, federation: FederationConfig) -> FederationConfig:
        return federation


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


def build(
    clip: FrozenCLIP, data: FederatedData, method: Method, config: FederationConfig = CONFIG, **settings
) -> tuple[Federation, Log]:
    return build_federation(clip, data, method, config, **settings)


def run(clip: FrozenCLIP, data: FederatedData, method: Method, **kwargs) -> tuple[Federation, Log]:
    federation, log = build(clip, data, method, **kwargs)
    federation.run()
    return federation, log


@pytest.mark.parametrize("make", METHODS)
def test_neither_order_nor_the_global_generator_nor_an_interruption_changes_a_bit(
    embedded_clip: FrozenCLIP, data: FederatedData, make, tmp_path: Path
) -> None:
    whole, log = run(embedded_clip, data, make())
    torch.manual_seed(1234)
    again, log_again = run(embedded_clip, data, make(), kind=Backwards)
    assert differences(whole.state, again.state) == []
    assert results(log) == results(log_again)

    first, first_log = build(embedded_clip, data, make())
    first_log.on_round_end(first, first._before_training())
    first_log.on_round_end(first, first.round(1))
    StateStore(tmp_path).save(1, *first.state.flatten())
    state = StateStore(tmp_path).load(FederationState.unflatten)
    assert state is not None and state.round == 1
    resumed, second_log = run(embedded_clip, data, make(), state=state)
    assert differences(whole.state, resumed.state) == []
    assert results(log) == results(first_log) + results(second_log)
    assert log.evaluations[1].clients == first_log.evaluations[1].clients
    assert log.evaluations[-1].clients == second_log.evaluations[-1].clients


# PromptFL + FT


def test_fine_tuning_leaves_promptfls_rounds_alone_and_is_scored(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    tuned, log_tuned = run(embedded_clip, data, PromptFLFT(epochs=2))
    assert differences(promptfl.state, tuned.state) == []
    for plain, ours in zip(log.records, log_tuned.records, strict=True):
        assert (plain.bytes, plain.train_loss, plain.prompt_drift) == (ours.bytes, ours.train_loss, ours.prompt_drift)
        assert plain.accuracy is not None
        assert ours.accuracy is not None
        assert ours.accuracy["mean"] > plain.accuracy["mean"]


def test_fine_tuning_is_a_local_fit_from_the_global_prompt(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, log = run(embedded_clip, data, PromptFLFT(epochs=2))
    before = federation.state.flatten()
    for _ in range(2):  # evaluating again finds the same and changes nothing
        again = federation.evaluate(RoundContext(3, (), 5))
        assert again.clients == log.evaluations[-1].clients
    after = federation.state.flatten()
    assert before[1] == after[1]
    assert all(tensor is after[0][name] for name, tensor in before[0].items())

    work = work_of(federation)
    for client_id in range(CLIENTS):
        client = data.client(client_id)
        work.module.load(client_id, Loadout(federation.server.shared))
        batches = client.training_batches(32, torch_generator(5, "fine-tune batches", 3, client_id))
        light_trainer(work.runtime, max_epochs=2).fit(work.module, batches)
        with torch.no_grad():
            logits = embedded_clip.logit_scale * client.test_features @ work.module.prompts().T
        correct = int((logits.argmax(1) == client.test_labels).sum())
        assert log.evaluations[-1].clients[client_id].correct == correct


def test_fine_tuning_needs_an_epoch() -> None:
    with pytest.raises(UserError, match=r"method\.epochs is 0; valid is an integer of at least 1"):
        PromptFLFT(epochs=0)


# FedPer


def joined(module: ClientModule, loadout: Loadout) -> Tensor:
    """The prompt that a client classifies with after the load."""
    module.load(0, loadout)
    return module.method.prompt(module).detach().clone()


def test_fedper_joins_averages_and_keeps_by_hand(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip(text_width=2, text_heads=1)
    method, context = FedPer(personal_vectors=1), RoundContext(1, (0, 1), 0)
    module = ClientModule(clip, PromptLearner(clip, ["cat", "dog"], PromptConfig(length=4)), method=method)
    start = torch.arange(4.0).unsqueeze(1).expand(4, 2)  # l = 4, w = 2, row i holds i
    server = fresh_server(module.declared, {"prompt": start[:3]})
    own = ClientState({"own": torch.full((1, 2), 7.0)})
    downlink = method.configure(server, 0, context)
    assert downlink.nbytes == 3 * 2 * 4
    assert joined(module, method.start(own, downlink))[:, 0].tolist() == [0, 1, 2, 7]

    updates = []
    for client_id, (value, examples) in enumerate([(1.0, 30), (5.0, 10)]):
        module.load(client_id, method.start(own, downlink))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(value)  # in place of training
        assert method.prompt(module).tolist() == [[value, value]] * 4
        update, kept = method.finish(module, own, downlink, examples)
        assert update.client_id == client_id
        assert update.parameters.keys() == {"prompt"}
        assert update.parameters["prompt"].tolist() == [[value, value]] * 3
        assert update.nbytes == 3 * 2 * 4
        assert kept.parameters.keys() == {"own"}
        assert kept.parameters["own"].tolist() == [[value, value]] * 1
        updates.append(update)
    method.aggregate(server, updates, context)
    assert server.shared["prompt"].tolist() == [[2.0, 2.0]] * 3  # (30 * 1 + 10 * 5) / 40
    assert method.configure(server, 1, context).parameters["prompt"].tolist() == [[2.0, 2.0]] * 3
    loadout = method.inference(own, method.deploy(server, 0, context))
    assert joined(module, loadout)[:, 0].tolist() == [2, 2, 2, 7]


def test_fedper_shares_the_first_half_of_class_specific_prompts_too(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip()
    learner = PromptLearner(clip, ["cat", "dog", "bird"], PromptConfig(length=4, class_specific=True))
    prompts = learner.start.clone()  # [C, l, w]
    assert prompts.shape == (3, 4, clip.token_width)
    module = ClientModule(clip, learner, method=FedPer())
    shared = module.shared_start()
    assert shared.keys() == {"prompt"}
    assert torch.equal(shared["prompt"], prompts[:, :2])
    assert torch.equal(joined(module, Loadout(shared)), prompts)


def test_fedper_without_personal_vectors_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    fedper, log_fedper = run(embedded_clip, data, FedPer(personal_vectors=0))
    assert differences(promptfl.state, fedper.state) == []
    assert results(log) == results(log_fedper)


def test_fedper_with_all_vectors_personal_is_local_training(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    local, log = run(embedded_clip, data, LocalRounds())
    fedper, log_fedper = run(embedded_clip, data, FedPer(personal_vectors=16))
    clients = fedper.state.clients  # the same but for the name of the prompt
    assert all(client.parameters.keys() == {"own"} for client in clients.values())
    renamed = {i: replace(client, parameters={"prompt": client.parameters["own"]}) for i, client in clients.items()}
    assert differences(local.state, replace(fedper.state, clients=renamed)) == []
    assert results(log) == results(log_fedper)
    assert all(record.bytes == {"down": 0, "up": 0, "evaluate_down": 0} for record in log_fedper.records)


class Recorded(FedPer):
    """Keeps the last round's uploads."""

    uploads: Sequence[Update] = ()

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        self.uploads = updates
        super().aggregate(server, updates, context)


def test_fedper_in_between(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    method = Recorded(personal_vectors=6)
    federation, log = run(embedded_clip, data, method, config=replace(CONFIG, participation=1.0))
    server, clients = federation.server, federation.state.clients
    assert [update.client_id for update in method.uploads] == list(clients) == list(range(CLIENTS))
    prompts = [
        torch.cat([update.parameters["prompt"], clients[i].parameters["own"]])
        for i, update in enumerate(method.uploads)
    ]
    assert all(prompt.shape == (16, 64) for prompt in prompts)
    assert server.shared["prompt"].shape == (10, 64)
    examples = [len(data.client(i).train_labels) for i in range(CLIENTS)]
    total = torch.stack([n * prompt[:10].double() for n, prompt in zip(examples, prompts, strict=True)]).sum(0)
    mean = total / sum(examples)
    assert torch.allclose(server.shared["prompt"].double(), mean, rtol=0, atol=1e-7)
    for record in log.records[1:]:
        sent = CLIENTS * 10 * VECTOR_BYTES  # ten vectors to and from each client, and again to each for its evaluation
        assert record.bytes == {"down": sent, "up": sent, "evaluate_down": sent}
    assert log.records[0].bytes == {"down": 0, "up": 0, "evaluate_down": sent}
    current = server.shared["prompt"].double()
    drift = math.fsum(float((prompt[:10].double() - current).norm()) for prompt in prompts) / CLIENTS
    assert log.records[-1].prompt_drift == pytest.approx(drift, rel=1e-9)
    assert all(not torch.equal(prompts[0][10:], prompt[10:]) for prompt in prompts[1:])
    loadout = method.inference(clients[2], method.deploy(server, 2, RoundContext(3, (), 5)))
    expected = torch.cat([server.shared["prompt"], prompts[2][10:]])
    assert torch.equal(joined(work_of(federation).module, loadout), expected)


def test_fedper_refuses_more_vectors_than_there_are(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    with pytest.raises(UserError, match=r"method\.personal_vectors is -1; valid is an integer of at least 0"):
        FedPer(personal_vectors=-1)
    log = Log()
    with pytest.raises(UserError, match=r"personal_vectors is 17, but the prompt has 16 .* valid is 0 to 16"):
        build(embedded_clip, data, FedPer(personal_vectors=17), callbacks=[log])[0].run()
    assert log.records == []


# FedAMP


def pooled(start: Tensor, pool: dict[int, Tensor]) -> ServerState:
    """A server that has had these uploads of the prompt."""
    return ServerState({"prompt": start}, {"prompt": pool}, frozenset({"prompt"}))


def test_fedamps_messages_by_hand() -> None:
    """Prompts of one number, 0, 1 and 3, with sigma = 2 and alpha = 0.5, so that alpha / sigma = 1 / 4."""
    pool = {0: torch.zeros(1, 1), 1: torch.ones(1, 1), 2: torch.full((1, 1), 3.0)}
    weights = message_weights(pool, 1, sigma=2.0, alpha=0.5)
    near, far = math.exp(-1 / 2) / 4, math.exp(-4 / 2) / 4
    assert weights == {0: pytest.approx(near), 1: pytest.approx(1 - near - far), 2: pytest.approx(far)}
    server = pooled(torch.zeros(1, 1), pool)
    downlink = FedAMP(sigma=2.0, alpha=0.5).configure(server, 1, RoundContext(2, (1,), 0))
    mixture = downlink.extras["mixture"]
    assert mixture.item() == pytest.approx(1 - near - far + 3 * far, rel=1e-6)
    assert downlink.nbytes == 4 + 4  # the mixture of one number, and alpha
    # The server's step is alpha down the gradient of the attentive term: A'(x) (w_i - w_j) for each j.
    step = 0.5 * (math.exp(-1 / 2) / 2 * (1 - 0) + math.exp(-4 / 2) / 2 * (1 - 3))
    assert mixture.item() == pytest.approx(1 - step, rel=1e-6)


def test_fedamps_default_step_averages_equal_prompts_and_leaves_distant_ones() -> None:
    method, context = FedAMP(sigma=1.0), RoundContext(2, (0,), 0)
    near = {0: torch.zeros(2, 3), 1: torch.full((2, 3), 1e-4), 2: torch.full((2, 3), 2e-4)}
    downlink = method.configure(pooled(torch.zeros(2, 3), near), 0, context)
    assert torch.allclose(downlink.extras["mixture"], torch.full((2, 3), 1e-4), rtol=1e-5)
    distant = {i: torch.full((2, 3), 100.0 * i + 1) for i in range(3)}
    downlink = method.configure(pooled(torch.zeros(2, 3), distant), 0, context)
    assert torch.equal(downlink.extras["mixture"], distant[0])


def test_fedamps_pull_by_hand(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    method = FedAMP(sigma=2.0, alpha=0.25, lmbda=0.3)
    module = build_module(embedded_clip, data, method)
    own = ClientState(module.shared_start(), rounds_seen=1)
    assert own.parameters["prompt"].shape == (16, 64)
    features, labels = data.client(0).train_features[:8], data.client(0).train_labels[:8]
    mixture = own.parameters["prompt"] + 0.5
    downlink = Downlink(extras={"mixture": mixture, "alpha": torch.tensor(0.25)})
    losses = {}
    for name, sent in {"pulled": downlink, "free": Downlink()}.items():
        loadout = method.start(own, sent)
        assert loadout.parameters["prompt"] is own.parameters["prompt"]
        module.load(0, loadout)
        losses[name] = float(method.loss(module, features, labels).detach())
    # lambda / (2 alpha) = 0.6, times 16 * 64 squares of 0.5
    assert losses["pulled"] - losses["free"] == pytest.approx(0.6 * 16 * 64 * 0.25, rel=1e-5)


def test_fedamp_without_the_attentive_term_is_local_training(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    local, log = run(embedded_clip, data, LocalRounds())
    fedamp, log_fedamp = run(embedded_clip, data, FedAMP(lmbda=0.0))
    assert len(local.state.clients) >= 3
    assert local.state.clients.keys() == fedamp.state.clients.keys()
    for client_id, client in local.state.clients.items():
        assert torch.equal(client.parameters["prompt"], fedamp.state.clients[client_id].parameters["prompt"])
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_fedamp.evaluations]


def test_fedamp_draws_clients_together_and_costs_a_prompt_each_way(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    def spread(federation: Federation) -> float:
        prompts = torch.stack([client.parameters["prompt"] for client in federation.state.clients.values()])
        assert len(prompts) == CLIENTS
        return float((prompts - prompts.mean(0)).norm())

    config = replace(CONFIG, participation=1.0)
    local, _ = run(embedded_clip, data, LocalRounds(), config=config)
    weak, log = run(embedded_clip, data, FedAMP(lmbda=0.1), config=config)
    strong, _ = run(embedded_clip, data, FedAMP(lmbda=1.0), config=config)
    assert 0 < spread(strong) < spread(weak) < spread(local)
    prompts = CLIENTS * 16 * VECTOR_BYTES
    assert log.records[1].bytes == {"down": 0, "up": prompts, "evaluate_down": 0}
    for record in log.records[2:]:
        assert record.bytes == {"down": prompts + CLIENTS * 4, "up": prompts, "evaluate_down": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, r"method\.sigma is 0\.0; valid is a number above 0"),
        ({"alpha": 0.0}, r"method\.alpha is 0\.0; valid is a number above 0, or null"),
        ({"lmbda": -1.0}, r"method\.lmbda is -1\.0; valid is a number of at least 0"),
        ({"alpha": 0.3}, r"method\.alpha is 0\.3; .* valid is at most sigma / \(clients - 1\) = 0\.25, or null"),
    ],
)
def test_fedamp_refuses_settings_that_make_no_mixture(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedAMP(**settings).check(CONFIG, feature_dim=64)
    FedAMP(alpha=0.25).check(CONFIG, feature_dim=64)  # five clients: four others with at most a quarter each


# FedPGP


def difference(ours: Tensor, golden: Tensor) -> float:
    """Largest difference, relative to the golden tensor's largest entry."""
    assert ours.shape == golden.shape
    return float((ours.detach() - golden).abs().max() / golden.abs().max())


def test_fedpgp_is_the_release(golden_clips: dict[str, FrozenCLIP]) -> None:
    settings = json.loads((GOLDEN / "fedpgp_rn.json").read_text())
    golden = load_file(GOLDEN / "fedpgp_rn.safetensors")
    clip, names, length = golden_clips["rn"], settings["class_names"], settings["n_ctx"]
    sentence = "X " * length + "{class}."
    method = FedPGP(settings["rank"], settings["mu"], settings["temperature"], template=sentence)
    learner = PromptLearner(clip, names, PromptConfig(length=length))
    rate = settings["prompt_lr"]
    module = ClientModule(
        clip,
        learner,
        method=method,
        optim=OptimConfig(
            prompt_lr=rate, gating_lr=rate, momentum=settings["momentum"], weight_decay=settings["weight_decay"]
        ),
        constants=method.constants(clip, names, "a {class}"),
    )
    assert torch.equal(learner.token_ids, golden["token_ids"].long())
    images, labels = clip.encode_image(golden["images"]), golden["labels"].long()
    module.load(0, Loadout({"prompt": golden["sigma"], "U": golden["U"], "V": golden["V"]}))
    assert list(module.prompts.learned) == ["prompt", "U", "V"]

    with torch.no_grad():
        assert difference(module.text_features(module.prompts["prompt"]), golden["text_global"]) < 1e-5
        assert difference(module.text_features(), golden["text_personal"]) < 1e-5
        assert difference(learner(golden["sigma"] + golden["U"] @ golden["V"]), golden["text_personal"]) < 1e-5
        assert difference(module.constants["template"], golden["text_template"]) < 1e-5
        assert difference(method.logits(module, images), golden["logits"]) < 1e-5
    assert difference(method.logits(module, images), golden["logits"]) < 1e-5  # with gradient, without the cache

    parameters = {"sigma": learner["prompt"], "U": learner["U"], "V": learner["V"]}
    optimizer, losses = module.configure_optimizers(), []
    for step in range(settings["steps"]):
        loss = method.loss(module, images, labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert difference(loss.unsqueeze(0), golden["loss"]) < 1e-5
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                assert difference(parameter.grad, golden[f"grad.{name}"]) < 1e-5, name
        optimizer.step()
        losses.append(loss.detach())
    assert difference(torch.stack(losses), golden["after.losses"]) < 1e-5
    for name, parameter in parameters.items():
        assert difference(parameter, golden[f"after.{name}"]) < 1e-5, name
        assert difference(golden[name], golden[f"after.{name}"]) > 1e-3, name  # the steps were not too small to tell
    with torch.no_grad():
        assert difference(method.logits(module, images), golden["after.logits"]) < 1e-5


def test_fedpgps_contrastive_term_by_hand() -> None:
    """Two classes in the plane: cosines (1, 0) and (0.6, 0.8) with template and personal feature, over 0.5."""
    shared = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    template = torch.tensor([[2.0, 0.0], [0.6, 0.8]])
    personal = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
    expected = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(0.4))) / 2
    assert contrastive(shared, template, personal, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_fedpgp_without_personal_part_and_contrast_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    fedpgp, log_fedpgp = run(embedded_clip, data, FedPGP(mu=0.0, std=0.0))
    assert torch.equal(promptfl.server.shared["prompt"], fedpgp.server.shared["prompt"])
    assert results(log) == results(log_fedpgp)
    kept = [client.parameters for client in fedpgp.state.clients.values()]
    assert len(kept) >= 3 and all(parameters.keys() == {"U", "V"} for parameters in kept)
    assert all(not tensor.any() for parameters in kept for tensor in parameters.values())


def test_fedpgp_sends_the_global_prompt_and_keeps_the_personal_part(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    federation, log = run(embedded_clip, data, FedPGP(rank=3))
    sent = 3 * 16 * VECTOR_BYTES  # three of five clients
    evaluated = CLIENTS * 16 * VECTOR_BYTES  # all five download the global prompt to be evaluated
    assert all(r.bytes == {"down": sent, "up": sent, "evaluate_down": evaluated} for r in log.records[1:])
    trained = federation.state.clients
    assert len(trained) >= 3 and all(client.took_part for client in trained.values())
    client_id, other = sorted(trained)[:2]
    own = trained[client_id].parameters
    assert {name: tensor.shape for name, tensor in own.items()} == {"U": (16, 3), "V": (3, 64)}
    assert not torch.equal(own["U"], trained[other].parameters["U"])
    prompt = federation.server.shared["prompt"] + own["U"] @ own["V"]
    client = data.client(client_id)
    with torch.no_grad():
        logits = embedded_clip.logit_scale * client.test_features @ work_of(federation).module.prompts(prompt).T
    correct = int((logits.argmax(1) == client.test_labels).sum())
    assert log.evaluations[-1].clients[client_id].correct == correct


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"method\.rank is 0; valid is an integer of at least 1"),
        ({"mu": -0.5}, r"method\.mu is -0\.5; valid is a number of at least 0"),
        ({"std": -1.0}, r"method\.std is -1\.0; valid is a number of at least 0"),
        ({"temperature": 0.0}, r"method\.temperature is 0\.0; valid is a number above 0"),
        ({"template": "a photo"}, r"method\.template is 'a photo'; valid is a sentence with \{class\} in it"),
    ],
)
def test_fedpgp_refuses_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedPGP(**settings)
