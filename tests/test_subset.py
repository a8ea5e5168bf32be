"""Limits of a data set: classes, shots, numbers of examples."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image

from fedmoe.data import DataSet, Digits, RawData, Split, SubsetConfig
from fedmoe.data.subset import balanced, few_shot, group_indices
from fedmoe.errors import UserError

labels_and_domains = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=60)


def vectors(pairs, with_domains=True):
    labels = np.array([label for label, _ in pairs], dtype=np.int64)
    return labels, np.array([domain for _, domain in pairs], dtype=np.int64) if with_domains else None


def counted(labels, domains, kept=slice(None)):
    domains = np.zeros_like(labels) if domains is None else domains
    return Counter(zip(labels[kept].tolist(), domains[kept].tolist(), strict=True))


@given(labels_and_domains, st.booleans(), st.integers(1, 9), st.integers(0, 2**40))
def test_k_shots_of_each_class_and_domain(pairs, with_domains, shots, seed):
    labels, domains = vectors(pairs, with_domains)
    kept = few_shot(labels, domains, shots, seed)
    assert kept.tolist() == sorted(set(kept.tolist()))
    everything = counted(labels, domains)
    assert counted(labels, domains, kept) == {key: min(shots, count) for key, count in everything.items()}
    assert set(kept) <= set(few_shot(labels, domains, shots + 1, seed))


@given(labels_and_domains, st.booleans(), st.integers(1, 70), st.integers(0, 2**40))
def test_a_limit_is_kept_as_evenly_as_the_sizes_allow(pairs, with_domains, count, seed):
    """No group could have one more without another having two fewer: a group below the largest one is complete."""
    labels, domains = vectors(pairs, with_domains)
    kept = balanced(labels, domains, count, seed, "train")
    assert len(kept) == min(count, len(labels)) and kept.tolist() == sorted(set(kept.tolist()))
    everything, found = counted(labels, domains), counted(labels, domains, kept)
    most = max(found.values(), default=0)
    assert all(found[key] >= min(size, most - 1) for key, size in everything.items())
    assert set(kept) <= set(balanced(labels, domains, count + 1, seed, "train"))


def test_the_sample_depends_on_its_seed_alone():
    labels = np.repeat(np.arange(5), 40)
    first = few_shot(labels, None, 4, seed=0)
    assert np.array_equal(few_shot(labels, None, 4, seed=0), first)
    assert not np.array_equal(few_shot(labels, None, 4, seed=1), first)


@given(labels_and_domains)
def test_groups_are_ascending_and_cover_all(pairs):
    labels, domains = vectors(pairs)
    groups = group_indices(labels, domains)
    assert sorted(i for members in groups.values() for i in members.tolist()) == list(range(len(labels)))
    for (label, domain), members in groups.items():
        assert (np.diff(members) > 0).all()
        assert (labels[members] == label).all() and (domains[members] == domain).all()


class Colours(DataSet):
    """Example i is an image of one grey value, i; labels go round."""

    name = "colours"

    def __init__(self, classes: int = 4, train: int = 40, test: int = 12, **limits) -> None:
        for key, value in limits.items():
            object.__setattr__(self, key, value)
        parts = [Split(np.arange(n) % classes, Grey(), None, [f"{i}.png" for i in range(n)]) for n in (train, test)]
        self._given = RawData(tuple("abcdefgh"[:classes]), (), *parts)

    def _read(self) -> RawData:
        return self._given

    def _source_key(self) -> str:
        return "colours"


class Grey:
    def __call__(self, i: int) -> Image.Image:
        return Image.new("L", (2, 2), i)


def grey(split: Split) -> list[int]:
    return [int(np.asarray(split.image(i))[0, 0]) for i in range(len(split))]


def test_without_limits_nothing_changes():
    data = Colours()
    assert grey(data.train) == list(range(40)) and grey(data.test) == list(range(12))
    assert data.class_names == ("a", "b", "c", "d") and data.cache_key() == "colours"


def test_images_labels_and_paths_stay_together():
    data = Colours(shots=2, subset=SubsetConfig(classes=3, test=6))
    assert data.class_names == ("a", "b", "c")
    assert np.bincount(data.train.labels).tolist() == [2, 2, 2] == np.bincount(data.test.labels).tolist()
    for split in (data.train, data.test):
        assert [value % 4 for value in grey(split)] == split.labels.tolist()
        assert [f"{value}.png" for value in grey(split)] == split.paths


def test_limits_apply_to_classes_then_shots_then_numbers():
    data = Colours(shots=5, subset=SubsetConfig(classes=2, train=4))
    few = Colours(shots=5, subset=SubsetConfig(classes=2))
    assert np.bincount(few.train.labels).tolist() == [5, 5] and np.bincount(data.train.labels).tolist() == [2, 2]
    assert set(grey(data.train)) <= set(grey(few.train))
    assert set(grey(few.train)) == set(grey(Colours(shots=5).train)) & set(grey(Colours(subset=SubsetConfig(2)).train))


def test_the_cache_key_names_the_examples_that_are_kept():
    limits: list[dict[str, Any]] = [
        {},
        {"shots": 3},
        {"shots": 3, "sample_seed": 1},
        {"shots": 4},
        {"subset": SubsetConfig(classes=3)},
        {"subset": SubsetConfig(train=3)},
        {"subset": SubsetConfig(test=3)},
    ]
    keys = [Colours(**given).cache_key() for given in limits]
    assert len(set(keys)) == len(limits) and keys == [Colours(**given).cache_key() for given in limits]
    assert Colours(shots=1000, subset=SubsetConfig(classes=4, train=1000)).cache_key() == keys[0]


def test_more_classes_than_there_are():
    with pytest.raises(UserError, match=r"^data.subset.classes is 5, but .* 'colours' has 4 classes; valid is null or"):
        Colours(subset=SubsetConfig(classes=5)).train  # noqa: B018


@pytest.mark.parametrize("name", ["classes", "train", "test"])
def test_a_limit_is_at_least_one(name):
    with pytest.raises(UserError, match=rf"^data\.subset\.{name} is 0; valid is null or an integer of at least 1\.$"):
        SubsetConfig(**{name: 0})


def test_shots_are_at_least_one():
    with pytest.raises(UserError, match=r"^data\.shots is 0; valid"):
        Digits(shots=0)


def test_a_limited_split_can_be_sent_to_a_worker_process():
    split = Digits(shots=2).train
    again = pickle.loads(pickle.dumps(split))
    assert again.labels.tolist() == split.labels.tolist()
    assert again.image(3).tobytes() == split.image(3).tobytes()


def test_digits_take_the_limits_from_settings():
    parser = ArgumentParser()
    parser.add_argument("--data", type=DataSet)
    given = {"shots": 3, "subset": {"classes": 4, "test": 10}}
    data = parser.instantiate(parser.parse_object({"data": {"class_path": "Digits", "init_args": given}})).data
    assert np.bincount(data.train.labels).tolist() == [3, 3, 3, 3]
    assert sorted(np.bincount(data.test.labels).tolist()) == [2, 2, 3, 3]
    assert data.class_names == ("zero", "one", "two", "three")


def test_each_example_has_a_path_or_none_has():
    with pytest.raises(ValueError, match="2 labels, but 1 paths"):
        Split(np.array([0, 1]), Grey(), None, ["a.png"])
