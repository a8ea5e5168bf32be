"""Accuracy per client against scikit-learn, and the summary over clients against numbers worked out by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from federation_helpers import build_federation
from PIL import Image
from sklearn.metrics import accuracy_score
from torch import Tensor

from fedmoe.client.work import BATCH
from fedmoe.config import FederationConfig
from fedmoe.data.base import DataSet, RawData, Split
from fedmoe.data.partition import ClientIndices
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.accuracy import mean_per_domain, standard_error, summarize
from fedmoe.federation.evaluation import Evaluation
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import ZeroShot
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client
from fedmoe.protocol.records import Downlink, RoundContext, Scored, ScoreJob

NAMES = ("zero", "one", "two", "three", "four")
NOW = RoundContext(0, (), 0)
Examples = tuple[Sequence[Sequence[float]] | np.ndarray, Sequence[int] | np.ndarray]  # logits [n, C], labels [n]


class Given(DataSet):
    """Labels alone: the features are given, and no image is looked at."""

    name = "given"

    def __init__(self, train: Split, test: Split, domains: tuple[str, ...]) -> None:
        super().__init__()
        self._splits, self._names = (train, test), domains

    def _read(self) -> RawData:
        return RawData(NAMES, self._names, *self._splits)

    def _source_key(self) -> str:
        return "given"


class Guess(ZeroShot):
    """Features are logits already."""

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        return {}

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        return image_features


def one_hot(classes: Sequence[int]) -> np.ndarray:
    """Logits [n, C] of which the largest is that of the class."""
    return np.eye(len(NAMES), dtype=np.float32)[np.asarray(classes, dtype=np.int64)]


class Shuffled(LocalFleet):
    """Clients who answer in a random order."""

    def score(self, jobs: Iterable[ScoreJob]) -> Iterator[Scored]:
        answers = list(super().score(jobs))
        random.Random(0).shuffle(answers)
        return iter(answers)


@pytest.fixture
def clients(embedded_clip: FrozenCLIP) -> Callable[..., Federation]:
    """A federation of clients with these test examples, in this order, each with one training example."""

    def build(
        *examples: Examples, domains: Sequence[str] = (), half: bool = False, method: ZeroShot | None = None
    ) -> Federation:
        ends = np.cumsum([0, *(len(labels) for _, labels in examples)])
        names = tuple(dict.fromkeys(domains))
        indices = [
            ClientIndices(np.array([i]), np.arange(ends[i], ends[i + 1]), names.index(domains[i]) if domains else None)
            for i in range(len(examples))
        ]

        def split(labels: np.ndarray, owners: np.ndarray) -> Split:
            place = np.array([names.index(domain) for domain in domains])[owners] if domains else None
            return Split(labels.astype(np.int64), _no_image, place)

        owners = np.repeat(np.arange(len(examples)), np.diff(ends))
        labels = np.concatenate([np.asarray(labels, dtype=np.int64) for _, labels in examples])
        count = len(examples)
        dataset = Given(split(np.zeros(count), np.arange(count)), split(labels, owners), names)
        parts = [np.asarray(logits, dtype=np.float32).reshape(-1, len(NAMES)) for logits, _ in examples]
        features = torch.from_numpy(np.concatenate(parts))
        data = FederatedData(dataset, indices, torch.zeros(count, len(NAMES)), features.half() if half else features)
        config = FederationConfig(clients=count, rounds=1)
        return build_federation(embedded_clip, data, method or Guess(), config, fleet=Shuffled)[0]

    return build


def _no_image(index: int) -> Image.Image:
    raise AssertionError("no image is needed")


def counts(evaluation: Evaluation) -> list[tuple[int, int]]:
    return [(score.correct, score.total) for score in evaluation.clients]


def test_matches_scikit_learn_over_shuffled_clients_and_batches_of_unequal_size(
    clients: Callable[..., Federation],
) -> None:
    generator = np.random.default_rng(0)
    labels = [generator.integers(0, 5, size) for size in (1, 7, BATCH + 64, 33)]
    logits = [generator.normal(size=(len(y), 5)).astype(np.float32) for y in labels]
    found = clients(*zip(logits, labels, strict=True)).evaluate(NOW)
    expected = [accuracy_score(y, x.argmax(axis=1)) for x, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose([score.correct / score.total for score in found.clients], expected, rtol=1e-15)
    percent = [100 * share for share in expected]
    accuracies = [score.accuracy for score in found.clients if score.accuracy is not None]
    np.testing.assert_allclose(accuracies, percent, rtol=1e-15)


def test_a_client_without_test_examples_has_no_accuracy_and_nothing_is_carried_over(
    clients: Callable[..., Federation],
) -> None:
    federation = clients((one_hot([1, 2, 2]), [1, 2, 0]), ([], []), ([], []))
    found = federation.evaluate(NOW)
    assert found.clients[0].accuracy == pytest.approx(100 * 2 / 3, rel=1e-15)
    assert found.clients[1].accuracy is None and found.clients[2].accuracy is None
    assert counts(found) == [(2, 3), (0, 0), (0, 0)]
    assert found.accuracy["mean"] == pytest.approx(100 * 2 / 3)  # over the one that has any
    assert counts(federation.evaluate(NOW)) == [(2, 3), (0, 0), (0, 0)]


def test_counts_stay_integers_where_features_are_halves(clients: Callable[..., Federation]) -> None:
    # 3000 is beyond what float16 counts exactly
    federation = clients((one_hot([0] * 3000 + [1]), [0] * 3001), half=True)
    (score,) = federation.evaluate(NOW).clients
    assert type(score.total) is int and type(score.correct) is int
    assert score.accuracy == pytest.approx(100 * 3000 / 3001, rel=1e-15)


@pytest.mark.parametrize("client", [2, -1])
def test_wrong_clients_are_refused(clients: Callable[..., Federation], client: int) -> None:
    federation = clients((one_hot([1]), [1]), (one_hot([1]), [1]))
    with pytest.raises(IndexError, match=f"client {client} of 2"):
        list(federation.fleet.score([ScoreJob(client, 0, 0, Downlink())]))


@pytest.mark.parametrize("logits", [one_hot([1, 2]), one_hot([1])[:, None]], ids=["two images", "three axes"])
def test_wrong_shapes_are_refused(clients: Callable[..., Federation], logits: np.ndarray) -> None:
    """One test image: valid are logits [1, C]."""

    class Wrong(Guess):
        def logits(self, client: Client, image_features: Tensor) -> Tensor:
            return torch.from_numpy(logits)

    federation = clients((one_hot([1]), [1]), method=Wrong())
    with pytest.raises(ValueError, match="valid is"):
        federation.evaluate(NOW)


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


def test_the_mean_over_clients_is_neither_that_over_domains_nor_that_over_images(
    clients: Callable[..., Federation],
) -> None:
    examples = [(one_hot([1] * 90), [1] * 90), (one_hot([0] * 10), [1] * 10), (one_hot([0, 1]), [0, 0])]
    found = clients(*examples, domains=("photo", "sketch", "sketch")).evaluate(NOW)
    assert counts(found) == [(90, 90), (0, 10), (1, 2)]
    assert found.accuracy_per_domain == {"photo": pytest.approx(100), "sketch": pytest.approx(25)}
    assert found.accuracy["mean"] == pytest.approx(50)  # not 62.5 over domains, not 89.2 over images


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


def test_the_standard_error_is_that_of_sampling_without_replacement() -> None:
    # Of 1, 2, 3, 4, all six samples of two have means 1.5, 2, 2.5, 2.5, 3, 3.5, whose variance is 5 / 12; the estimates
    # from the samples themselves have that mean.
    values = [1.0, 2.0, 3.0, 4.0]
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    estimates = [standard_error(abs(a - b) / 2, 2, 4) ** 2 for a, b in pairs]
    assert math.isclose(math.fsum(estimates) / 6, 5 / 12)
    assert standard_error(1.0, 4, 4) == 0.0
    assert standard_error(0.0, 1, 4) == 0.0
