"""Options with which data are normalized, dealt out and paired with labels as in pFedMoAP's released code.

Expected values are worked out by hand or by plain counting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cifar_helpers import NAMES, write_cifar
from federation_helpers import build_federation
from partition_helpers import matrix, same, split_of
from PIL import Image
from streams import stream
from test_domains import BOTH, FACTS, write_tree

from fedmoe.config import FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data import CIFAR10, CIFAR100, IID, Digits, Dirichlet, DomainDirichlet, Pathological, partition_dataset
from fedmoe.data.base import DataSet
from fedmoe.data.sets.office_caltech import OfficeCaltech10
from fedmoe.data.shares import capped
from fedmoe.errors import UserError
from fedmoe.features.client_data import prepare
from fedmoe.features.views import View, apply_view
from fedmoe.methods import ZeroShot
from fedmoe.models.clip import FrozenCLIP

# Normalization


@pytest.mark.parametrize(
    ("cls", "white", "black"),
    [
        # (1 - mean) / std and -mean / std in each channel
        (CIFAR10, (2.514088, 2.596790, 2.753731), (-2.429066, -2.418254, -2.221393)),
        (CIFAR100, (1.843996, 2.002730, 2.024258), (-1.897119, -1.897426, -1.596307)),
    ],
)
def test_released_normalization_by_hand(
    embedded_clip: FrozenCLIP, cls: type[DataSet], white: tuple[float, ...], black: tuple[float, ...]
) -> None:
    transform = cls(preprocessing="released").transform(embedded_clip.preprocess)  # type: ignore[call-arg]
    for level, expected in ((255, white), (0, black)):
        image = transform(Image.new("RGB", (32, 32), (level, level, level)))
        assert image.shape == (3, embedded_clip.image_size, embedded_clip.image_size)
        assert image.amin(dim=(1, 2)).tolist() == pytest.approx(expected, abs=1e-5)
        assert image.amax(dim=(1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


# Crops and flips


def test_the_views_default_to_the_releases_crops() -> None:
    """Random resized crops of 8 to 100 % of the area, bicubic; test_views.py compares the draws with torchvision's."""
    assert tuple(ViewsConfig().scale) == (0.08, 1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    crop = Image.fromarray(pixels[2:14, 3:19])
    expected = np.asarray(crop.resize((20, 20), Image.Resampling.BICUBIC))
    for flip in (False, True):
        view = np.asarray(apply_view(Image.fromarray(pixels), View(2, 3, 12, 16, flip), (20, 20)))
        assert np.array_equal(view, expected[:, ::-1] if flip else expected)


# Partitions that cannot be


@pytest.mark.parametrize(
    ("make", "clients", "sentence"),
    [
        (
            lambda: Dirichlet(over="fine"),  # type: ignore[arg-type]
            2,
            "partition.over is 'fine'; valid is classes or coarse.",
        ),
        (
            lambda: Dirichlet(over="coarse", cap=True),
            2,
            "partition.cap is true, but with partition.over = coarse all sizes are equal; valid is false.",
        ),
        (lambda: Dirichlet(min_test=-1), 2, "partition.min_test is -1; valid is an integer of at least 0."),
        (
            lambda: Dirichlet(over="coarse"),
            2,
            "partition.over is 'coarse', but the data set 'cifar10' knows no coarse classes; valid is classes, or the "
            "data set CIFAR100.",
        ),
        (
            lambda: Dirichlet(100.0, 1, min_test=60),
            2,
            "partition.min_test is 60, but in 1000 draws of Dir(100) over 2 clients and 100 test examples one client "
            "never had more than 50; valid is at most 50, a larger partition.alpha, or fewer federation.clients.",
        ),
        (
            lambda: Pathological(sizes="rounded"),
            6,
            "partition.sizes is 'rounded', but 5 clients with 2 of 10 classes each leave none for the last one; valid "
            "is even, or another number of federation.clients.",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(make: Any, clients: int, sentence: str, tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10, each=100)
    with pytest.raises(UserError) as caught:
        partition_dataset(CIFAR10(root=str(tmp_path)), make(), clients, seed=0)
    assert str(caught.value) == sentence


# CIFAR-10's cap and minima


def test_a_client_of_average_size_gets_no_more() -> None:
    """Three classes of 10, three clients, average 10. By hand, class by class.

    1: 8, 1, 1. 2: 5, 4, 1 of what is left makes 13, 5, 2. 3: client 0 is full; 0.3 and 0.1 become 3/4 and 1/4:
    round(7.5) = 8 (to even) and 2.
    """
    shares = np.array([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.6, 0.3, 0.1]])
    expected = [[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.0, 0.75, 0.25]]
    assert capped(shares, np.array([10, 10, 10])).tolist() == [pytest.approx(row) for row in expected]
    # Client 0 has exactly the average after the first class, which is enough.
    full = capped(np.array([[1.0, 0.0, 0.0], [0.4, 0.3, 0.3], [0.8, 0.1, 0.1]]), np.array([10, 10, 10]))
    assert full.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    # Whoever is below the average shares a class alike if their own shares vanish; empty classes are dealt as drawn.
    vanishing = np.array([[0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.6, 0.3, 0.1]])
    found = capped(vanishing, np.array([20, 10, 0]))
    assert found[1].tolist() == [0.0, 0.5, 0.5]
    assert np.isfinite(found).all()


def test_capped_clients_exceed_the_average_by_less_than_a_class() -> None:
    labels, of_test = np.arange(2000) % 10, np.arange(400) % 10
    for seed in range(10):
        free, bounded = (
            Dirichlet(0.3, 10, min_test=10, cap=cap).split(split_of(labels), split_of(of_test), 10, 10, seed)
            for cap in (False, True)
        )
        for clients in (free, bounded):
            assert sorted(np.concatenate([client.train for client in clients]).tolist()) == list(range(2000))
            assert min(len(client.train) for client in clients) >= 10
            assert min(len(client.test) for client in clients) >= 10
        assert max(len(client.train) for client in bounded) < 200 + 200
        # The same shares for both splits, as without a cap: each count is within one example of its share.
        per_train, per_test = (
            matrix(bounded, split_of(labels), "train", 10),
            matrix(bounded, split_of(of_test), "test", 10),
        )
        assert np.abs(per_train / 200 - per_test / 40).max() <= 1 / 200 + 1 / 40
    assert max(len(client.train) for client in free) > max(len(client.train) for client in bounded)


def test_without_options_the_shares_are_the_first_that_fit() -> None:
    """``min_test`` alone draws on until it is kept."""
    labels, of_test = np.arange(300) % 3, np.arange(30) % 3
    draws = stream('[7,"partition","dirichlet","shares"]')
    for _ in range(1000):
        shares = draws.dirichlet([0.4] * 3, size=3)
        sizes = [
            np.diff(np.rint(np.cumsum(shares, axis=1) * n).clip(max=n), axis=1, prepend=0).sum(axis=0)
            for n in (100, 10)
        ]
        if sizes[0].min() >= 20 and sizes[1].min() >= 7:
            break
    clients = Dirichlet(0.4, 20, min_test=7).split(split_of(labels), split_of(of_test), 3, 3, seed=7)
    assert [len(client.train) for client in clients] == sizes[0].tolist()
    assert [len(client.test) for client in clients] == sizes[1].tolist()


# The seed


@pytest.mark.parametrize("make", [Dirichlet, Pathological, IID])
def test_a_partition_may_have_its_own_seed(make: Any) -> None:
    split = split_of(np.arange(500) % 10)
    own = [make(seed=12345).split(split, split, 10, 5, run) for run in (0, 1)]
    assert same(own[0], own[1])
    assert same(own[0], make().split(split, split, 10, 5, 12345))
    assert not same(own[0], make().split(split, split, 10, 5, 0))
    assert make().seed is None


def test_domains_may_have_a_seed_of_their_own(tmp_path: Path) -> None:
    kind = OfficeCaltech10
    data = kind(root=str(write_tree(tmp_path, kind, (6, 2))))
    fixed = [partition_dataset(data, DomainDirichlet(1.0, 2, seed=9), 8, run) for run in (0, 1)]
    assert same(fixed[0], fixed[1])
    assert same(fixed[0], partition_dataset(data, DomainDirichlet(1.0, 2), 8, 9))


# The class split


@pytest.mark.parametrize(
    ("classes", "clients", "sizes"),
    [
        (37, 10, [4] * 9 + [1]),  # OxfordPets: one client with one class
        (102, 10, [10] * 9 + [12]),
        (101, 10, [10] * 9 + [11]),
        (100, 10, [10] * 10),
        (47, 10, [5] * 9 + [2]),
        (5, 2, [2, 3]),
    ],
)
def test_the_last_client_takes_the_remaining_classes(classes: int, clients: int, sizes: list[int]) -> None:
    every_class = split_of(np.arange(classes))
    dealt = Pathological(sizes="rounded").split(every_class, every_class, classes, clients, seed=5)
    assert [len(client.train) for client in dealt] == sizes
    order = stream('[5,"partition","pathological"]').permutation(classes).tolist()
    ends = np.cumsum([0, *sizes])
    for client, start, stop in zip(dealt, ends[:-1], ends[1:], strict=True):
        assert client.train.tolist() == client.test.tolist() == sorted(order[start:stop])


# Labels of other images


@BOTH
def test_a_clients_labels_go_with_the_first_images_of_its_domain(
    embedded_clip: FrozenCLIP, kind: Any, tmp_path: Path
) -> None:
    """If a client has n examples, their labels go with images 0 to n - 1 of its whole domain."""
    _, domains, _, _ = FACTS[kind]
    root, clients = str(write_tree(tmp_path, kind, (6, 2))), 2 * len(domains)
    right, wrong = kind(root=root), kind(root=root, labels="released")
    assert right.cache_key() == wrong.cache_key()  # the images are the same, and encoded once
    config, partition = FederationConfig(clients=clients), DomainDirichlet(1.0, 2)
    features = FeatureConfig(cache_dir=str(tmp_path / "cache"))
    given = {data.labels: prepare(data, partition, embedded_clip, config, features, seed=4) for data in (right, wrong)}
    dealt = partition_dataset(right, partition, clients, 4)
    whole = prepare(right, IID(), embedded_clip, FederationConfig(clients=1), features, seed=0).client(
        0
    )  # in their order
    parts = (("train", right.train, whole.train_features, 6), ("test", right.test, whole.test_features, 2))
    matched, pairs = 0, 0
    for i in range(clients):
        for part, split, images, each in parts:
            own, other = (
                (getattr(data.client(i), f"{part}_labels"), getattr(data.client(i), f"{part}_features"))
                for data in (given["right"], given["released"])
            )
            indices = getattr(dealt[i], part)
            assert torch.equal(own[0], torch.from_numpy(split.labels[indices])) and torch.equal(own[1], images[indices])
            assert torch.equal(other[0], own[0])  # the labels of the client's own examples, for which counts are right
            start = (i // 2) * 10 * each  # of its domain, which holds ``each`` images of ten classes
            first = images[start : start + len(indices)]
            places = [int((first == row).all(dim=1).nonzero().item()) for row in other[1]]
            assert sorted(places) == list(range(len(indices)))  # exactly these images, each once
            matched += int((split.labels[start : start + len(indices)][places] == other[0].numpy()).sum())
            pairs += len(indices)
    # Each label is as likely any other's: a tenth of them is right by chance.
    assert pairs == 8 * 10 * len(domains) and matched < 0.2 * pairs
    assert given["right"].summary() == given["released"].summary()


def test_labels_in_order_are_not_enough(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    """Images and labels both ascend in the lists, so the pairing is shuffled; its seed is the run's."""
    kind = OfficeCaltech10
    data = kind(root=str(write_tree(tmp_path, kind, (6, 2))), labels="released")
    clients = partition_dataset(data, DomainDirichlet(1.0, 2), 8, 4)
    for i, client in enumerate(clients):
        members = np.flatnonzero(data.train.domains == client.domain)[: len(client.train)]
        expected = stream(f'[4,"partition","mispaired","train",{i}]').permutation(members)
        assert client.images[0].tolist() == expected.tolist()
    everywhere = partition_dataset(data, IID(), 3, 4)  # without domains, the first images of the split
    for client in everywhere:
        assert sorted(client.images[0].tolist()) == list(range(len(client.train)))
        assert sorted(client.images[1].tolist()) == list(range(len(client.test)))


def test_released_labels_with_damaged_images_and_validation(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    kind = OfficeCaltech10
    folder = FACTS[kind][0]
    root = write_tree(tmp_path, kind, (6, 2))
    data = kind(root=str(root), labels="released")
    config = FederationConfig(clients=8, validation=0.2)
    features = FeatureConfig(cache_dir=str(tmp_path / "cache"), damaged="skip")
    with pytest.raises(UserError) as caught:
        prepare(data, DomainDirichlet(1.0, 2), embedded_clip, config, features, seed=4)
    assert str(caught.value) == (
        "federation.validation is 0.2, but data.labels is 'released', where labels are other images' and nothing can "
        "be chosen by them; valid is 0."
    )
    (root / folder / "amazon/back_pack/train_0.jpg").write_bytes(b"no image")  # image 0 of both of amazon's clients
    clients = partition_dataset(data, DomainDirichlet(1.0, 2), 8, 4)
    used = prepare(data, DomainDirichlet(1.0, 2), embedded_clip, FederationConfig(clients=8), features, seed=4)
    for i, client in enumerate(clients):
        keep = client.images[0] != 0
        assert np.count_nonzero(~keep) == (1 if i < 2 else 0)
        assert used.client(i).train_labels.tolist() == data.train.labels[client.train[keep]].tolist()


class Mispaired(Digits):
    """Handwritten digits, which the embedded CLIP knows, with other images' labels."""

    @property
    def mispairs(self) -> bool:
        return True


def test_zero_shot_accuracy_is_chance(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    features, config = FeatureConfig(cache_dir=str(tmp_path / "cache")), FederationConfig(clients=4, rounds=0)
    found = []
    for data in (Digits(), Mispaired()):
        own = prepare(data, Dirichlet(0.5, 10), embedded_clip, config, features, seed=0)
        federation, log = build_federation(embedded_clip, own, ZeroShot(), config)
        federation.run()
        quality = log.evaluations[-1].quality
        assert quality is not None and sum(map(sum, log.evaluations[-1].confusion)) == len(data.test) > 350
        found.append(quality["weighted"])
    right, mispaired = found
    assert right > 60
    assert abs(mispaired - 10) < 6 * 100 * (0.1 * 0.9 / 350) ** 0.5  # six standard deviations around a tenth


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_other_data_sets_pair_rightly(cls: type[DataSet]) -> None:
    assert cls().mispairs is False and len(NAMES[cls]) == len(cls().classes)  # type: ignore[attr-defined]
