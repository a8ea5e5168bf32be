"""Every method on toys of a few numbers: what is sent, averaged, kept and predicted. All values by hand.

Prompts are points on a line or the unit vectors of the plane, and text features are the prompts themselves
(``toy_client``), so nothing needs CLIP. pFedMoAP has a file of its own.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from streams import stream
from torch import Tensor
from torch.nn.functional import log_softmax
from toy_client import SCALE, at, same, server_of, toy_client, uploads

from fedmoe.config import FederationConfig, OptimConfig
from fedmoe.errors import UserError
from fedmoe.methods import (
    CoOp,
    FedAMP,
    FedOTP,
    FedPer,
    FedPGP,
    FedProx,
    Method,
    PFedPrompt,
    PromptFL,
    PromptFLFT,
    ZeroShot,
)
from fedmoe.methods.fedamp import message_weights
from fedmoe.methods.fedpgp import contrastive
from fedmoe.methods.pfedprompt import stored_attention
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import template_features
from fedmoe.models.spatial import SpatialEncoder
from fedmoe.protocol.parameters import ModelSpec, Scope
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext
from fedmoe.server.state import Known

CONTEXT = RoundContext(6, (0, 1, 2), seed=5)
PLANE = torch.eye(2)  # class 0 along the first axis, class 1 along the second
IMAGES, LABELS = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([0, 1])
LOGITS = torch.tensor([[SCALE * 0.6, SCALE * 0.8], [SCALE, 0.0]])  # of IMAGES with PLANE
CROSS_ENTROPY = (math.log(1 + math.exp(SCALE * 0.2)) + math.log(1 + math.exp(SCALE))) / 2


def declared(method: Method, prompt: Tensor) -> dict[str, Any]:
    return {part.name: part for part in method.parameters(ModelSpec(prompt, prompt.shape[-1]))}


def start_of(part: Any) -> Tensor:
    return part.start(torch.Generator().manual_seed(3))


def refusal(call: Any, *args: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **settings)
    return str(caught.value)


# FedAvg of prompts, which all methods begin with


@pytest.mark.parametrize("make", [PromptFL, FedProx, PFedPrompt, PromptFLFT])
def test_the_global_prompt_is_sent_trained_and_averaged(make: Any) -> None:
    method = make()
    server = server_of({0: 1.0}, {"prompt": at(9.0)}, {0: Known(1)})
    server.kept, server.pool = frozenset(), {}
    sent = method.configure(server, 0, CONTEXT)
    assert same(sent.parameters, {"prompt": at(9.0)})
    assert same(method.start(ClientState(), sent).parameters, {"prompt": at(9.0)})
    assert same(method.start(ClientState(), sent).received, {"prompt": at(9.0)})
    client = toy_client(method, PLANE, Loadout({"prompt": at(4.0)}, received={"prompt": PLANE}))
    update, kept = method.finish(client, ClientState(rounds_seen=1), sent, 30)
    assert (update.client_id, update.num_examples, kept.rounds_seen) == (4, 30, 2)
    assert same(update.parameters, {"prompt": at(4.0)})
    assert (kept.parameters, kept.experts) == ({}, {})
    for upload in uploads([(1.0, 30), (5.0, 10)]):
        method.admit(server, upload)
    assert server.pool == {}
    method.aggregate(server, uploads([(1.0, 30), (5.0, 10)]), CONTEXT)
    assert same(server.shared, {"prompt": at(2.0)})  # (30 * 1 + 10 * 5) / 40
    assert same(method.deploy(server, 0, CONTEXT).parameters, {"prompt": at(2.0)})
    plain = toy_client(method, PLANE, Loadout(received={"prompt": PLANE}))
    torch.testing.assert_close(method.loss(plain, IMAGES, LABELS).item(), CROSS_ENTROPY)
    torch.testing.assert_close(method.logits(plain, IMAGES), LOGITS)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sgd_by_hand(momentum: float) -> None:
    """Two groups, gradient 1, weight decay 0.1: v = m v + (1 + 0.1 p), p = p - lr v."""
    slow, fast = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.tensor(2.0))
    groups = [{"params": [slow], "lr": 0.1}, {"params": [fast], "lr": 0.5}]
    optimizer = Method().optimizer(groups, OptimConfig(momentum=momentum, weight_decay=0.1))
    values, speeds = [1.0, 2.0], [0.0, 0.0]
    for _ in range(3):
        slow.grad = fast.grad = torch.tensor(1.0)
        optimizer.step()
        speeds = [momentum * v + 1 + 0.1 * p for v, p in zip(speeds, values, strict=True)]
        values = [p - lr * v for p, v, lr in zip(values, speeds, (0.1, 0.5), strict=True)]
    assert [slow.item(), fast.item()] == pytest.approx(values, rel=1e-6)


def test_adam_is_torchs_with_the_weight_decay() -> None:
    """Its first step is lr * g / |g| of the gradient with the decay: 1 - 0.1 * 2 = 0.8 and -1 - 0.1 * 2 < 0."""
    values = [torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(-2.0))]
    groups = [{"params": values[:1], "lr": 0.1}, {"params": values[1:], "lr": 0.5}]
    optimizer = Method().optimizer(groups, OptimConfig(optimizer="adam", weight_decay=0.1))
    assert isinstance(optimizer, torch.optim.Adam)
    for value in values:
        value.grad = torch.tensor(0.1)  # with the decay: 0.3 and -0.1
    optimizer.step()
    assert [value.item() for value in values] == pytest.approx([1.9, -1.5], rel=1e-6)


class Counting(PromptFL):
    def metrics(self, client: Any) -> dict[str, float]:
        return {"number": float(client.client_id)}


def test_metrics_and_extras_reach_the_other_side() -> None:
    update, _ = Counting().finish(toy_client(Counting(), PLANE), ClientState(), Downlink(), 30)
    assert update.metrics == {"number": 4.0}
    assert same(PromptFL().start(ClientState(), Downlink(extras={"mean": PLANE})).extras, {"mean": PLANE})


def test_the_cohort_is_the_seeds_of_those_who_take_part_from_the_beginning() -> None:
    config = FederationConfig(clients=7, participation=0.5, late_clients=1)
    drawn = stream('[5,"cohort",2]').choice(6, size=3, replace=False)
    assert PromptFL().cohort(server_of({}), config, seed=5, round=2) == tuple(sorted(drawn.tolist()))


def test_images_are_encoded_by_clip(golden_clips: dict[str, FrozenCLIP]) -> None:
    clip = golden_clips["rn"]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(PromptFL().encoder(clip).encode(images), clip.encode_image(images))


# CoOp and zero-shot CLIP: nothing is sent


def test_coop_trains_everybody_once_and_alone() -> None:
    config = FederationConfig(clients=7, participation=0.5, rounds=9, local_epochs=2, batch_size=8)
    expected = FederationConfig(clients=7, participation=1.0, rounds=1, local_epochs=3, batch_size=8)
    assert CoOp(epochs=3).schedule(config) == expected
    assert (CoOp().epochs, CoOp(epochs=1).epochs) == (25, 1)
    assert refusal(CoOp, 0) == "method.epochs is 0; valid is an integer of at least 1."
    parts = declared(CoOp(), PLANE)
    assert list(parts) == ["prompt"]
    assert (parts["prompt"].scope, parts["prompt"].rate) == (Scope.PERSONAL, "prompt_lr")
    assert torch.equal(start_of(parts["prompt"]), PLANE)
    client = toy_client(CoOp(), PLANE)
    update, kept = CoOp().finish(client, ClientState(), Downlink(), 30)
    assert (update.parameters, kept.rounds_seen) == ({}, 1)
    assert same(kept.parameters, {"prompt": PLANE})


def test_zero_shot_predicts_with_the_template_and_trains_nothing(golden_clips: dict[str, FrozenCLIP]) -> None:
    config = FederationConfig(clients=7, rounds=9)
    assert ZeroShot().schedule(config) == FederationConfig(clients=7, rounds=0)
    assert ZeroShot().parameters(ModelSpec(PLANE, 2)) == []
    client = toy_client(ZeroShot(), PLANE, constants={"template": PLANE})
    torch.testing.assert_close(ZeroShot().logits(client, IMAGES), LOGITS)
    expected = "method.template is 'a photo'; valid is a sentence with {class} in it."
    assert refusal(ZeroShot, "a photo") == refusal(FedPGP, template="a photo") == expected
    clip, names = golden_clips["rn"], ["cat", "dog"]
    for make in (ZeroShot, FedPGP):
        for own, used in ((None, "X {class}."), ("X X {class}.", "X X {class}.")):
            found = make(template=own).constants(clip, names, "X {class}.")
            assert same(found, {"template": template_features(clip, names, used)})


# PromptFL + FT and FedProx


def test_fine_tuning_has_epochs() -> None:
    assert (PromptFLFT().fine_tune_epochs, PromptFLFT(1).fine_tune_epochs) == (5, 1)
    assert refusal(PromptFLFT, 0) == "method.epochs is 0; valid is an integer of at least 1 (PromptFL has none)."


def test_fedprox_pulls_to_the_received_prompt() -> None:
    """Four coordinates, each 0.5 from where the round began: mu / 2 * 4 * 0.25."""
    client = toy_client(PromptFL(), PLANE, Loadout(received={"prompt": PLANE - 0.5}))
    for mu in (0.0, 0.5, 3.0):
        assert FedProx(mu).loss(client, IMAGES, LABELS).item() == pytest.approx(CROSS_ENTROPY + mu / 2, rel=1e-6)
    assert (FedProx().mu, FedProx(0.0).mu) == (0.5, 0.0)
    assert refusal(FedProx, -0.5) == "method.mu is -0.5; valid is a number of at least 0."


# FedPer


@pytest.mark.parametrize(("vectors", "shared", "own"), [(None, 3, 2), (0, 5, 0), (1, 4, 1), (5, 0, 5)])
def test_fedper_splits_a_prompt_and_joins_it(vectors: int | None, shared: int, own: int) -> None:
    start = torch.arange(5.0).unsqueeze(1).expand(5, 2)  # row i holds i
    for prompt in (start, start.expand(3, 5, 2)):  # also class-specific
        parts = declared(FedPer(vectors), prompt)
        expected = {"prompt": (Scope.SHARED, prompt[..., :shared, :]), "own": (Scope.PERSONAL, prompt[..., shared:, :])}
        sizes = {"prompt": shared, "own": own}
        assert list(parts) == [name for name in expected if sizes[name]]
        for name, part in parts.items():
            assert (part.scope, part.rate, part.keep, part.pool) == (expected[name][0], "prompt_lr", False, False)
            assert torch.equal(start_of(part), expected[name][1])
        assert torch.equal(FedPer(vectors).prompt(toy_client(FedPer(vectors), prompt)), prompt)


def test_fedper_refuses_what_it_cannot_split() -> None:
    assert refusal(FedPer, -1) == "method.personal_vectors is -1; valid is an integer of at least 0."
    assert refusal(FedPer(6).parameters, ModelSpec(torch.zeros(5, 2), 2)) == (
        "method.personal_vectors is 6, but the prompt has 5 context vectors; valid is 0 to 5."
    )


# FedAMP


def test_fedamps_weights_and_mixture() -> None:
    """Prompts at 0, 1/2 and 3/2: squared distances 1, 4 and 9. sigma = 2, alpha = 1/2, so alpha / sigma = 1/4."""
    places = {0: 0.0, 1: 0.5, 2: 1.5}
    server = server_of(places)
    near, far = math.exp(-1 / 2) / 4, math.exp(-4 / 2) / 4
    weights = message_weights(server.pool["prompt"], 1, sigma=2.0, alpha=0.5)
    assert weights == {0: pytest.approx(near), 1: pytest.approx(1 - near - far), 2: pytest.approx(far)}
    sent = FedAMP(sigma=2.0, alpha=0.5).configure(server, 1, CONTEXT)
    assert (sent.parameters, sent.experts, sent.expert_ids) == ({}, {}, ())
    assert sent.extras.keys() == {"mixture", "alpha"}
    torch.testing.assert_close(sent.extras["mixture"], at(0.5 * (1 - near - far) + 1.5 * far))
    assert sent.extras["alpha"].item() == 0.5
    # null: alpha = sigma / 3, and each of the three weights at most a third
    near, far = math.exp(-1 / 2) / 3, math.exp(-4 / 2) / 3
    sent = FedAMP(sigma=2.0).configure(server, 1, CONTEXT)
    torch.testing.assert_close(sent.extras["mixture"], at(0.5 * (1 - near - far) + 1.5 * far))
    assert sent.extras["alpha"].item() == pytest.approx(2 / 3)
    for newcomer in (FedAMP().configure(server, 3, CONTEXT), FedAMP().deploy(server, 3, CONTEXT)):
        assert newcomer == Downlink()
    assert FedAMP().deploy(server, 1, CONTEXT) == Downlink()


def test_fedamps_sums_are_in_float64() -> None:
    pool = {0: torch.tensor([[-1.0]]), 1: torch.tensor([[2.0**24]])}  # 2^24 + 1 apart, which float32 cannot tell
    weights = message_weights(pool, 0, sigma=2.0**48, alpha=2.0**46)
    assert weights[1] == pytest.approx(math.exp(-((1 + 2.0**-24) ** 2)) / 4, rel=1e-9)
    server = server_of({0: 2.0**26, 1: 1.0, 2: -(2.0**26)})
    mixture = FedAMP(sigma=1e30).configure(server, 0, CONTEXT).extras["mixture"]  # all weights 1 / 3
    assert mixture.dtype == torch.float32
    torch.testing.assert_close(mixture, at(1 / 3))


@pytest.mark.parametrize("lmbda", [0.0, 0.3, 1.0])
def test_fedamps_pull(lmbda: float) -> None:
    """lambda / (2 alpha) * ||w - u||^2 with alpha = 1/4 and four coordinates 1 apart: 8 lambda."""
    extras = {"mixture": PLANE + 1, "alpha": torch.tensor(0.25)}
    method = FedAMP(lmbda=lmbda)
    pulled, free = toy_client(method, PLANE, Loadout(extras=extras)), toy_client(method, PLANE)
    assert method.loss(pulled, IMAGES, LABELS).item() == pytest.approx(CROSS_ENTROPY + 8 * lmbda, rel=1e-6)
    assert method.loss(free, IMAGES, LABELS).item() == pytest.approx(CROSS_ENTROPY, rel=1e-6)
    update, kept = method.finish(pulled, ClientState(), Downlink(extras=extras), 30)
    assert same(update.parameters, {"prompt": PLANE}) and same(kept.parameters, {"prompt": PLANE})
    server = server_of({})
    method.admit(server, update)
    assert same({str(i): prompt for i, prompt in server.pool["prompt"].items()}, {"4": PLANE})


def test_fedamps_settings() -> None:
    made = FedAMP()
    assert (made.sigma, made.alpha, made.lmbda) == (1.0, None, 0.1)
    assert FedAMP(lmbda=0.0).lmbda == 0.0
    part = declared(made, PLANE)["prompt"]
    assert (part.scope, part.rate, part.keep, part.pool) == (Scope.SHARED, "prompt_lr", True, True)
    assert torch.equal(start_of(part), PLANE)
    assert refusal(FedAMP, sigma=0.0) == "method.sigma is 0.0; valid is a number above 0."
    assert refusal(FedAMP, alpha=0.0) == (
        "method.alpha is 0.0; valid is a number above 0, or null for sigma / clients."
    )
    assert refusal(FedAMP, lmbda=-1.0) == "method.lmbda is -1.0; valid is a number of at least 0."
    five, one = FederationConfig(clients=5), FederationConfig(clients=1)
    FedAMP(sigma=2.0, alpha=0.5).check(five, 2)  # four others with at most a quarter each
    FedAMP(sigma=0.1, alpha=0.5).check(one, 2)
    FedAMP().check(five, 2)
    FedAMP(alpha=1.0).check(FederationConfig(clients=2), 2)
    refused = refusal(FedAMP(alpha=1.5).check, FederationConfig(clients=2), 2)
    assert refused.endswith("sigma / (clients - 1) = 1, or null.")
    assert refusal(FedAMP(sigma=2.0, alpha=0.6).check, five, 2) == (
        "method.alpha is 0.6; with method.sigma = 2 and federation.clients = 5 valid is at most sigma / (clients - 1) "
        "= 0.5, or null."
    )


# FedPGP


def test_fedpgps_contrastive_term() -> None:
    """Cosines (1, 0) and (0.6, 0.8) with template and personal feature, over 0.5."""
    shared = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    template, personal = torch.tensor([[2.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.8, 0.6]])
    expected = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(0.4))) / 2
    assert contrastive(shared, template, personal, 0.5).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0, 2.0])
def test_fedpgps_prompt_and_loss(mu: float) -> None:
    """sigma = [[2, 0], [1, 1]] and U V = [[-1, 0], [-1, 0]], which make PLANE; cosines with the template [[0, 1],
    [0, 1]] (0, 1 / sqrt 2) and with PLANE (1, 1 / sqrt 2)."""
    made = {"prompt": torch.tensor([[2.0, 0.0], [1.0, 1.0]]), "U": torch.full((2, 1), -1.0), "V": PLANE[:1]}
    method = FedPGP(rank=1, mu=mu, temperature=0.25)
    template = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)  # constants may have another type
    client = toy_client(method, PLANE, Loadout(made), {"template": template})
    assert torch.equal(method.prompt(client), PLANE)
    torch.testing.assert_close(method.logits(client, IMAGES), LOGITS)
    contrast = (math.log(1 + math.exp(4.0)) + math.log(2)) / 2
    loss = method.loss(client, IMAGES, LABELS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(CROSS_ENTROPY + mu * contrast, rel=1e-6)


def test_fedpgps_settings() -> None:
    made = FedPGP()
    assert (made.rank, made.mu, made.temperature, made.std, made.template) == (8, 0.5, 0.5, 0.02, None)
    assert (FedPGP(rank=1).rank, FedPGP(mu=0.0).mu, FedPGP(std=0.0).std) == (1, 0.0, 0.0)
    assert refusal(FedPGP, rank=0) == "method.rank is 0; valid is an integer of at least 1."
    assert refusal(FedPGP, mu=-0.5) == "method.mu is -0.5; valid is a number of at least 0."
    assert refusal(FedPGP, std=-1.0) == "method.std is -1.0; valid is a number of at least 0."
    assert refusal(FedPGP, temperature=0.0) == "method.temperature is 0.0; valid is a number above 0."
    prompt = torch.zeros(3, 4)
    for given in (prompt, prompt.expand(5, 3, 4)):  # with class-specific prompts, one U V for all classes
        parts = declared(FedPGP(rank=2, std=0.5), given)
        assert list(parts) == ["prompt", "U", "V"]
        assert torch.equal(start_of(parts["prompt"]), given)
        for name, shape in (("U", (3, 2)), ("V", (2, 4))):
            drawn = 0.5 * torch.empty(shape).normal_(generator=torch.Generator().manual_seed(3))
            torch.testing.assert_close(start_of(parts[name]), drawn)
    scopes = {name: (part.scope, part.rate) for name, part in parts.items()}
    personal = (Scope.PERSONAL, "gating_lr")
    assert scopes == {"prompt": (Scope.SHARED, "prompt_lr"), "U": personal, "V": personal}


# FedOTP


def test_fedotp_of_equal_places_is_the_mass_times_the_mean() -> None:
    """All M = 2 places alike: the plan moves mass / 2 to each of the two prompts, whichever places it takes it from."""
    images = torch.stack([IMAGES[:1].expand(2, 2), IMAGES[1:].expand(2, 2)])  # [b, M, d]
    text = torch.stack([PLANE, PLANE.flip(0)])  # [N, C, d]; the images' similarities (0.6, 0.8) and (0.8, 0.6)
    for transport, mass in (("balanced", 1.0), ("partial", 0.5)):
        found = FedOTP(transport, mass, epsilon=0.5, stop_threshold=0.0).match(images, text)  # type: ignore[arg-type]
        torch.testing.assert_close(found, mass * torch.tensor([[0.7, 0.7], [0.5, 0.5]]))


def test_fedotps_plan_of_two_places_and_two_prompts() -> None:
    """One class, S = [[0.9, 0.1], [0.1, 0.9]] of two orthogonal places: by symmetry the balanced plan is
    [[p, q], [q, p]] with p + q = 1/2 and p / q = exp(0.8 / epsilon)."""
    images, text = PLANE.unsqueeze(0), torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    for epsilon in (0.2, 0.5):
        ratio = math.exp(0.8 / epsilon)
        q = 0.5 / (1 + ratio)
        found = FedOTP("balanced", 1.0, epsilon).match(images, text)
        assert found.item() == pytest.approx(2 * (0.5 - q) * 0.9 + 2 * q * 0.1, rel=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.03, 0.0])
def test_fedotps_partial_plan_stops_where_its_prompts_factors_hardly_change(threshold: float) -> None:
    """S of two places with two prompts, and the rescalings one after another."""
    similarity = np.array([[0.9, 0.6], [0.1, 0.2]])  # both prompts want the first place, which is not enough
    kernel = np.exp((similarity - 1) / 0.2)
    column, count = np.ones(2), 0
    while count < 20:
        row, old = np.minimum(0.5 / (kernel @ column), 1.0), column
        column, count = 0.45 / (kernel.T @ row), count + 1
        if np.abs(column - old).mean() < threshold:
            break
    assert (count == 20) == (threshold == 0.0)
    expected = (row[:, None] * kernel * column * similarity).sum()
    text = torch.tensor(similarity.T[:, None], dtype=torch.float32)  # [N, C, d] for places along the axes
    found = FedOTP("partial", 0.9, 0.2, threshold, 20).match(PLANE.unsqueeze(0), text)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_fedotps_logits_are_scaled_matches_of_any_number_of_images() -> None:
    method = FedOTP("balanced", 1.0)
    local = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    client = toy_client(method, PLANE, Loadout({"prompt": PLANE, "local": local}))
    images = IMAGES.unsqueeze(1).expand(2, 3, 2)
    many = torch.cat([images, images.flip(0)] * 17)  # 68 images
    expected = SCALE * torch.tensor([[0.7, 0.7], [0.5, 0.5], [0.5, 0.5], [0.7, 0.7]] * 17)
    torch.testing.assert_close(method.logits(client, many), expected)


def test_fedotps_settings(golden_clips: dict[str, FrozenCLIP]) -> None:
    made = FedOTP()
    assert (made.transport, made.mass, made.epsilon, made.stop_threshold) == ("partial", 0.8, 0.1, 1e-3)
    assert (made.max_iterations, made.std) == (100, 0.02)
    assert isinstance(made.encoder(golden_clips["rn"]).encode, SpatialEncoder)
    edge = FedOTP("balanced", mass=1, epsilon=0.001, stop_threshold=0, max_iterations=1, std=0)
    assert (edge.mass, edge.epsilon, edge.stop_threshold, edge.max_iterations, edge.std) == (1, 0.001, 0, 1, 0)
    for mass in (0.0, 1.5):
        assert refusal(FedOTP, mass=mass) == f"method.mass is {mass}; valid is a number in (0, 1]."
    assert refusal(FedOTP, "balanced", mass=0.8) == (
        "method.mass is 0.8, but the balanced transport moves all mass; valid with it is 1."
    )
    assert refusal(FedOTP, epsilon=0.0005) == "method.epsilon is 0.0005; valid is a number of at least 0.001."
    assert refusal(FedOTP, max_iterations=0) == "method.max_iterations is 0; valid is an integer of at least 1."
    assert refusal(FedOTP, stop_threshold=-1.0) == "method.stop_threshold is -1.0; valid is a number of at least 0."
    assert refusal(FedOTP, std=-1.0) == "method.std is -1.0; valid is a number of at least 0."
    parts = declared(FedOTP(std=0.5), PLANE)
    found = {name: (part.scope, part.rate) for name, part in parts.items()}
    assert found == {"prompt": (Scope.SHARED, "prompt_lr"), "local": (Scope.PERSONAL, "gating_lr")}
    assert torch.equal(start_of(parts["prompt"]), PLANE)
    drawn = 0.5 * torch.empty(2, 2).normal_(generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(start_of(parts["local"]), drawn)


# pFedPrompt


def stored(keys: Any, labels: list[int], views: bool = False, online: Any = None) -> Any:
    """A client's stored examples [n, d], or [n, V, d], of another number type than the images that are asked for."""
    features = torch.tensor(keys, dtype=torch.float64)
    return SimpleNamespace(train_features=features, train_labels=torch.tensor(labels), views=views, online=online)


def test_stored_attention_falls_with_the_distance() -> None:
    """Keys along both axes and (0.8, 0.6), of classes 1, 0 and 1; the image's cosines 0.6, 0.8, 0.96."""
    keys, values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    expected = [math.exp(-0.2 * 2), math.exp(-0.4 * 2) + math.exp(-0.04 * 2)]
    assert stored_attention(IMAGES[:1], keys, values, 2.0).tolist() == [pytest.approx(expected, rel=1e-6)]


def test_pfedprompt_adds_its_own_images_to_predictions_only() -> None:
    method = PFedPrompt(alpha=3.0, beta=2.0)
    data = stored([[1.0, 0.0], [0.0, 1.0]], [1, 1])
    client = toy_client(method, PLANE, data=data)
    expected = LOGITS.clone()
    expected[0, 1] += 3 * (math.exp(-0.4 * 2) + math.exp(-0.2 * 2))
    expected[1, 1] += 3 * (1 + math.exp(-2))
    torch.testing.assert_close(method.logits(client, IMAGES), expected)
    assert method.loss(client, IMAGES, LABELS).item() == pytest.approx(CROSS_ENTROPY, rel=1e-6)
    torch.testing.assert_close(method.logits(toy_client(method, PLANE), IMAGES), LOGITS)  # of novel classes


def test_pfedprompts_key_of_views_is_their_normalized_mean() -> None:
    method = PFedPrompt(alpha=1.0, beta=1.0)
    views = [[[1.0, 0.0], [0.0, 1.0], [0.8, 0.8]], [[1.0, 0.0], [1.0, 0.0], [0.4, 0.0]]]  # two images, three views each
    client = toy_client(method, PLANE, data=stored(views, [0, 1], views=True))
    expected = LOGITS.clone()  # the keys are (1, 1) / sqrt 2 and (1, 0)
    expected[:, 0] += torch.tensor([math.exp(1.4 / math.sqrt(2) - 1), math.exp(1 / math.sqrt(2) - 1)])
    expected[:, 1] += torch.tensor([math.exp(0.6 - 1), 1.0])
    found = method.logits(client, IMAGES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_pfedprompts_settings() -> None:
    made, edge = PFedPrompt(), PFedPrompt(alpha=0.0, beta=0.0)
    assert (made.alpha, made.beta, edge.alpha, edge.beta) == (1.0, 5.5, 0.0, 0.0)
    assert refusal(PFedPrompt, alpha=-1.0) == "method.alpha is -1.0; valid is a number of at least 0."
    assert refusal(PFedPrompt, beta=-0.5) == "method.beta is -0.5; valid is a number of at least 0."
    client = toy_client(made, PLANE, data=stored([[1.0, 0.0]], [0], online=object()))
    assert refusal(made.logits, client, IMAGES) == (
        "views.kind is 'online', where no training features are stored, but PFedPrompt attends to them; valid is none "
        "or cached."
    )


def test_the_cross_entropy_of_this_file_is_torchs() -> None:
    assert -log_softmax(LOGITS, dim=1)[[0, 1], LABELS].mean().item() == pytest.approx(CROSS_ENTROPY, rel=1e-6)
