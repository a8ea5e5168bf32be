"""An image that cannot be read stops the run or is left out, by option; either way it is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_helpers import (
    Counting,
    Photos,
    cut,
    extract,
    extracted,
    unreadable,
)

from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Dirichlet, partition_dataset
from fedmoe.errors import UserError
from fedmoe.features.client_data import prepare


@pytest.fixture
def clip(embedded_clip):
    return embedded_clip


@pytest.fixture
def config(tmp_path):
    return FeatureConfig(cache_dir=str(tmp_path / "cache"), batch_size=4)


BROKEN: dict[str, Callable] = {
    "cut short": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a page of text": lambda path: path.write_text("<html>404</html>"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return Photos(tmp_path / "photos")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_image_stops_and_is_named(clip, config, photos, broken, workers):
    path = photos.files["train"][5]
    good = path.read_bytes()
    broken(path)
    with pytest.raises(UserError) as error:
        extract(clip, photos.train, replace(config, workers=workers))
    assert str(path) in str(error.value) and "features.damaged = skip" in str(error.value)
    assert "\n" not in str(error.value) and "train06" not in str(error.value)
    path.rmdir() if path.is_dir() else None
    path.write_bytes(good)
    assert extracted(clip, photos.train, config).encoded == 8  # the first batch of 4 was kept


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_image_is_skipped_named_and_tried_again(clip, config, photos, broken, caplog):
    whole = extract(clip, photos.train, replace(config, cache_dir=config.cache_dir + "-whole"))
    config, path = replace(config, damaged="skip"), photos.files["train"][5]
    good = path.read_bytes()
    broken(path)
    for encoded in (11, 0):  # from the images, then from the cache
        caplog.clear()
        found = extracted(clip, photos.train, config)
        assert found.encoded == encoded and list(found.damaged) == [5] and str(path) in found.damaged[5]
        assert "1 of 12 images cannot be read" in caplog.text and str(path) in caplog.text
        others = [i for i in range(12) if i != 5]
        torch.testing.assert_close(found.values[others], whole[others], rtol=1e-5, atol=1e-6)
        assert not found.values[5].any()
    with pytest.raises(UserError, match="cannot be read"):  # what was skipped before may still not be used
        extract(clip, photos.train, replace(config, damaged="stop"))
    path.rmdir() if path.is_dir() else None
    path.write_bytes(good)
    found = extracted(clip, photos.train, replace(config, damaged="stop"))
    assert found.encoded == 1 and not found.damaged
    torch.testing.assert_close(found.values, whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(extract(clip, unreadable(12), config), found.values)


def test_skipping_then_an_interruption(clip, config, photos):
    """Batches are cut as if nothing had happened, so the bits are those of one go."""
    config = replace(config, damaged="skip", chunk=4)
    cut(photos.files["train"][2])
    with pytest.raises(RuntimeError):
        extract(clip, replace(photos.train, image=Counting(photos.train, fail=9)), config)
    split = replace(photos.train, image=(counting := Counting(photos.train)))
    found = extracted(clip, split, config)
    assert counting.seen == [2, 8, 9, 10, 11] and list(found.damaged) == [2]
    assert torch.equal(found.values, extract(clip, photos.train, replace(config, cache_dir=config.cache_dir + "-b")))


def test_an_image_repaired_between_two_interruptions(clip, config, photos):
    config, path = replace(config, damaged="skip", chunk=4), photos.files["train"][2]
    good = path.read_bytes()
    cut(path)
    for fail in (5, 9):
        with pytest.raises(RuntimeError):
            extract(clip, replace(photos.train, image=Counting(photos.train, fail)), config)
        path.write_bytes(good)
    split = replace(photos.train, image=(counting := Counting(photos.train)))
    found = extracted(clip, split, config)
    assert counting.seen == [8, 9, 10, 11] and not found.damaged
    whole = extract(clip, photos.train, replace(config, cache_dir=config.cache_dir + "-b"))
    torch.testing.assert_close(found.values, whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(extract(clip, unreadable(12), config), found.values)


def test_nothing_that_can_be_read_is_one_sentence(clip, config, photos):
    for path in photos.files["test"]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="None of the 6 images of noise / train can be read"):
        extract(clip, photos.test, replace(config, damaged="skip"))


def test_a_fault_of_the_machine_is_never_skipped(clip, config, photos):
    path = photos.files["train"][5]
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UserError) as error:
        extract(clip, photos.train, replace(config, damaged="skip"))
    assert str(path) in str(error.value) and os.strerror(40) in str(error.value)


def test_clients_lose_damaged_images_and_nothing_else(clip, config, photos):
    def data(config):
        return prepare(photos, Dirichlet(1.0, 2), clip, FederationConfig(clients=3), config, seed=1)

    whole, clients = data(config), partition_dataset(photos, Dirichlet(1.0, 2), 3, seed=1)
    assert "left_out" not in whole.summary()
    lost = {"train": 7, "test": 3}
    for part, i in lost.items():
        cut(photos.files[part][i])
    fewer = data(replace(config, damaged="skip", cache_dir=config.cache_dir + "-fewer"))
    for client_id, owned in enumerate(clients):
        before, after = whole.client(client_id), fewer.client(client_id)
        for part in ("train", "test"):
            kept = [k for k, i in enumerate(getattr(owned, part)) if i != lost[part]]
            assert torch.equal(getattr(after, f"{part}_labels"), getattr(before, f"{part}_labels")[kept])
            torch.testing.assert_close(
                getattr(after, f"{part}_features"), getattr(before, f"{part}_features")[kept], rtol=1e-5, atol=1e-6
            )
            counts = np.bincount(getattr(after, f"{part}_labels"), minlength=3).tolist()
            assert fewer.summary()[f"counts_{part}"][client_id] == counts
    left_out = fewer.summary()["left_out"]
    assert [str(photos.files[part][i]) in left_out[part][0] for part, i in lost.items()] == [True, True]


def test_a_client_whose_images_are_all_damaged_is_refused(clip, config, photos):
    for i in partition_dataset(photos, Dirichlet(1.0, 2), 3, seed=1)[1].train:
        photos.files["train"][i].write_bytes(b"")
    config = replace(config, damaged="skip")
    with pytest.raises(UserError, match=r"Client 1 has no training examples: all .* of its images cannot be read"):
        prepare(photos, Dirichlet(1.0, 2), clip, FederationConfig(clients=3), config, seed=1)


def test_the_warning_names_five_damaged_images_and_the_features_all(clip, config, photos, caplog):
    paths = [str(path) for path in photos.files["train"]]
    for path in photos.files["train"][2:9]:
        cut(path)
    found = extracted(clip, photos.train, replace(config, damaged="skip"))
    assert list(found.damaged) == [2, 3, 4, 5, 6, 7, 8]
    assert [path in why for path, why in zip(paths[2:9], found.damaged.values(), strict=True)] == [True] * 7
    (warning,) = caplog.messages
    assert "7 of 12 images cannot be read" in warning and warning.endswith(" and 2 more")
    assert [path in warning for path in paths] == [False] * 2 + [True] * 5 + [False] * 5
