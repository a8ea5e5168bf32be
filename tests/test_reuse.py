"""What evaluation does not compute twice: attention weights within a batch, and clients of whom nothing has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from federation_helpers import build_federation, results, work_of
from torch import Tensor

from fedmoe.client.score_cache import ScoreCache
from fedmoe.client.work import ClientWork
from fedmoe.config import FeatureConfig, FederationConfig, RuntimeConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.data.subset import SubsetConfig
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import Method, PFedMoAP, PromptFLFT
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.gating import AttentionGate
from fedmoe.protocol.records import Downlink, RoundContext, Scored, ScoreJob

CONFIG = FederationConfig(clients=5, participation=0.4, rounds=2, local_epochs=1, batch_size=32)
ALONE = PFedMoAP(gate="none")  # who has trained predicts with its own prompt, all others with the global one


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    features = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    digits = Digits(subset=SubsetConfig(train=120, test=60))
    return prepare(digits, Dirichlet(0.5, 5), embedded_clip, CONFIG, features, seed=0)


@pytest.mark.parametrize(("method", "repeated"), [(ALONE, False), (PromptFLFT(), True)])
def test_clients_that_would_use_the_same_are_not_scored_again(
    embedded_clip: FrozenCLIP, data: FederatedData, method: Method, repeated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[int, int]] = []
    plainly = ClientWork.score

    def watched(self: ClientWork, job: ScoreJob, state: Any) -> Scored:
        scored.append((job.round, job.client_id))
        return plainly(self, job, state)

    monkeypatch.setattr(ClientWork, "score", watched)
    found = []
    for limit in (0, 64):
        scored.clear()
        runtime = RuntimeConfig(score_cache_mib=limit)
        federation, log = build_federation(embedded_clip, data, method, CONFIG, runtime=runtime)
        federation.run()
        found.append((results(log), len(scored)))
        if limit and not repeated:  # first the cohort, and all who have not trained yet
            first, second = (set(record.cohort) for record in log.records[1:])
            again = second | (set(range(5)) - first)
            assert scored[10:] == [(2, i) for i in sorted(again)]
            assert len(again) < 5
    (all_results, everyone), (some_results, fewer) = found
    assert some_results == all_results
    assert everyone == 5 * 3
    assert (fewer == everyone) if repeated else (fewer < everyone)


def test_a_restored_state_is_scored_anew(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """Its versions are those of another run with other values."""
    runtime, runs = RuntimeConfig(), []
    for seed in (5, 6):
        runs.append(build_federation(embedded_clip, data, ALONE, CONFIG, seed=seed, runtime=runtime))
        runs[-1][0].run()
    one, other = runs[0][0], runs[1][0]
    expected = [client.accuracy for client in runs[1][1].evaluations[-1].clients]
    one.restore(other.state)
    assert [client.accuracy for client in one.evaluate(RoundContext(2, (), 6)).clients] == expected
    assert work_of(one) is not work_of(other)


def test_scores_in_the_cache_have_a_limit() -> None:
    cache, asked = ScoreCache(1), list[int]()

    def score(client: int, value: float = 0.0, version: int = 0) -> None:
        def computed() -> Scored:
            asked.append(client)
            return Scored(client, 1, 2, {"confusion": torch.zeros(300, 200)})  # 240 kB: four of them in a MiB

        cache(ScoreJob(client, 1, version, Downlink({"prompt": torch.tensor([value])})), computed)

    for client in (0, 1, 2, 3, 0, 4, 0, 1):  # 4 pushes 1 out, which was used longest ago
        score(client)
    assert asked == [0, 1, 2, 3, 4, 1]
    score(0, value=1.0)
    score(0, value=1.0)
    score(0, value=1.0, version=2)
    assert asked[6:] == [0, 0]


def test_logits_and_analysis_share_the_weights(
    embedded_clip: FrozenCLIP, data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[int] = []
    plainly = AttentionGate._weigh

    def watched(self: AttentionGate, image: Tensor, text: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            shapes.append(len(text))
        return plainly(self, image, text)

    monkeypatch.setattr(AttentionGate, "_weigh", watched)
    config = replace(CONFIG, participation=1.0, rounds=2)
    federation, log = build_federation(embedded_clip, data, PFedMoAP(2), config)
    federation.run()
    assert shapes == [3, 1] * 5  # of each client in round 2: the weights, and those of the local expert alone
    monkeypatch.setattr(AttentionGate, "_shared", property(lambda self: None, lambda self, value: None), raising=False)
    again, log_again = build_federation(embedded_clip, data, PFedMoAP(2), config)
    again.run()
    assert shapes[10:] == [3, 3, 1] * 5
    assert results(log_again) == results(log)
