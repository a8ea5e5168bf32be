"""The digits in domains, against properties that hold by the definition of each shift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedmoe.data import DigitDomains, Digits, DomainClasses, partition_dataset
from fedmoe.errors import UserError

DOMAINS = ("plain", "rotated_90", "rotated_180", "coloured", "inverted", "blurred", "cluttered")
SOME = (0, 7, 400, 1257)


@pytest.fixture(scope="module")
def data() -> DigitDomains:
    return DigitDomains(domains=DOMAINS)


def pixels(data: DigitDomains, domain: str, i: int) -> np.ndarray:
    """Training image i of a domain, [S, S, 3]."""
    return np.asarray(data.train.image(data.domains.index(domain) * len(Digits().train) + i))


def grey(i: int) -> np.ndarray:
    """The same digit without any shift, in grey values [S, S]."""
    return np.asarray(Digits().train.image(i))[..., 0]


def test_every_domain_has_every_digit_with_its_label_once(data):
    plain = Digits()
    assert data.class_names == plain.class_names and data.domain_names == DOMAINS
    for split, own in ((data.train, plain.train), (data.test, plain.test)):
        assert len(split) == 7 * len(own)
        assert split.domains is not None
        assert split.domains.tolist() == [d for d in range(7) for _ in range(len(own))]
        for d in range(7):
            assert split.labels[split.domains == d].tolist() == own.labels.tolist()
    assert len(data.train) + len(data.test) == 7 * 1797


@pytest.mark.parametrize("i", SOME)
def test_plain_rotated_and_inverted_by_their_definition(data, i):
    assert (pixels(data, "plain", i) == grey(i)[..., None]).all()
    assert (pixels(data, "rotated_90", i) == np.rot90(grey(i))[..., None]).all()
    assert (pixels(data, "rotated_180", i) == grey(i)[::-1, ::-1, None]).all()
    assert (pixels(data, "inverted", i) == 255 - grey(i)[..., None]).all()


def test_other_angles_turn_about_the_centre_and_keep_the_ink():
    data = DigitDomains(domains=("rotated_40", "rotated_320"))
    count = len(Digits().train)
    left, right = (
        np.stack([np.asarray(data.train.image(d * count + i))[..., 0] for i in SOME]).astype(float) for d in (0, 1)
    )
    whole = np.stack([grey(i) for i in SOME]).astype(float)
    middle = slice(14, 18)  # hardly moves, while the border does
    assert np.abs(left - whole)[:, middle, middle].mean() < np.abs(left - whole).mean()
    assert not np.array_equal(left, right)
    assert (left.sum(axis=(1, 2)) < 1.05 * whole.sum(axis=(1, 2))).all()  # corners are cut off, nothing is added


@pytest.mark.parametrize("i", SOME)
def test_colours_keep_the_shape(data, i):
    """Each channel is an affine function of the grey digit, so the digit can be read back; the colours differ."""
    image, ink = pixels(data, "coloured", i).astype(float), grey(i).astype(float) / 255
    for channel in np.moveaxis(image, -1, 0):
        slope, start = np.polyfit(ink.ravel(), channel.ravel(), 1)
        assert np.abs(channel - (start + slope * ink)).max() <= 1  # rounding
        assert -1 <= start <= 256 and -1 <= start + slope <= 256
    back, front = image[ink == 0].mean(axis=0), image[ink == 1].mean(axis=0) if (ink == 1).any() else image.max((0, 1))
    assert len(np.unique(image[ink == 0], axis=0)) == 1  # one background
    assert abs((front - back) @ [0.299, 0.587, 0.114]) > 50
    assert not np.array_equal(back, pixels(data, "coloured", i + 1).astype(float)[0, 0])


@pytest.mark.parametrize("i", SOME)
def test_blur_is_a_gaussian(data, i):
    """Against scipy's filter; Pillow approximates a Gaussian by three box filters, and repeats the border."""
    from scipy.ndimage import gaussian_filter

    expected = gaussian_filter(grey(i).astype(float), 3.0, mode="nearest")
    found = pixels(data, "blurred", i)[..., 0].astype(float)
    assert np.abs(found - expected).max() < 10
    assert np.abs(found - grey(i)).max() > 50


@pytest.mark.parametrize("i", SOME)
def test_clutter_lies_behind_the_digit(data, i):
    image, digit = pixels(data, "cluttered", i)[..., 0], grey(i)
    assert (image >= digit).all()
    changed = image > digit
    assert 20 < changed.sum() < 8 * 64  # at most eight pieces of 8 x 8 pixels
    assert (image[~changed] == digit[~changed]).all()


def test_images_do_not_depend_on_the_order_in_which_they_are_read(data):
    again = DigitDomains(domains=DOMAINS)
    for i in (8000, 4, 5999):
        assert again.train.image(i).tobytes() == data.train.image(i).tobytes()
    alone = DigitDomains(domains=("cluttered",))
    assert np.array_equal(np.asarray(alone.train.image(3)), pixels(data, "cluttered", 3))
    assert not np.array_equal(pixels(data, "cluttered", 3), pixels(replace(data, seed=1), "cluttered", 3))


def test_the_cache_key_tells_settings_apart(data):
    keys = {
        d.cache_key()
        for d in (
            data,
            Digits(),
            replace(data, blur=2.0),
            replace(data, domains=DOMAINS[::-1]),
            replace(data, seed=1),
            replace(data, size=40),
        )
    }
    assert len(keys) == 6
    assert DigitDomains(domains=DOMAINS).cache_key() == data.cache_key()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"domains": ()}, "data.domains is empty; valid is at least one domain"),
        (
            {"domains": ("blured",)},
            "data.domains has 'blured'; valid are plain, coloured, inverted, blurred, cluttered",
        ),
        ({"domains": ("blured",)}, "did you mean 'blurred'?"),
        ({"domains": ("rotated_360",)}, "data.domains has 'rotated_360'; valid are"),
        ({"domains": ("rotated_0",)}, "rotated_1 to rotated_359"),
        ({"domains": ("plain", "plain")}, "data.domains has 'plain' more than once"),
        ({"blur": 0.0}, "data.blur is 0.0; valid is a finite number above 0."),
        ({"test_fraction": 1.5}, "data.test_fraction is 1.5"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(UserError) as error:
        DigitDomains(**settings)
    assert sentence in str(error.value)


def test_clients_of_a_domain_hold_different_classes():
    """4 clients in each domain, 5 of 10 classes each: a class has two holders, who share its images evenly."""
    data = DigitDomains(domains=("plain", "inverted", "blurred"))
    clients = partition_dataset(data, DomainClasses(classes_per_client=5, clients_per_domain=4, shots=2), 12, seed=3)
    assert [client.domain for client in clients] == [0] * 4 + [1] * 4 + [2] * 4
    held = [frozenset(data.train.labels[client.train].tolist()) for client in clients]
    digits = [set((client.train % 1258).tolist()) for client in clients]  # 1,258 training digits in each domain
    for client, own in zip(clients, held, strict=True):
        assert np.bincount(data.train.labels[client.train], minlength=10).tolist() == [
            2 * (c in own) for c in range(10)
        ]
        assert set(data.test.labels[client.test].tolist()) == own
    for domain in range(3):
        mine = range(4 * domain, 4 * domain + 4)
        assert len({held[i] for i in mine}) == 4
        assert all(sum(c in held[i] for i in mine) == 2 for c in range(10))
        assert len(set.union(*(digits[i] for i in mine))) == 40  # no digit twice
        tests = np.concatenate([clients[i].test for i in mine])
        assert sorted(tests.tolist()) == list(range(539 * domain, 539 * domain + 539))  # every test image once
    sizes = [len(client.test) for client in clients]
    assert max(sizes) - min(sizes) <= 5  # even to within one image of each class


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: DomainClasses(classes_per_client=0),
            "partition.classes_per_client is 0; valid is an integer of at least",
        ),
        (
            lambda: DomainClasses(clients_per_domain=0),
            "partition.clients_per_domain is 0; valid is an integer of at least",
        ),
        (lambda: DomainClasses(shots=0), "partition.shots is 0; valid is null or an integer of at least 1."),
        (
            lambda: DomainClasses(classes_per_client=11),
            "classes_per_client is 11, but there are 10 classes; valid is 1 to",
        ),
        (lambda: DomainClasses(clients_per_domain=3), "federation.clients is 4, but DomainClasses gives each of the 1"),
        (lambda: DomainClasses(shots=63), "partition.shots is 63, but of the class"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(make, sentence):
    with pytest.raises(UserError) as error:
        partition_dataset(DigitDomains(domains=("plain",)), make(), 4, seed=0)
    assert sentence in str(error.value)


@pytest.mark.parametrize(("clients", "classes"), [(1, 3), (3, 3), (4, 5), (7, 2), (12, 10)])
def test_holders_of_classes_differ_by_one_at_most(clients, classes):
    data = DigitDomains(domains=("inverted",))
    dealt = partition_dataset(data, DomainClasses(classes, clients), clients, seed=5)
    counts = np.array([np.bincount(data.train.labels[client.train], minlength=10) for client in dealt])
    assert ((counts > 0).sum(axis=1) == classes).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    everyone = counts.sum(axis=0)
    assert everyone[holders > 0].tolist() == np.bincount(data.train.labels, minlength=10)[holders > 0].tolist()
