"""Accuracy per client against scikit-learn, and the summary over clients against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from fedmoe.errors import UserError
from fedmoe.federation.accuracy import PerClientAccuracy, mean_per_domain, summarize


def test_matches_scikit_learn_over_shuffled_batches_of_unequal_size() -> None:
    generator = np.random.default_rng(0)
    metric = PerClientAccuracy(4)
    labels = {client: generator.integers(0, 5, size) for client, size in enumerate((1, 7, 64, 33))}
    logits = {client: generator.normal(size=(len(y), 5)).astype(np.float32) for client, y in labels.items()}
    batches = [(client, i) for client, y in labels.items() for i in range(0, len(y), 8)]
    for j in generator.permutation(len(batches)):
        client, i = batches[j]
        x, y = torch.from_numpy(logits[client][i : i + 8]), torch.from_numpy(labels[client][i : i + 8])
        metric.update(client, x if j % 2 else x.argmax(dim=1), y)  # logits and classes count alike
    expected = [accuracy_score(labels[client], logits[client].argmax(axis=1)) for client in range(4)]
    np.testing.assert_allclose(metric.compute().numpy(), expected, rtol=1e-15)


def test_a_client_without_test_examples_is_nan_and_reset_forgets() -> None:
    metric = PerClientAccuracy(3)
    metric.update(0, torch.tensor([1, 2, 2]), torch.tensor([1, 2, 0]))
    metric.update(2, torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    accuracies = metric.compute()
    assert accuracies[0] == pytest.approx(2 / 3, rel=1e-15)
    assert torch.isnan(accuracies[1]) and torch.isnan(accuracies[2])
    assert metric.correct.tolist() == [2, 0, 0] and metric.total.tolist() == [3, 0, 0]
    metric.reset()
    assert metric.total.tolist() == [0, 0, 0]


def test_counts_stay_integers_when_the_metric_is_cast() -> None:
    metric = PerClientAccuracy(1).half()
    for _ in range(50):  # 3000 is beyond what float16 counts exactly
        metric.update(0, torch.zeros(60, dtype=torch.int64), torch.zeros(60, dtype=torch.int64))
    metric.update(0, torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert metric.total.dtype == torch.int64
    assert metric.compute().item() == pytest.approx(3000 / 3001, rel=1e-15)


@pytest.mark.parametrize(
    ("client", "predictions", "labels"),
    [(2, [1], [1]), (-1, [1], [1]), (0, [1, 2], [1]), (0, [[[0.5]]], [[1]])],
)
def test_wrong_clients_and_shapes_are_refused(client: int, predictions: list, labels: list) -> None:
    with pytest.raises(ValueError, match="valid is"):
        PerClientAccuracy(2).update(client, torch.tensor(predictions), torch.tensor(labels))


def test_summary_by_hand() -> None:
    # 50, 70, 90 %: mean 70; deviations -20, 0, 20; population variance 800 / 3 (a sample's would be 400)
    summary = summarize([0.9, float("nan"), 0.5, 0.7])
    assert summary.keys() == {"mean", "std", "min", "max", "worst_decile"}
    assert summary["mean"] == pytest.approx(70)
    assert summary["std"] == pytest.approx((800 / 3) ** 0.5)
    assert (summary["min"], summary["max"]) == (pytest.approx(50), pytest.approx(90))
    assert summary["worst_decile"] == pytest.approx(50)  # a tenth of three clients is at least one


@pytest.mark.parametrize(("clients", "worst"), [(1, 0.0), (19, 0.0), (20, 0.5), (29, 0.5), (30, 1.0), (100, 4.5)])
def test_worst_decile_is_a_tenth_of_the_clients(clients: int, worst: float) -> None:
    accuracies = torch.arange(clients).flip(0) / 100  # 0 %, 1 %, 2 %, ...
    assert summarize(accuracies)["worst_decile"] == pytest.approx(worst)


def test_the_mean_over_clients_is_neither_that_over_domains_nor_that_over_images() -> None:
    metric = PerClientAccuracy(3)
    ones, zeros = torch.ones(90, dtype=torch.int64), torch.zeros(10, dtype=torch.int64)
    metric.update(0, ones, ones)  # 90 of 90
    metric.update(1, zeros, zeros + 1)  # 0 of 10
    metric.update(2, torch.tensor([0, 1]), torch.tensor([0, 0]))  # 1 of 2
    accuracies = metric.compute()
    domains = mean_per_domain(accuracies, ["photo", "sketch", "sketch"])
    assert domains == {"photo": pytest.approx(100), "sketch": pytest.approx(25)}
    assert summarize(accuracies)["mean"] == pytest.approx(50)  # not 62.5 over domains, not 89.2 over images


def test_domains_without_test_examples_or_name_are_left_out() -> None:
    values = [0.25, float("nan"), 1.0, 0.75]
    assert mean_per_domain(values, ["b", "a", None, "b"]) == {"b": pytest.approx(50)}
    with pytest.raises(ValueError, match="4 accuracies but 1 domains"):
        mean_per_domain(values, ["b"])


def test_summary_refuses_no_client_and_percent() -> None:
    with pytest.raises(UserError, match="No client has test examples"):
        summarize([float("nan")])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        summarize([83.1, 0.5])
