"""The digits, the data set contract, and the data of clients in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from sklearn.datasets import load_digits

from fedmoe.data import ClientIndices, DataSet, Digits, Partition, Split
from fedmoe.data.base import RawData, check_dataset
from fedmoe.errors import UserError
from fedmoe.features.client_data import FeatureBatches, FederatedData

# Class counts of the data set, as its description in the UCI repository gives them.
DIGIT_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


class Toy(DataSet):
    """Given labels, images of one colour each, and domains where they are given."""

    name = "toy"

    def __init__(self, train, test, class_names=("a", "b", "c"), train_domains=None, domain_names=()) -> None:
        def split(labels, domains=None):
            return Split(np.array(labels), lambda i: Image.new("RGB", (4, 4), (i, i, i)), domains)

        self._given = RawData(class_names, domain_names, split(train, train_domains), split(test))

    def _read(self) -> RawData:
        return self._given

    def _source_key(self) -> str:
        return "toy"


def test_digits_are_all_there_and_stratified():
    data = Digits()
    counts = [np.bincount(split.labels, minlength=10) for split in (data.train, data.test)]
    assert (counts[0] + counts[1]).tolist() == DIGIT_COUNTS
    assert counts[1].tolist() == [round(0.3 * count) for count in DIGIT_COUNTS]
    assert data.class_names[3] == "three" and data.template == "a photo of the digit {class}."


def test_digits_split_is_a_cover_with_the_right_labels():
    """At 8 x 8 nothing is interpolated, so the images can be counted against scikit-learn's own."""
    data, raw = Digits(size=8), load_digits()
    found = Counter(
        (np.asarray(split.image(i).convert("L")).tobytes(), int(split.labels[i]))
        for split in (data.train, data.test)
        for i in range(len(split))
    )
    expected = Counter(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(raw.images, raw.target, strict=True)
    )
    assert found == expected


def test_digit_images_are_white_on_black():
    image = Digits(size=48).train.image(0)
    pixels = np.asarray(image)
    assert image.mode == "RGB" and pixels.shape == (48, 48, 3) and pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    assert pixels[0, 0, 0] == 0 and pixels.max() > 200


@pytest.mark.parametrize("index", [0, 1, 2])
def test_digits_are_enlarged_by_the_bicubic_filter(index):
    """Against torch's bicubic filter, which with antialias has Pillow's coefficient.

    Pillow filters rows, rounds to 8 bits, then filters columns; equal up to one grey value of rounding.
    """
    image = torch.tensor(np.asarray(Digits(size=8).train.image(index))[..., 0], dtype=torch.float64)[None, None]
    for size in ((8, 48), (48, 48)):
        image = torch.nn.functional.interpolate(image, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
    found = torch.tensor(np.asarray(Digits(size=48).train.image(index))[..., 0], dtype=torch.float64)
    assert (found - image[0, 0]).abs().max() <= 1


def test_digits_split_depends_on_its_seed_alone():
    assert np.array_equal(Digits(seed=1).train.labels, Digits(seed=1, size=64).train.labels)
    assert not np.array_equal(Digits(seed=1).train.labels, Digits(seed=2).train.labels)


def test_digits_cache_key_names_what_decides_the_images():
    keys = [made.cache_key() for made in (Digits(), Digits(0.2), Digits(0.3, 48), Digits(0.3, 32, 1))]
    assert len(set(keys)) == 4
    assert Digits().cache_key() == keys[0]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"test_fraction": 0.0}, "data.test_fraction"),
        ({"test_fraction": 1.0}, "data.test_fraction"),
        ({"size": 7}, "data.size"),
    ],
)
def test_digits_settings_are_checked(arguments, key):
    with pytest.raises(UserError, match=rf"^{key} is .*; valid is .*\.$"):
        Digits(**arguments)


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_both_parts_have_every_class_at_any_fraction(fraction):
    data = Digits(test_fraction=fraction)
    assert set(data.train.labels) == set(data.test.labels) == set(range(10))


def test_classes_are_built_from_settings_by_short_name():
    parser = ArgumentParser()
    parser.add_argument("--data", type=DataSet)
    parser.add_argument("--partition", type=Partition)
    settings = parser.parse_object(
        {
            "data": {"class_path": "Digits", "init_args": {"size": 16}},
            "partition": {"class_path": "Dirichlet", "init_args": {"alpha": 0.1}},
        }
    )
    built = parser.instantiate(settings)
    assert built.data.size == 16 and built.data.test_fraction == 0.3
    assert built.partition.alpha == 0.1 and built.partition.min_size == 10


NO_IMAGE: Any = lambda i: None  # noqa: E731


@pytest.mark.parametrize(
    ("labels", "domains"), [([[0, 1]], None), ([0.5, 1.0], None), ([0, 1], [0]), ([0, 1], [0.0, 1.0])]
)
def test_a_split_refuses_what_is_not_a_vector_of_integers(labels, domains):
    with pytest.raises(ValueError):
        Split(np.array(labels), NO_IMAGE, None if domains is None else np.array(domains))


def test_a_split_stores_int64():
    split = Split(np.array([1, 0], dtype=np.uint8), NO_IMAGE, np.array([0, 0], dtype=np.int32))
    assert split.domains is not None
    assert split.labels.dtype == split.domains.dtype == np.int64 and len(split) == 2
    assert len(Split(np.array([]), NO_IMAGE)) == 0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            Toy([0, 3], [0]),
            "split 'train', has the label 3 (example 1, 1 such in all), but there are 3 class names; valid is 0 to 2.",
        ),
        (Toy([0, 1], [0, -1, -1]), "split 'test', has the label -1 (example 1, 2 such in all)"),
        (Toy([], [0]), "has no training example"),
        (Toy([0], [0], ("x", "y", "x")), "several classes of the name 'x'"),
        (Toy([0, 1], [0], train_domains=np.array([0, 2]), domain_names=("p", "q")), "has the domain index 2"),
        (Toy([0], [0], train_domains=np.array([0])), "there are 0 domain names; valid is none."),
    ],
)
def test_labels_and_names_are_checked(data, sentence):
    with pytest.raises(UserError) as error:
        check_dataset(data)
    assert sentence in str(error.value)


def indices(train, test):
    return ClientIndices(np.array(train, dtype=np.int64), np.array(test, dtype=np.int64))


def features(count, tag):
    """Feature i is (tag, i), so that it can be recognized."""
    return torch.stack([torch.full((count,), float(tag)), torch.arange(count).float()], dim=1)


@pytest.fixture
def data():
    toy = Toy([2, 0, 1, 1, 0], [1, 0, 2])
    return FederatedData(toy, [indices([1, 4], [2]), indices([0, 2, 3], [])], features(5, 1), features(3, 2))


def test_clients_own_their_examples(data):
    first, second = data.client(0), data.client(1)
    assert first.train_features.tolist() == [[1, 1], [1, 4]] and first.train_labels.tolist() == [0, 0]
    assert first.test_features.tolist() == [[2, 2]] and first.test_labels.tolist() == [2]
    assert second.train_features.tolist() == [[1, 0], [1, 2], [1, 3]] and second.train_labels.tolist() == [2, 1, 1]
    assert second.test_features.shape == (0, 2) and second.test_labels.shape == (0,)
    assert first.train_features.dtype == torch.float32 and first.train_labels.dtype == torch.int64
    assert (data.num_clients, data.num_classes, data.feature_dim, data.name) == (2, 3, 2, "toy")
    assert (first.client_id, second.client_id, first.domain) == (0, 1, None)


def test_a_client_that_does_not_exist(data):
    for client_id in (-1, 2):
        with pytest.raises(IndexError):
            data.client(client_id)


def test_taking_a_client_copies_nothing(data):
    assert data.client(0).train_features.data_ptr() == data.client(0).train_features.data_ptr()


def test_summary_is_that_of_the_partition(data):
    assert data.summary() == {
        "class_names": ["a", "b", "c"],
        "counts_train": [[2, 0, 0], [0, 2, 1]],
        "counts_test": [[0, 0, 1], [0, 0, 0]],
        "domains": None,
    }


def test_clients_carry_the_name_of_their_domain():
    toy = Toy([0, 1, 2], [0], train_domains=np.array([1, 0, 0]), domain_names=("photo", "sketch"))
    clients = [ClientIndices(np.array([0]), np.array([0]), 1), ClientIndices(np.array([1, 2]), np.array([], int), 0)]
    data = FederatedData(toy, clients, features(3, 1), features(1, 2))
    assert [data.client(i).domain for i in (0, 1)] == ["sketch", "photo"]
    assert data.summary()["domains"] == ["sketch", "photo"]


def test_a_client_without_training_examples_is_refused():
    with pytest.raises(UserError, match="Client 1 has no training examples"):
        FederatedData(Toy([0], [0]), [indices([0], []), indices([], [0])], features(1, 1), features(1, 2))


def test_features_must_fit_the_splits():
    with pytest.raises(ValueError):
        FederatedData(Toy([0, 1], [0]), [indices([0], [])], features(3, 1), features(1, 2))


def drain(batches):
    return [labels.tolist() for _, labels in batches]


def test_batches_in_order_keep_the_smaller_last_one():
    batches = FeatureBatches(features(7, 0), torch.arange(7), 3)
    assert len(batches) == 3 and not isinstance(batches, list)
    assert drain(batches) == drain(batches) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("count", "size", "number"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_number_of_batches(count, size, number, shuffled):
    generator = torch.Generator().manual_seed(0) if shuffled else None
    batches = FeatureBatches(features(count, 0), torch.arange(count), size, generator)
    assert len(batches) == len(list(batches)) == number


def test_shuffled_batches_pair_features_with_labels_and_differ_by_epoch():
    def epochs():
        batches = FeatureBatches(features(40, 0), torch.arange(40), 16, torch.Generator().manual_seed(5))
        return [[(x[:, 1].long().tolist(), y.tolist()) for x, y in batches] for _ in range(3)]

    state = torch.get_rng_state()
    orders = []
    for epoch in epochs():
        assert [len(y) for _, y in epoch] == [16, 16, 8]
        assert all(x == y for x, y in epoch)
        orders.append([label for _, y in epoch for label in y])
        assert sorted(orders[-1]) == list(range(40))
    assert orders[0] != orders[1] != orders[2] != list(range(40))
    assert epochs() == epochs()
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_refuse_what_does_not_fit():
    with pytest.raises(ValueError):
        FeatureBatches(features(3, 0), torch.arange(4), 2)
    with pytest.raises(ValueError):
        FeatureBatches(features(3, 0), torch.arange(3), 0)
