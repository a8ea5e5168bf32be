"""Rounds in which only a part of the clients is evaluated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from federation_helpers import build_federation, differences
from test_line import CONFIG, data_of

from fedmoe.config import FeatureConfig
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.mark.parametrize("asked", ["cohort", 3])
def test_a_part_of_the_clients_is_evaluated_between_the_first_and_the_last_round(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, asked: Any
) -> None:
    data = data_of(embedded_clip, PromptFL(), cache)
    whole, log = build_federation(embedded_clip, data, PromptFL(), CONFIG)
    whole.run()
    part, log_part = build_federation(embedded_clip, data, PromptFL(), replace(CONFIG, evaluate_clients=asked))
    part.run()
    assert differences(whole.state, part.state) == []  # who is evaluated changes no training
    for number, (every, some) in enumerate(zip(log.evaluations, log_part.evaluations, strict=True)):
        chosen = [score for score in some.clients if score.accuracy is not None]
        assert all(score == every.clients[score.client] for score in chosen)
        record = log_part.records[number]
        assert record.accuracy is not None
        if number in (0, CONFIG.rounds):
            assert len(chosen) == 4
            assert "standard_error" not in record.accuracy
            continue
        assert len(chosen) == (3 if asked == 3 else 2)
        assert asked == 3 or [score.client for score in chosen] == record.cohort
        values = [score.accuracy for score in chosen if score.accuracy is not None]
        mean, n = sum(values) / len(values), len(values)
        spread = sum((value - mean) ** 2 for value in values) / (n - 1)
        expected = (spread / n * (1 - n / 4)) ** 0.5
        assert record.accuracy["mean"] == pytest.approx(mean)
        assert record.accuracy["standard_error"] == pytest.approx(expected)
