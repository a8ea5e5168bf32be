"""Clients that train together: the results of training one after the other, up to rounding, also where one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from federation_helpers import Log, build_federation
from torch import Tensor

from fedmoe.client.lockstep import Place, together
from fedmoe.config import EngineConfig, FeatureConfig, FederationConfig, OptimConfig, PrivacyConfig, RuntimeConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.data.subset import SubsetConfig
from fedmoe.engine.kinds import build_fleet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import FedOTP, FedTPG, Method, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.text_pass import SharedPass
from fedmoe.protocol.client import Client

CONFIG = FederationConfig(clients=5, participation=0.8, rounds=2, local_epochs=2, batch_size=16)
DATA = Digits(subset=SubsetConfig(train=110, test=30))
OPTIM = OptimConfig(prompt_lr=0.02, gating_lr=0.05, schedule="cosine_local")
Prepared = Callable[[Method], FederatedData]


@pytest.fixture(scope="module")
def prepared(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    cache, held = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features"))), dict[str, FederatedData]()

    def data(method: Method) -> FederatedData:
        encoder = method.encoder(embedded_clip)
        if encoder.name not in held:
            partition = Dirichlet(0.3, 5)  # clients have different numbers of steps
            held[encoder.name] = prepare(DATA, partition, embedded_clip, CONFIG, cache, seed=0, encoder=encoder)
        return held[encoder.name]

    return data


class Drawing(PromptFL):
    """Draws from torch's global generator in each loss, which is each client's own while it trains."""

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        noise = 0.05 * torch.randn_like(image_features)
        return super().loss(client, image_features + noise, labels)


def run(clip: FrozenCLIP, data: FederatedData, method: Method, size: int, **options: Any) -> tuple[Federation, Log]:
    runtime = RuntimeConfig(cohort_batch=size)
    federation, log = build_federation(clip, data, method, CONFIG, OPTIM, runtime=runtime, **options)
    federation.run()
    return federation, log


def agree(one: tuple[Federation, Log], other: tuple[Federation, Log]) -> None:
    (tensors, rest), (others, other_rest) = one[0].state.flatten(), other[0].state.flatten()
    assert rest == other_rest
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    for record, other_record in zip(one[1].records, other[1].records, strict=True):
        assert [other_record.train_loss or 0] == pytest.approx([record.train_loss or 0], rel=1e-5)
        assert (other_record.cohort, other_record.failed) == (record.cohort, record.failed)
        assert other_record.bytes == record.bytes


@pytest.mark.parametrize("method", [PFedMoAP(2), PromptFL(), FedOTP(), FedTPG(), Drawing()])
def test_together_is_one_after_the_other(
    embedded_clip: FrozenCLIP, prepared: Prepared, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sizes, plainly = prepared(method), list[int](), SharedPass.__call__
    serial = run(embedded_clip, data, method, 1)

    def watched(self: SharedPass, contexts: Tensor) -> Tensor:
        if contexts.requires_grad:
            sizes.append(len(contexts))
        return plainly(self, contexts)

    monkeypatch.setattr(SharedPass, "__call__", watched)
    agree(serial, run(embedded_clip, data, method, 3))  # a cohort of 4: three together, one alone
    prompts = 2 if isinstance(method, FedOTP) else 1
    assert max(sizes) == 3 * prompts
    assert min(sizes) == prompts
    assert not any("_body" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("early", [True, False])
def test_a_failure_is_the_clients_own(embedded_clip: FrozenCLIP, prepared: Prepared, early: bool) -> None:
    """Before its pass of the text tower, or between that and the gradient."""

    class Failing(PFedMoAP):
        def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
            harmed = client.client_id == 2 and len(self.seen) == 4
            if client.client_id == 2:
                self.seen.append(0)
            if harmed and early:
                raise RuntimeError("gone")
            loss = super().loss(client, image_features, labels)
            if harmed:
                raise RuntimeError("gone")
            return loss

        def __init__(self) -> None:
            super().__init__(2)
            self.seen: list[int] = []

    method = Failing()
    data, runs = prepared(method), []
    for size in (1, 4):
        method.seen = []
        runs.append(run(embedded_clip, data, method, size))
    agree(*runs)
    assert any(record.failed.get("2") == "RuntimeError: gone" for record in runs[1][1].records)


def test_the_same_run_twice_has_the_same_bits(embedded_clip: FrozenCLIP, prepared: Prepared) -> None:
    tensors = [run(embedded_clip, prepared(PFedMoAP(2)), PFedMoAP(2), 4)[0].state.flatten()[0] for _ in range(2)]
    assert all(torch.equal(tensors[1][name], tensor) for name, tensor in tensors[0].items())


def squared(place: Place[Tensor], run: Callable[[Tensor], Tensor], start: float) -> Tensor:
    """The gradient of a sum over a pass of one prompt."""
    prompt = torch.full((1, 1, 2), start, requires_grad=True)
    place.begin()
    place.backward(place.forward(run, prompt).sum())
    assert prompt.grad is not None
    return prompt.grad


def test_memory_for_one_at_a_time_is_enough() -> None:
    sizes: list[int] = []

    def run(contexts: Tensor) -> Tensor:
        sizes.append(len(contexts))
        if len(contexts) > 1:
            raise torch.OutOfMemoryError("no room")
        return contexts.square()

    found = together([partial(squared, run=run, start=start) for start in (1.0, 2.0)])
    assert [gradient.flatten().tolist() for gradient in found] == [[2.0, 2.0], [4.0, 4.0]]
    assert sizes == [2, 1, 1]


def test_an_interruption_ends_all_clients() -> None:
    def run(contexts: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together([partial(squared, run=run, start=1.0)] * 2)
    assert not any("_body" in thread.name for thread in threading.enumerate())


def test_where_clients_need_each_other(embedded_clip: FrozenCLIP, prepared: Prepared) -> None:
    data, runtime = prepared(PromptFL()), RuntimeConfig(cohort_batch=2)

    def build(method: Method, config: FederationConfig = CONFIG, **options: Any) -> Federation:
        return build_federation(embedded_clip, data, method, config, runtime=runtime, **options)[0]

    with pytest.raises(UserError, match=r"runtime\.cohort_batch is 2; valid is 1 with federation\.share_momentum"):
        build(PromptFL(), FederationConfig(clients=5, share_momentum=True))
    with pytest.raises(UserError, match=r"runtime\.cohort_batch is 2; valid is 1 with uploads"):
        build(PFedMoAP(2, pool_update="immediate"))
    with pytest.raises(UserError, match=r"runtime\.cohort_batch is 2; valid is 1 with a privacy"):
        build(PromptFL(), privacy=PrivacyConfig(mechanism="upload"))
    fleet: Any = build(PromptFL()).fleet
    with pytest.raises(UserError, match="clients that are apart share no text pass"):
        build_fleet(fleet.work, EngineConfig(kind="flower_simulation"))
