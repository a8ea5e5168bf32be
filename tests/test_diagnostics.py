"""What an evaluation says of the gate, and of classes that only other clients hold, on real runs.

Expected values are computed here from the clients' states, image by image, with torch's and numpy's own functions.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_helpers import Log, build_federation, work_of
from scipy.stats import entropy

from fedmoe.cli import main
from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import Method, PFedMoAP, PromptFL
from fedmoe.protocol.records import RoundContext, ScoreJob
from fedmoe.runs.records import read_clients, read_rounds

CLIENTS = 4
CONFIG = FederationConfig(clients=CLIENTS, participation=1.0, rounds=2, local_epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def data(embedded_clip: Any, cache: FeatureConfig) -> FederatedData:
    return prepare(Digits(), Dirichlet(0.1, 5), embedded_clip, CONFIG, cache, seed=0)


def run(clip: Any, data: FederatedData, method: Method, config: FederationConfig = CONFIG) -> tuple[Federation, Log]:
    federation, log = build_federation(clip, data, method, config)
    federation.run()
    return federation, log


def loaded(federation: Federation, client_id: int) -> Any:
    """The module as the client that predicts after the last round."""
    work, server = work_of(federation), federation.server
    context = RoundContext(federation.rounds_done, (), 5)
    downlink = federation.method.deploy(server, client_id, context)
    state = federation.fleet.states(server.clients)[client_id]
    work.ready(ScoreJob(client_id, context.round, server.known(client_id).version, downlink), state)
    return work.module


@pytest.mark.parametrize("settings", [{}, {"gate": "linear"}, {"attention": "uniform"}])
def test_a_gates_numbers_are_those_of_its_weights(
    embedded_clip: Any, data: FederatedData, settings: dict[str, Any]
) -> None:
    federation, log = run(embedded_clip, data, PFedMoAP(**{"num_experts": 2, "heads": 4, "lmbda": 0.5, **settings}))
    scores = log.evaluations[-1].clients
    expected = []
    for client_id, score in enumerate(scores):
        module, own = loaded(federation, client_id), data.client(client_id)
        with torch.no_grad():
            texts = torch.cat([module.text_features()[None], module.expert_text])  # [K + 1, C, d]
            weights = module.gate.attention(own.test_features, texts).double().numpy()  # [b, C, h, K + 1]
            alone = module.gate(own.test_features, texts[:1].expand_as(texts))  # [b, C, g], of copies of the local one
            similarity = torch.einsum("bg,bcg->bc", module.gate.narrow(own.test_features), alone)
            right = ((similarity + 0.5 * own.test_features @ texts[0].T).argmax(1) == own.test_labels).sum().item()
        each = [np.mean([entropy(w) / np.log(3) for w in image.reshape(-1, 3)]) for image in weights]
        assert score.gate is not None
        expected.append(
            {
                "entropy": np.mean(each),
                "entropy_p10": np.percentile(each, 10),
                "top_share": weights.max(axis=-1).mean(),
                "expert_contribution": 100 * (score.correct - right) / score.total,
            }
        )
        assert score.gate == pytest.approx(expected[-1], rel=1e-5)
    mean = {name: np.mean([numbers[name] for numbers in expected]) for name in expected[0]}
    assert log.records[-1].gate == pytest.approx(mean, rel=1e-5, abs=1e-9)
    assert [record.gate for record in log.records[:2]] == [None, None]  # nobody has a gate yet
    if settings == {"attention": "uniform"}:
        assert mean["entropy"] == pytest.approx(1) and mean["top_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", [PromptFL(), PFedMoAP(num_experts=0), PFedMoAP(num_experts=2, gate="none")])
def test_without_a_gate_over_experts_there_are_no_such_numbers(
    embedded_clip: Any, data: FederatedData, method: Method
) -> None:
    _, log = run(embedded_clip, data, method)
    assert {record.gate for record in log.records} == {None}
    assert {score.gate for evaluation in log.evaluations for score in evaluation.clients} == {None}
    assert {record.accuracy_others for record in log.records} == {None}


def others_of(data: FederatedData, client_id: int, members: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Test images of these clients whose class the client has no training images of, one by one."""
    held = set(data.client(client_id).train_labels.tolist())
    found = [
        (image, label)
        for member in members
        for image, label in zip(data.client(member).test_features, data.client(member).test_labels, strict=True)
        if label.item() not in held
    ]
    assert found, "a client that holds all classes would show nothing"
    return torch.stack([image for image, _ in found]), torch.stack([label for _, label in found])


@pytest.mark.parametrize("domains", [None, ["a", "b", "a", "b"]])
def test_accuracy_on_classes_that_only_others_hold(
    embedded_clip: Any, cache: FeatureConfig, domains: list[str] | None
) -> None:
    data = prepare(Digits(), Dirichlet(0.1, 5), embedded_clip, CONFIG, cache, seed=0)
    if domains is not None:
        data._domains = list(domains)
    config = replace(CONFIG, evaluate_others=True)
    federation, log = run(embedded_clip, data, PFedMoAP(num_experts=2), config)
    shares = []
    for client_id, score in enumerate(log.evaluations[-1].clients):
        members = [i for i in range(CLIENTS) if domains is None or domains[i] == domains[client_id]]
        features, labels = others_of(data, client_id, members)
        with torch.no_grad():
            right = (loaded(federation, client_id)(features).argmax(1) == labels).float().mean().item()
        assert score.accuracy_others == pytest.approx(100 * right, abs=1e-4)
        shares.append(100 * right)
    found = log.records[-1].accuracy_others
    assert found is not None
    assert (found["mean"], found["std"]) == pytest.approx((np.mean(shares), np.std(shares)), abs=1e-4)


def test_the_generalization_gap_is_that_of_each_client(embedded_clip: Any, data: FederatedData) -> None:
    federation, log = run(embedded_clip, data, PFedMoAP(num_experts=2), replace(CONFIG, evaluate_train=True))
    train, test = [], []
    for client_id in range(CLIENTS):
        module, own = loaded(federation, client_id), data.client(client_id)
        with torch.no_grad():
            train.append((module(own.train_features).argmax(1) == own.train_labels).double().mean().item())
            test.append((module(own.test_features).argmax(1) == own.test_labels).double().mean().item())
    assert min(train) < 1 and train != test
    expected = {"train_accuracy": 100 * np.mean(train), "gap": 100 * np.mean(np.subtract(train, test))}
    assert log.records[-1].generalization == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (replace(CONFIG, evaluate_others=True), "accuracy_others"),
        (replace(CONFIG, evaluate_train=True), "generalization"),
    ],
)
def test_the_option_changes_nothing_else(
    embedded_clip: Any, data: FederatedData, config: FederationConfig, name: str
) -> None:
    _, log = run(embedded_clip, data, PFedMoAP(num_experts=2))
    _, asked = run(embedded_clip, data, PFedMoAP(num_experts=2), config)
    for one, other in zip(log.records, asked.records, strict=True):
        assert getattr(one, name) is None and getattr(other, name) is not None
        assert one.to_json() == {**other.to_json(), name: None, "seconds": one.seconds}


def test_a_client_that_holds_every_class_has_no_others(embedded_clip: Any, cache: FeatureConfig) -> None:
    small = Digits(subset=SubsetConfig(classes=2))
    data = prepare(small, Dirichlet(100.0, 5), embedded_clip, CONFIG, cache, seed=0)
    assert [len(data.others_test(i)[1]) for i in range(CLIENTS)] == [0] * CLIENTS
    _, log = run(embedded_clip, data, PromptFL(), replace(CONFIG, rounds=1, evaluate_others=True))
    assert {record.accuracy_others for record in log.records} == {None}
    assert {score.accuracy_others for evaluation in log.evaluations for score in evaluation.clients} == {None}


def test_the_numbers_reach_the_files_the_table_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    options = ["--federation.clients=4", "--federation.rounds=2", "--federation.local_epochs=1", "--output.name=run"]
    options += ["--partition={class_path: Dirichlet, init_args: {alpha: 0.1, min_size: 5}}", "--method=PFedMoAP"]
    options += ["--method.num_experts=2", "--federation.evaluate_others=true", "--data.subset.train=400"]
    assert main(["fit", f"--config={root / 'configs/embedded.yaml'}", *options, "--features.cache_dir=cache"]) == 0
    folder = tmp_path / "runs/run"
    last = read_rounds(folder)[-1]
    assert last.gate is not None and last.accuracy_others is not None
    rows = list(csv.DictReader((folder / "rounds.csv").open()))
    for name, value in last.gate.items():
        assert float(rows[-1][f"gate/{name}"]) == value
        assert rows[0][f"gate/{name}"] == ""
    assert float(rows[-1]["accuracy_others/mean"]) == last.accuracy_others["mean"]
    scores = read_clients(folder, 4)[2]
    means = {name: np.mean([(score.gate or {})[name] for score in scores.values()]) for name in last.gate}
    assert means == pytest.approx(last.gate)
    written = json.loads((folder / "clients.jsonl").read_text().splitlines()[-1])
    assert written["gate"] == scores[3].gate and written["accuracy_others"] == scores[3].accuracy_others
    capsys.readouterr()
    assert main(["report", str(folder), "--html", str(folder / "page.html")]) == 0
    told = capsys.readouterr().out
    values = [f"{last.accuracy_others['mean']:.2f}", f"{last.gate['entropy']:.4f}", f"{last.gate['top_share']:.4f}"]
    values.append(f"{last.gate['expert_contribution']:+.2f}")
    row = next(line for line in told.splitlines() if line.split()[:1] == ["2"])
    assert row.split()[-4:] == values
    page = (folder / "page.html").read_text()
    assert all(value in page for value in values)
    for word in ("others' classes:", "gate's entropy:", "experts contribute:"):
        assert word in told
