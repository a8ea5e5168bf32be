"""Options with which clients train as in pFedMoAP's released code: learning rate, momentum, batches, precision, pool.

Runs are real ones on the embedded CLIP and data; where values are by hand, the loss is replaced by one whose gradient
is a known number. Expected learning rates are those of torch's own scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from federation_helpers import Backwards, build_federation, differences, results, work_of
from test_line import CONFIG, DIGITS, METHODS, PROMPT, ByteFleet, LateAnswers, clip_of
from torch import Tensor
from toy_client import at, same, server_of

from fedmoe.client.schedule import released_rate
from fedmoe.client.work import ClientWork
from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig, PrivacyConfig
from fedmoe.data import IID
from fedmoe.errors import UserError
from fedmoe.features.client_data import FeatureBatches, FederatedData, prepare
from fedmoe.federation.fleet import Fleet, LocalFleet
from fedmoe.federation.state import FederationState
from fedmoe.methods import FedPGP, FedProx, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import RoundContext
from fedmoe.server.experts import shuffled_experts

FLEETS: list[Callable[[ClientWork], Fleet]] = [LocalFleet, ByteFleet, LateAnswers]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, cache: FeatureConfig) -> FederatedData:
    """80 training images: 27, 27 and 26 for three clients."""
    return prepare(DIGITS, IID(), embedded_clip, replace(CONFIG, clients=3), cache, seed=0)


THREE = FederationConfig(clients=3, rounds=2, local_epochs=1, batch_size=32)  # one step in a fit
SIZES = (27, 27, 26)


# The learning rate


def by_torch(base: float, epochs: int, period: int) -> list[float]:
    """A warm-up epoch, then torch's cosine, which is stepped on and on."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period)
    rates = [1e-5]
    for _ in range(epochs - 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    return rates


@pytest.mark.parametrize(("base", "period"), [(0.002, 5), (0.001, 5), (0.02, 2), (0.02, 1)])
def test_the_released_rate_is_torchs(base: float, period: int) -> None:
    expected = by_torch(base, 40, period)
    assert [released_rate(base, epoch, period) for epoch in range(40)] == pytest.approx(expected, abs=1e-9)


def test_the_released_rates_means_are_those_that_were_traced() -> None:
    rates = [released_rate(0.002, epoch, 5) for epoch in range(205)]
    means = [sum(rates[5 * fit : 5 * fit + 5]) / 5 for fit in range(41)]
    assert {f"{mean:.2e}" for mean in means[1::2]} == {"4.76e-04"}
    assert {f"{mean:.2e}" for mean in means[2::2]} == {"1.52e-03"}
    assert f"{sum(means[1:]) / 40:.1e}" == "1.0e-03"  # in the long run
    assert f"{means[0]:.2e}" == "1.16e-03"
    assert released_rate(5e-6, 0, 5) == 5e-6  # a warm-up is never faster than what it leads to


def test_clients_share_one_course_of_the_released_rate(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """Two of three clients in each of three rounds, two epochs of three batches: twelve epochs of one course."""
    seen: list[tuple[float, float]] = []

    class Spy(FedPGP):
        def loss(self, client: Any, image_features: Tensor, labels: Tensor) -> Tensor:
            seen.append(tuple(group["lr"] for group in client.optimizers().param_groups))
            return super().loss(client, image_features, labels)

    config = FederationConfig(clients=3, participation=0.67, rounds=3, local_epochs=2, batch_size=10)
    optim = OptimConfig(prompt_lr=0.02, gating_lr=0.3, schedule="released")
    federation, _ = build_federation(embedded_clip, data, Spy(), config, optim)
    federation.run()
    for place, base in enumerate((0.02, 0.3)):
        expected = np.repeat(by_torch(base, 12, 2), 3)
        assert [rates[place] for rates in seen] == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("kind", [Backwards, ByteFleet, LateAnswers])
def test_a_clients_released_rate_follows_from_its_place(
    embedded_clip: FrozenCLIP, data: FederatedData, kind: Any
) -> None:
    """Neither the order in which clients happen to train nor where they are changes a bit."""
    how: dict[str, Any] = {"kind": kind} if kind is Backwards else {"fleet": kind}
    optim = OptimConfig(prompt_lr=0.02, schedule="released")
    plain, _ = build_federation(embedded_clip, data, PromptFL(), THREE, optim)
    other, _ = build_federation(embedded_clip, data, PromptFL(), THREE, optim, **how)
    plain.run()
    other.run()
    assert differences(plain.state, other.state) == []


# Batches


@pytest.mark.parametrize(
    ("count", "kept", "without"), [(10, [4, 4, 2], [4, 4]), (8, [4, 4], [4, 4]), (3, [3], []), (0, [], [])]
)
def test_an_incomplete_last_batch_is_left_out(count: int, kept: list[int], without: list[int]) -> None:
    features, labels = torch.arange(float(count)).unsqueeze(1), torch.arange(count)

    def batches(drop_last: bool) -> list[list[int]]:
        made = FeatureBatches(features, labels, 4, torch.Generator().manual_seed(1), drop_last=drop_last)
        found = [own.tolist() for _, own in made]
        assert len(found) == len(made)
        return found

    assert [len(batch) for batch in batches(False)] == kept
    assert [len(batch) for batch in batches(True)] == without
    assert batches(True) == batches(False)[: len(without)]  # the same images in the same order


@pytest.mark.parametrize(("batch_size", "drop_last", "sizes"), [(12, True, [12, 12]), (12, False, [12, 12, 3])])
def test_training_leaves_the_last_batch_out(
    embedded_clip: FrozenCLIP, data: FederatedData, batch_size: int, drop_last: bool, sizes: list[int]
) -> None:
    assert batch_sizes(embedded_clip, data, batch_size, drop_last)[0] == sizes


def test_a_client_with_less_than_a_batch_trains_on_all_it_has(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    assert batch_sizes(embedded_clip, data, 27, True) == [[27], [27], [26]]


def batch_sizes(clip: FrozenCLIP, data: FederatedData, batch_size: int, drop_last: bool) -> list[list[int]]:
    """The sizes of a client's batches in a pass over its data, for each client."""
    seen: dict[int, list[int]] = {}

    class Spy(PromptFL):
        def loss(self, client: Any, image_features: Tensor, labels: Tensor) -> Tensor:
            seen.setdefault(client.client_id, []).append(len(labels))
            return super().loss(client, image_features, labels)

    config = replace(THREE, rounds=1, batch_size=batch_size, drop_last=drop_last)
    federation, _ = build_federation(clip, data, Spy(), config)
    federation.run()
    return [seen[client] for client in range(3)]


# Momentum


class Slope(PromptFL):
    """A loss whose gradient is one in every coordinate of the prompt."""

    def loss(self, client: Any, image_features: Tensor, labels: Tensor) -> Tensor:
        return client.prompts["prompt"].sum()


SLOPE = OptimConfig(prompt_lr=0.1, momentum=0.5, weight_decay=0.0)


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize(
    ("share", "buffers"), [(True, [1.0, 1.5, 1.75, 1.875, 1.9375, 1.96875]), (False, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
)
def test_momentum_goes_from_client_to_client(
    embedded_clip: FrozenCLIP, data: FederatedData, fleet: Any, share: bool, buffers: list[float]
) -> None:
    """Each of six fits makes one step of 0.1 times its buffer, which is half the buffer before it, plus one."""
    config = replace(THREE, share_momentum=share)
    federation, log = build_federation(embedded_clip, data, Slope(), config, SLOPE, fleet=fleet)
    start = federation.server.shared["prompt"]
    federation.run()
    steps = [sum(n * b for n, b in zip(SIZES, buffers[3 * r : 3 * r + 3], strict=True)) / 80 for r in (0, 1)]
    torch.testing.assert_close(federation.server.shared["prompt"], start - 0.1 * sum(steps))
    # Of the first fit alone nothing is known before; all other buffers are sent down, and all are sent up.
    extra = [(2 * PROMPT, 3 * PROMPT), (3 * PROMPT, 3 * PROMPT)] if share else [(0, 0), (0, 0)]
    for record, (down, up) in zip(log.records[1:], extra, strict=True):
        assert (record.bytes["down"], record.bytes["up"]) == (3 * PROMPT + down, 3 * PROMPT + up)
    expected = {"momentum.prompt": torch.full_like(start, buffers[-1])} if share else {}
    assert same(federation.server.extras, expected)


def test_momentum_of_personal_parts_is_shared_too(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """The gate is trained from the second round on; of its momentum the next client's fit makes use."""
    config = replace(THREE, share_momentum=True, rounds=3)
    shared, _ = build_federation(embedded_clip, data, PFedMoAP(num_experts=1), config)
    shared.round(1)
    assert set(shared.server.extras) == {"momentum.prompt"}
    shared.round(2)
    maps = {f"gate.{name}.{part}" for name in ("query", "key", "value", "output") for part in ("weight", "bias")}
    assert set(shared.server.extras) == {f"momentum.{name}" for name in {"prompt", *maps}}
    alone, _ = build_federation(embedded_clip, data, PFedMoAP(num_experts=1), replace(config, share_momentum=False))
    alone.round(1)
    alone.round(2)
    different = differences_of_clients(shared.state, alone.state)
    assert {name.partition("gate")[1] for name in different} == {"", "gate"}


def differences_of_clients(one: FederationState, other: FederationState) -> list[str]:
    tensors, others = one.flatten()[0], other.flatten()[0]
    return [name for name in others if name.startswith("client/") and not torch.equal(tensors[name], others[name])]


def test_shared_momentum_survives_a_checkpoint(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config = replace(THREE, share_momentum=True, rounds=3)
    whole, log = build_federation(embedded_clip, data, PFedMoAP(num_experts=1), config)
    whole.run()
    first, _ = build_federation(embedded_clip, data, PFedMoAP(num_experts=1), replace(config, rounds=2))
    first.run()
    state = FederationState.unflatten(*first.state.flatten())
    second, second_log = build_federation(embedded_clip, data, PFedMoAP(num_experts=1), config, state=state)
    second.run()
    assert differences(whole.state, second.state) == []
    assert results(log)[-1] == results(second_log)[-1]


def test_a_client_that_fails_leaves_no_momentum(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    class Failing(Slope):
        def loss(self, client: Any, image_features: Tensor, labels: Tensor) -> Tensor:
            return super().loss(client, image_features, labels) * (float("nan") if client.client_id == 1 else 1.0)

    federation, _ = build_federation(embedded_clip, data, Failing(), replace(THREE, share_momentum=True), SLOPE)
    federation.round(1)
    assert torch.equal(federation.server.extras["momentum.prompt"].unique(), torch.tensor([1.5]))  # of clients 0 and 2


def test_where_momentum_cannot_be_shared(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config = replace(THREE, share_momentum=True)
    with pytest.raises(UserError) as caught:
        build_federation(embedded_clip, data, PromptFL(), config, OptimConfig(optimizer="adam"))
    assert str(caught.value) == (
        "federation.share_momentum is true, but optim.optimizer is 'adam', which has no momentum of SGD; valid is sgd, "
        "or federation.share_momentum = false."
    )
    for mechanism in ("upload", "dpsgd"):
        privacy = PrivacyConfig(mechanism=mechanism)
        with pytest.raises(UserError) as caught:
            build_federation(embedded_clip, data, PromptFL(), config, privacy=privacy)
        assert str(caught.value) == (
            f"privacy.mechanism is '{mechanism}', but federation.share_momentum = true sends sums of gradients "
            "unprotected; valid is false."
        )
        with pytest.raises(UserError) as caught:
            build_federation(embedded_clip, data, PromptFL(), THREE, OptimConfig(precision="float16"), privacy=privacy)
        assert str(caught.value) == (
            f"privacy.mechanism is '{mechanism}', but optim.precision = float16 rounds what noise is added to; valid "
            "is float32."
        )


# Precision


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method().half_precision])
def test_methods_that_half_precision_breaks_refuse_it(
    embedded_clip: FrozenCLIP, vit_clip: FrozenCLIP, cache: FeatureConfig, name: str
) -> None:
    method = METHODS[name]()
    clip = clip_of(method, embedded_clip, vit_clip)
    own = prepare(DIGITS, IID(), clip, CONFIG, cache, seed=0, encoder=method.encoder(clip))
    with pytest.raises(UserError, match=f"'float16', in which {type(method).__name__} does not work; valid is float32"):
        build_federation(clip, own, method, CONFIG, OptimConfig(precision="float16"))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method().half_precision])
def test_half_precision(embedded_clip: FrozenCLIP, cache: FeatureConfig, name: str) -> None:
    """All that is learned, sent and kept has 16 bits, and the loss is that of 32 bits up to rounding."""
    method = METHODS[name]()
    own = prepare(DIGITS, IID(), embedded_clip, CONFIG, cache, seed=0, encoder=method.encoder(embedded_clip))
    optim = OptimConfig(prompt_lr=0.02, gating_lr=0.05)
    wide, log = build_federation(embedded_clip, own, method, CONFIG, optim)
    half, half_log = build_federation(
        embedded_clip, own, METHODS[name](), CONFIG, replace(optim, precision="float16"), fleet=ByteFleet
    )
    wide.run()
    half.run()
    tensors = half.state.flatten()[0]
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.float16}
    assert tensors.keys() == wide.state.flatten()[0].keys()
    for record, expected in zip(half_log.records, log.records, strict=True):
        assert record.failed == {}
        assert 2 * record.bytes["up"] == expected.bytes["up"]
        if expected.train_loss is not None:
            assert record.train_loss == pytest.approx(expected.train_loss, rel=2e-3)  # half has 11 bits: 5e-4 in a sum
            assert record.train_loss != expected.train_loss


def test_momentum_has_the_precision_too(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    optim = replace(SLOPE, precision="float16")
    federation, _ = build_federation(embedded_clip, data, Slope(), replace(THREE, share_momentum=True), optim)
    federation.run()
    momentum = federation.server.extras["momentum.prompt"]
    assert (momentum.dtype, momentum.unique().tolist()) == (torch.float16, [1.96875])  # 2 - 2^-5, exact in 16 bits
    module = work_of(federation).module
    features, labels = data.client(0).train_features[:3], data.client(0).train_labels[:3]
    assert module(features).dtype == torch.float16
    assert PromptFL().loss(module, module.features(features), labels).dtype == torch.float16


# The pool


class Slopes(PFedMoAP):
    """One step takes 0.1 (i + 1) off every coordinate of client i's prompt. Keeps what the clients' experts were."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(num_experts=2, **settings)
        self.seen: dict[int, list[Tensor]] = {}

    def loss(self, client: Any, image_features: Tensor, labels: Tensor) -> Tensor:
        self.seen[client.client_id] = list(client.experts.get("prompt", ()))
        return (client.client_id + 1) * client.prompts["prompt"].sum() + 0.0 * super().loss(
            client, image_features, labels
        )


def uploaded(start: Tensor, round: int) -> list[Tensor]:
    """What the three clients upload: in round 1 start - 0.1, - 0.2, - 0.3, and in round 2 the same from their mean."""
    mean = 0.1 * sum(n * (i + 1) for i, n in enumerate(SIZES)) / 80
    return [start - (round - 1) * mean - 0.1 * (i + 1) for i in range(3)]


@pytest.mark.parametrize("evaluation", ["held", "fresh"])
@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize(
    ("update", "rounds"),
    [
        ("round", {0: {1: 1, 2: 1}, 1: {0: 1, 2: 1}, 2: {0: 1, 1: 1}}),
        ("immediate", {0: {1: 1, 2: 1}, 1: {0: 2, 2: 1}, 2: {0: 2, 1: 2}}),
    ],
)
def test_later_clients_get_prompts_of_the_same_round(
    embedded_clip: FrozenCLIP, data: FederatedData, evaluation: Any, fleet: Any, update: Any, rounds: Any
) -> None:
    """``rounds``: of which round the experts are that a client trains with in round 2, by client and expert."""
    method = Slopes(pool_update=update, evaluation_experts=evaluation)
    optim = OptimConfig(prompt_lr=0.1, momentum=0.0, weight_decay=0.0)
    federation, _ = build_federation(embedded_clip, data, method, THREE, optim, fleet=fleet)
    clients = work_of_any(federation).method  # with bytes between them, it is another object than the server's
    assert isinstance(clients, Slopes)
    start = federation.server.shared["prompt"]
    federation.round(1)
    assert clients.seen == {0: [], 1: [], 2: []}
    pool = dict(federation.server.pool["prompt"])
    federation.round(2)
    for client, experts in rounds.items():
        expected = sorted((uploaded(start, of)[i] for i, of in experts.items()), key=lambda prompt: float(prompt.sum()))
        found = sorted(clients.seen[client], key=lambda prompt: float(prompt.sum()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other)
    for i in range(3):  # after the round, the pool is the same either way
        torch.testing.assert_close(pool[i], uploaded(start, 1)[i])
        torch.testing.assert_close(federation.server.pool["prompt"][i], uploaded(start, 2)[i])


def work_of_any(federation: Any) -> ClientWork:
    fleet = federation.fleet
    return fleet._clients.work if isinstance(fleet, ByteFleet) else fleet.work


def test_a_round_that_breaks_off_leaves_the_pool(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    class Failing(Slopes):
        def loss(self, client: Any, image_features: Tensor, labels: Tensor) -> Tensor:
            if client.client_id == 2 and client.experts:
                raise RuntimeError("no")
            return super().loss(client, image_features, labels)

    config = replace(THREE, on_failure="stop", share_momentum=True)
    federation, _ = build_federation(embedded_clip, data, Failing(pool_update="immediate"), config)
    federation.round(1)
    server = federation.server
    before = [
        {name: tensor.clone() for name, tensor in group.items()}
        for group in (server.shared, server.extras, {str(i): prompt for i, prompt in server.pool["prompt"].items()})
    ]
    with pytest.raises(RuntimeError, match="no"):
        federation.round(2)
    assert federation.server is server
    assert same(server.shared, before[0]) and same(server.extras, before[1])  # no tensor was written to, either
    assert same({str(i): prompt for i, prompt in server.pool["prompt"].items()}, before[2])


def test_shuffled_experts_by_hand() -> None:
    """One order of all clients, from which a client takes the first others that are in the pool."""
    everybody = {client: at(0.0) for client in range(8)}
    order = shuffled_experts(everybody, 99, 8, (5, "train", 1, 99))
    assert sorted(order) == list(range(8))
    for client in range(8):
        for place in ((5, "train", 1, client), (5, "evaluate", 9, client)):
            others = [other for other in order if other != client]
            assert shuffled_experts(everybody, client, 3, place) == others[:3]
            some = {i: at(0.0) for i in (1, 4, 6, client)}
            assert shuffled_experts(some, client, 9, place) == [i for i in others if i in some]
    orders = np.array([shuffled_experts(everybody, 99, 8, (seed,)) for seed in range(2000)])
    for column in orders.T:  # every client is in every place equally often, within six standard deviations
        assert np.all(np.abs(np.bincount(column, minlength=8) - 250) < 6 * np.sqrt(2000 / 8 * 7 / 8))


def test_a_method_takes_experts_from_the_shuffle() -> None:
    pool = {client: float(client) for client in range(6)}
    method = PFedMoAP(num_experts=2, assignment="shuffled")
    expected = shuffled_experts({client: at(0.0) for client in pool}, 3, 2, (7,))
    for number in (1, 2):
        downlink = method.configure(server_of(pool), 3, RoundContext(number, (3,), seed=7))
        assert list(downlink.expert_ids) == expected
        assert torch.equal(downlink.experts["prompt"], torch.stack([at(pool[i]) for i in expected]))


# FedProx


def test_a_detached_proximal_term_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config = replace(THREE, local_epochs=3, batch_size=8)
    runs: dict[str, Any] = {}
    for name, method in {
        "PromptFL": PromptFL(),
        "detached": FedProx(3.0, proximal="detached"),
        "gradient": FedProx(3.0),
    }.items():
        federation, log = build_federation(embedded_clip, data, method, config)
        federation.run()
        runs[name] = (federation.state, [record.train_loss for record in log.records[1:]], log.records[-1].accuracy)
    assert differences(runs["PromptFL"][0], runs["detached"][0]) == []
    assert runs["PromptFL"][2] == runs["detached"][2]
    assert all(more > less for more, less in zip(runs["detached"][1], runs["PromptFL"][1], strict=True))
    assert differences(runs["PromptFL"][0], runs["gradient"][0]) == ["shared/prompt"]
