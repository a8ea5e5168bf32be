"""Methods of a user's own, as the README describes them: what each hook is for, used for real and checked by hand."""

from __future__ import annotations

import csv
import importlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from federation_helpers import build_federation, differences
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedmoe.cli import main
from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.restore import read_state
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.functional import local_logits
from fedmoe.protocol.client import Client
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed
from fedmoe.protocol.records import RoundContext, Update
from fedmoe.runs.checkpoint import StateStore
from fedmoe.server.state import Known, ServerState

ROOT = Path(__file__).parents[1]
CONFIG = FederationConfig(clients=4, participation=0.5, rounds=2, local_epochs=1)
DIGITS = Digits(subset=SubsetConfig(train=80, test=60))


class Adapter(PromptFL):
    """PromptFL with a linear map on the image features, which starts as the identity."""

    label = "adapter"
    scope = Scope.SHARED

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        def start(generator: torch.Generator) -> nn.Module:
            layer = nn.Linear(model.feature_dim, model.feature_dim, bias=False)
            nn.init.eye_(layer.weight)
            return layer

        adapter = Parameter("adapter", self.scope, start, rate="gating_lr")
        return [Parameter("prompt", Scope.SHARED, fixed(model.prompt)), adapter]

    def logits(self, client: Any, image_features: Tensor) -> Tensor:
        adapted = normalize(client.adapter(image_features), dim=-1)
        return local_logits(adapted, client.text_features(), client.logit_scale)


class OwnAdapter(Adapter):
    scope = Scope.PERSONAL


class Alternating(PromptFL):
    """A cohort, an optimizer and metrics of its own: the clients 0 and 1 in odd rounds, 2 and 3 in even ones."""

    def cohort(self, server: ServerState, federation: FederationConfig, seed: int, round: int) -> tuple[int, ...]:
        return (0, 1) if round % 2 else (2, 3)

    def optimizer(self, groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(groups)

    def metrics(self, client: Client) -> Mapping[str, float]:
        return {"number": 10.0 + client.client_id}

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        return {"norm": image_features.norm(dim=1).mean()}


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(DIGITS, Dirichlet(0.5, 5), embedded_clip, CONFIG, cache, seed=0)


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with every module that CONTRIBUTING.md and the page of the site show."""
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "docs/extending.md").read_text()
    for name, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", text, re.S):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_shared_adapter_is_trained_sent_and_averaged(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, log = build_federation(embedded_clip, data, Adapter(), CONFIG)
    size = embedded_clip.feature_dim
    start = federation.server.shared["adapter.weight"]
    assert torch.equal(start, torch.eye(size))
    federation.run()
    assert set(federation.server.shared) == {"prompt", "adapter.weight"}
    assert not torch.equal(federation.server.shared["adapter.weight"], start)
    each = (16 * 64 + size * size) * 4  # bytes of prompt and adapter
    assert [record.bytes["up"] for record in log.records[1:]] == [2 * each, 2 * each]
    assert {record.bytes["evaluate_down"] for record in log.records} == {4 * each}
    assert federation.state.clients and not any(own.parameters for own in federation.state.clients.values())


def test_a_personal_adapter_stays(embedded_clip: FrozenCLIP, data: FederatedData, tmp_path: Path) -> None:
    federation, log = build_federation(embedded_clip, data, OwnAdapter(), CONFIG)
    federation.run()
    assert set(federation.server.shared) == {"prompt"}
    assert [record.bytes["up"] for record in log.records[1:]] == [2 * 16 * 64 * 4] * 2
    kept = {i: own.parameters["adapter.weight"] for i, own in federation.state.clients.items()}
    assert sorted(kept) == sorted({client for record in log.records for client in record.cohort})
    assert not any(torch.equal(weight, torch.eye(embedded_clip.feature_dim)) for weight in kept.values())
    store = StateStore(tmp_path)
    store.save(2, *federation.state.flatten())
    read = read_state(store)
    assert read is not None
    assert differences(federation.state, read) == []


def test_server_momentum_by_hand(embedded_clip: FrozenCLIP, data: FederatedData, examples: Path) -> None:
    method = importlib.import_module("momentum").ServerMomentum(beta=0.5)
    server = ServerState({"prompt": torch.tensor([[4.0, 8.0]])})
    updates = [
        Update(0, {"prompt": torch.tensor([[0.0, 8.0]])}, 1),
        Update(1, {"prompt": torch.tensor([[4.0, 0.0]])}, 3),
    ]
    method.aggregate(server, updates, RoundContext(1, (0, 1), 0))
    # mean = (1 * 0 + 3 * 4, 1 * 8 + 3 * 0) / 4 = (3, 2); v = (4 - 3, 8 - 2) = (1, 6); w = (3, 2)
    assert server.shared["prompt"].tolist() == [[3.0, 2.0]]
    method.aggregate(server, updates, RoundContext(2, (0, 1), 0))
    # v = 0.5 (1, 6) + (3 - 3, 2 - 2) = (0.5, 3); w = (2.5, -1)
    assert server.shared["prompt"].tolist() == [[2.5, -1.0]]
    federation, _ = build_federation(embedded_clip, data, method, CONFIG)
    federation.run()
    tensors, _ = federation.state.flatten()
    assert "extras/velocity" in tensors


def test_the_cohort_of_those_that_have_trained_least(
    embedded_clip: FrozenCLIP, data: FederatedData, examples: Path
) -> None:
    method = importlib.import_module("leastseen").LeastSeen()
    federation, log = build_federation(embedded_clip, data, method, replace(CONFIG, rounds=4))
    federation.run()
    cohorts = [record.cohort for record in log.records[1:]]
    assert [len(cohort) for cohort in cohorts] == [2, 2, 2, 2]
    for pair in (cohorts[:2], cohorts[2:]):  # two rounds of two reach all four
        assert sorted(pair[0] + pair[1]) == [0, 1, 2, 3]
    again = ServerState({}, clients={0: Known(3), 2: Known(1), 3: Known(2)})
    assert method.cohort(again, CONFIG, 0, 9) == (1, 2)


def test_own_cohort_optimizer_and_metrics(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, log = build_federation(embedded_clip, data, Alternating(), CONFIG)
    federation.run()
    assert [record.cohort for record in log.records] == [[], [0, 1], [2, 3]]
    assert isinstance(federation.fleet, LocalFleet)
    assert isinstance(federation.fleet.work.module.configure_optimizers(), torch.optim.Adagrad)
    sizes = [federation.fleet.about(client).train_examples for client in range(4)]
    for record, (one, other) in zip(log.records[1:], [(0, 1), (2, 3)], strict=True):
        weighted = ((10 + one) * sizes[one] + (10 + other) * sizes[other]) / (sizes[one] + sizes[other])
        assert record.metrics["number"] == pytest.approx(weighted)
        assert record.metrics["norm"] == pytest.approx(1.0, abs=1e-5)  # features are l2-normalized


def test_metrics_of_a_method_reach_every_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(
        "from fedmoe.methods import PromptFL\n"
        "class Counting(PromptFL):\n"
        "    label = 'counting'\n"
        "    def metrics(self, client):\n"
        "        return {'clients': 1.0 + client.client_id}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small = ["--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--data.subset.train=60"]
    where = [f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={tmp_path / 'cache'}"]
    embedded = [f"--config={ROOT / 'configs/embedded.yaml'}", "--method=own.Counting", "--partition=IID"]
    assert main(["fit", *embedded, *small, *where]) == 0
    last = json.loads((tmp_path / "run/rounds.jsonl").read_text().splitlines()[-1])
    assert last["metrics"] == {"clients": pytest.approx(2.0)}  # 1, 2 and 3 on 20 examples each
    rows = list(csv.DictReader((tmp_path / "run/rounds.csv").open()))
    assert float(rows[-1]["method/clients"]) == pytest.approx(2.0)


def test_the_examples_of_a_method_a_data_set_and_a_partition_run(examples: Path) -> None:
    small = ["--federation.clients=4", "--federation.rounds=1", "--federation.local_epochs=1", "--data.count=20"]
    own = ["--method=smoothed.Smoothed", "--data=shades.Shades", "--partition=mypartition.RoundRobin"]
    where = [f"--output.dir={examples}", "--output.name=run", f"--features.cache_dir={examples / 'cache'}"]
    args = ["--config=fedmoe:embedded", *own, "--method.smoothing=0.25", *small, *where]
    assert main(["fit", *args, "--quiet"]) == 0
    settings = yaml.safe_load((examples / "run/config.yaml").read_text())
    assert settings["method"] == {"class_path": "smoothed.Smoothed", "init_args": {"smoothing": 0.25}}
    # Example i of 20 has class i mod 2 and belongs to client i mod 4: 5 examples of one class on each client.
    counts = json.loads((examples / "run/partition.json").read_text())["counts_train"]
    assert counts == [[5, 0], [0, 5], [5, 0], [0, 5]]
    last = json.loads((examples / "run/rounds.jsonl").read_text().splitlines()[-1])
    assert (last["round"], last["failed"]) == (1, {})


def test_the_example_of_a_loss_by_hand(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = importlib.import_module("smoothed").Smoothed(smoothing=0.25)
    monkeypatch.setattr(method, "logits", lambda client, features: features)
    # Logits (0, log 3): probabilities 1/4 and 3/4; the target of class 1 is (1/8, 7/8).
    found = method.loss(None, torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))
    assert found.item() == pytest.approx(math.log(4) / 8 + math.log(4 / 3) * 7 / 8)
