"""Server and client hold nothing of each other but what crossed the line as bytes, and end with the same bits.

Runs are real ones on the embedded CLIP and data. The expected values are those of the plain run, and byte counts
worked out by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from federation_helpers import build_federation, differences, results
from safetensors.torch import load

from fedmoe.client.work import ClientWork
from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.fleet import LocalFleet, Summed
from fedmoe.methods import (
    DPFPL,
    CoOp,
    FedAMP,
    FedLoRA,
    FedMaPLe,
    FedMGP,
    FedOTP,
    FedPer,
    FedPGP,
    FedPHA,
    FedProx,
    FedSEPT,
    FedTPG,
    FedVPT,
    LocalAdapter,
    Method,
    NeighbourMixture,
    PFedMMA,
    PFedMoAP,
    PFedPrompt,
    PromptFL,
    PromptFLFT,
    PromptFolio,
    ZeroShot,
)
from fedmoe.methods.towers import TowerMethod
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.parameters import Scope, part_of
from fedmoe.protocol.records import About, ClientState, Downlink, Failed, Scored, ScoreJob, Trained, TrainJob, Update
from fedmoe.protocol.wire import from_bytes, to_bytes
from fedmoe.server.state import Known

CONFIG = FederationConfig(clients=4, participation=0.5, rounds=3, local_epochs=1, batch_size=32)
DIGITS = Digits(subset=SubsetConfig(train=80, test=60))
METHODS: dict[str, Callable[[], Method]] = {
    "ZeroShot": ZeroShot,
    "CoOp": lambda: CoOp(epochs=1),
    "PromptFL": PromptFL,
    "FedProx": FedProx,
    "PromptFLFT": lambda: PromptFLFT(epochs=1),
    "FedPer": FedPer,
    "FedAMP": FedAMP,
    "FedPGP": FedPGP,
    "FedOTP": FedOTP,
    "PFedPrompt": PFedPrompt,
    "LocalAdapter": LocalAdapter,
    "PromptFolio": PromptFolio,
    "FedPHA": lambda: FedPHA(lengths=[4, 16, 20]),
    "DPFPL": lambda: DPFPL(noise=0.1, server_noise=0.01),
    "FedSEPT": FedSEPT,
    "FedTPG": FedTPG,
    "FedVPT": lambda: FedVPT(depth=2, text_vectors=2),
    "FedMaPLe": FedMaPLe,
    "FedMGP": lambda: FedMGP(groups=3),
    "PFedMMA": lambda: PFedMMA(gradients="scaled"),
    "FedLoRA": FedLoRA,
    "NeighbourMixture": lambda: NeighbourMixture(num_experts=2),
    "PFedMoAP": lambda: PFedMoAP(num_experts=2),
    "PFedMoAP held random": lambda: PFedMoAP(num_experts=2, assignment="random", evaluation_experts="held"),
    "PFedMoAP linear": lambda: PFedMoAP(num_experts=2, gate="linear"),
    "PFedMoAP averaged": lambda: PFedMoAP(num_experts=2, gate_sharing="averaged"),
    "PFedMoAP alone": lambda: PFedMoAP(num_experts=0, gate_sharing="averaged"),
    "PFedMoAP own held": lambda: PFedMoAP(num_experts=2, assignment="own", evaluation_experts="held"),
    "PFedMoAP global": lambda: PFedMoAP(num_experts=2, assignment="global", gate_start="identity"),
    "PFedMoAP noise": lambda: PFedMoAP(num_experts=2, assignment="noise", attention="uniform"),
    "PFedMoAP untrained": lambda: PFedMoAP(num_experts=2, assignment="farthest", train_gate=False),
    "PFedMoAP no gate": lambda: PFedMoAP(num_experts=2, gate="none"),
}
PROMPT = 16 * 64 * 4  # bytes of 16 vectors of 64 float32


class ByteFleet:
    """Clients that get bytes and answer in bytes. Their method is another object than the server's."""

    def __init__(self, work: ClientWork) -> None:
        work.method = work.module.method = deepcopy(work.method)
        self._clients = LocalFleet(work)
        self.down: list[bytes] = []
        self.up: list[bytes] = []

    def open(self, run: str) -> None:
        pass

    def close(self) -> None:
        pass

    def about(self, client_id: int) -> About:
        return self._clients.about(client_id)

    def train(self, jobs: Iterable[TrainJob]) -> Iterator[tuple[TrainJob, Trained | Failed]]:
        for job in jobs:
            self.down.append(to_bytes(job))
            ((_, result),) = self._clients.train([from_bytes(TrainJob, self.down[-1])])
            self.up.append(to_bytes(result))
            kind: Any = type(result)
            yield job, from_bytes(kind, self.up[-1])

    def score(self, jobs: Iterable[ScoreJob]) -> Iterator[Scored]:
        for job in jobs:
            self.down.append(to_bytes(job))
            (result,) = self._clients.score([from_bytes(ScoreJob, self.down[-1])])
            self.up.append(to_bytes(result))
            yield from_bytes(Scored, self.up[-1])

    def sum(self, updates: Sequence[Update], round: int) -> Summed:
        return self._clients.sum(updates, round)

    def crossed(self) -> dict[str, float]:
        return {}

    def states(self, known: Mapping[int, Known]) -> dict[int, ClientState]:
        return self._clients.states(known)

    def release(self, known: Mapping[int, Known], replaced: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._clients.release(known, replaced)

    def restore(self, known: Mapping[int, Known], states: Mapping[int, ClientState]) -> None:
        self._clients.restore(known, states)


class LateAnswers(LocalFleet):
    """Takes all orders first, and answers the last one first."""

    def train(self, jobs: Iterable[TrainJob]) -> Iterator[tuple[TrainJob, Trained | Failed]]:
        return reversed(list(super().train(list(jobs))))

    def score(self, jobs: Iterable[ScoreJob]) -> Iterator[Scored]:
        return reversed(list(super().score(list(jobs))))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


def clip_of(method: Method, plain: FrozenCLIP, vit: FrozenCLIP) -> FrozenCLIP:
    """One with a VisionTransformer for methods that learn in the image encoder."""
    return vit if isinstance(method, TowerMethod) else plain


def data_of(clip: FrozenCLIP, method: Method, cache: FeatureConfig) -> FederatedData:
    return prepare(DIGITS, Dirichlet(0.5, 5), clip, CONFIG, cache, seed=0, encoder=method.encoder(clip))


@pytest.mark.parametrize("name", METHODS)
def test_only_bytes_cross_and_no_bit_changes(
    embedded_clip: FrozenCLIP, vit_clip: FrozenCLIP, cache: FeatureConfig, name: str
) -> None:
    method = METHODS[name]()
    clip = clip_of(method, embedded_clip, vit_clip)
    data = data_of(clip, method, cache)
    plain, log = build_federation(clip, data, method, CONFIG)
    plain.run()
    apart, log_apart = build_federation(clip, data, METHODS[name](), CONFIG, fleet=ByteFleet)
    apart.run()
    assert differences(plain.state, apart.state) == []
    assert results(log) == results(log_apart)
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_apart.evaluations]

    # Up goes what is declared as shared; down goes that, others' values of it, and what a method calls its extras.
    fleet = apart.fleet
    assert isinstance(fleet, ByteFleet)
    declared = fleet._clients.work.module.declared
    shared = {part.name for part in declared if part.scope is Scope.SHARED}
    pooled = {part.name for part in declared if part.pool}
    sent = sum(len(tensors) for tensors in map(load, fleet.up))
    for place in (place for message in fleet.up for place in load(message)):
        kind, _, tensor = place.rpartition("/")
        assert kind == "sums" or (kind == "update/parameters" and part_of(tensor) in shared)
    for place in (place for message in fleet.down for place in load(message)):
        _, kind, tensor = place.split("/")
        assert kind == "extras" or part_of(tensor) in {"parameters": shared, "experts": pooled}[kind]
    assert sent or name in ("ZeroShot", "CoOp")

    # What the records account for is what crossed, to the byte.
    uploads = [load(message) for message in fleet.up]
    up = sum(t.nbytes for tensors in uploads for place, t in tensors.items() if place.startswith("update/"))
    assert up == sum(record.bytes["up"] for record in log.records)
    down = sum(tensor.nbytes for message in fleet.down for tensor in load(message).values())
    assert down == sum(record.bytes["down"] + record.bytes["evaluate_down"] for record in log.records)


@pytest.mark.parametrize("name", ["PromptFL", "FedAMP", "PFedMoAP"])
def test_answers_may_come_in_any_order(embedded_clip: FrozenCLIP, cache: FeatureConfig, name: str) -> None:
    data = data_of(embedded_clip, METHODS[name](), cache)
    plain, log = build_federation(embedded_clip, data, METHODS[name](), CONFIG)
    late, log_late = build_federation(embedded_clip, data, METHODS[name](), CONFIG, fleet=LateAnswers)
    plain.run()
    late.run()
    assert differences(plain.state, late.state) == []
    assert results(log) == results(log_late)


@pytest.mark.parametrize(
    ("name", "evaluation"),
    [
        ("ZeroShot", 0),
        ("CoOp", 0),  # all trained in round 1, and each predicts with its own prompt
        ("PromptFL", 4 * PROMPT),  # each of the four clients needs the global prompt
        ("FedPer", 4 * PROMPT // 2),  # the first 8 of 16 vectors
        ("FedAMP", 0),
        ("FedOTP", 4 * PROMPT),
        ("FedPGP", 4 * PROMPT),
        ("PromptFolio", 4 * PROMPT),
        ("FedPHA", 0),  # the local prompt classifies alone
        ("DPFPL", 4 * PROMPT),
        ("FedSEPT", 4 * 4 * 16 * 16 * 4),  # each of the four clients needs 4 factors of 16 x 16 float32
    ],
)
def test_downloads_of_evaluation_are_counted(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, name: str, evaluation: int
) -> None:
    method = METHODS[name]()
    federation, log = build_federation(embedded_clip, data_of(embedded_clip, method, cache), method, CONFIG)
    federation.run()
    assert {record.bytes["evaluate_down"] for record in log.records} == {evaluation}


def test_pfedmoap_downloads_what_each_client_lacks(embedded_clip: FrozenCLIP, cache: FeatureConfig) -> None:
    method = PFedMoAP(num_experts=2)
    federation, log = build_federation(embedded_clip, data_of(embedded_clip, method, cache), method, CONFIG)
    federation.run()
    seen: dict[int, int] = {}  # client -> experts in its last participation
    for record in log.records:
        before = list(seen)  # an entry in the pool is what makes a client's experts
        for client in record.cohort:
            seen[client] = min(2, len(before) - (client in before)) if client in before else 0
        # One that never took part needs the global prompt; one whose gate was trained, its experts of now.
        others = min(2, len(seen) - 1)
        expected = sum(PROMPT for client in range(4) if client not in seen)
        expected += sum(others * PROMPT for client, experts in seen.items() if experts)
        assert record.bytes["evaluate_down"] == expected


def test_bytes_hold_neither_expert_ids_nor_exceptions() -> None:
    job = TrainJob(3, 7, 5, Downlink({"prompt": torch.ones(2, 3)}, {"prompt": torch.zeros(1, 2, 3)}, expert_ids=(1,)))
    read = from_bytes(TrainJob, to_bytes(job))
    assert read.downlink.expert_ids == ()
    assert (read.client_id, read.round, read.version, read.attempt) == (3, 7, 5, 0)
    assert torch.equal(read.downlink.parameters["prompt"], torch.ones(2, 3))
    assert torch.equal(read.downlink.experts["prompt"], torch.zeros(1, 2, 3))
    assert read.downlink.extras == {}
    failed = from_bytes(Failed, to_bytes(Failed("why", "where", 1.5, ValueError("x"))))
    assert failed == Failed("why", "where", 1.5, None)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff" * 16,
        (2**60).to_bytes(8, "little") + b"{}",
        to_bytes(Failed("why", "where")),  # another record
        to_bytes(Scored(1, 2, 3))[:-3],
        b"\x80\x04cos\nsystem\n.",  # a pickle
    ],
    ids=["empty", "noise", "huge header", "another record", "cut", "pickle"],
)
def test_other_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="the message is no Trained"):
        from_bytes(Trained, message)


def test_an_update_crosses_whole() -> None:
    update = Update(2, {"gate.query.weight": torch.arange(6.0).reshape(2, 3)}, 40, {"norm": 0.5})
    read = from_bytes(Trained, to_bytes(Trained(update, 0.25, 1.0, 0.125)))
    assert torch.equal(read.update.parameters["gate.query.weight"], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    assert replace(read, update=replace(read.update, parameters={})) == Trained(
        Update(2, {}, 40, {"norm": 0.5}), 0.25, 1.0, 0.125
    )
    assert json.loads(json.dumps(dict(read.update.metrics))) == {"norm": 0.5}
