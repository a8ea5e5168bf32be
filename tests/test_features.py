"""Image features: equal to CLIP's, kept on disk, never read from a file that is not what it should be."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_helpers import (
    KEY,
    extract,
    files,
    noise,
    only_file,
    unreadable,
)
from PIL import Image

from fedmoe.config import ClipConfig, FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data import Digits, Dirichlet, Split, partition_dataset
from fedmoe.errors import UserError
from fedmoe.features.cache import FeatureCache
from fedmoe.features.client_data import prepare
from fedmoe.features.encoders import clip_encoder, describe, extract_features
from fedmoe.features.extraction import Encoder
from fedmoe.features.views import PlainInputs, ReadOnlyInputs, ViewInputs
from fedmoe.models.clip import FrozenCLIP

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


UNKNOWN: Any = "sometimes"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two CLIPs with random weights that differ in one element."""
    path = tmp_path_factory.mktemp("model") / "test-data-rn.json"
    path.write_text(json.dumps(MODEL))
    config = ClipConfig(architecture="test-data-rn", pretrained=None, model_config=str(path))
    first, second = FrozenCLIP.load(config), FrozenCLIP.load(config)
    second.model.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    return first, second


@pytest.fixture
def clip(clips):
    return clips[0]


@pytest.fixture
def config(tmp_path):
    return FeatureConfig(cache_dir=str(tmp_path / "cache"), batch_size=4)


@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 1), (4, 5), (10, 2048), (64, 1)])
def test_features_are_clip_s_in_order(clip, tmp_path, batch_size, chunk):
    split = noise(10)
    found = extract(clip, split, FeatureConfig(str(tmp_path), batch_size, chunk=chunk), KEY)
    with torch.no_grad():
        expected = torch.cat([clip.encode_image(clip.preprocess(split.image(i))[None]) for i in range(10)])
    assert found.dtype == torch.float32 and found.device.type == "cpu" and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(10))


def test_the_second_time_no_image_is_read(clip, config):
    first = extract(clip, noise(6), config, KEY)
    assert torch.equal(extract(clip, unreadable(6), config, KEY), first)


def test_progress_counts_images(clip, config):
    calls = []
    extract(clip, noise(10), config, KEY, lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]
    calls.clear()
    extract(clip, unreadable(10), config, KEY, lambda done, total: calls.append((done, total)))
    assert calls == [(10, 10)]


def test_an_empty_split(clip, config):
    for _ in range(2):  # extracted, then cached
        assert extract(clip, noise(0), config, KEY).shape == (0, 32)


def test_the_folder_may_be_named_by_the_home_folder(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    extract(clip, noise(2), FeatureConfig("~/features/here"), KEY)
    assert len(os.listdir(tmp_path / "features" / "here")) == 1


DAMAGE = {
    "cut": lambda data: data[:-3],
    "empty": lambda data: b"",
    "header only": lambda data: data[:20],
    "one bit of a feature": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "one bit of the header's length": lambda data: bytes([data[0] ^ 4]) + data[1:],
    "another description": lambda data: data.replace(b"noise", b"Noise"),
    "no checksum": lambda data: data.replace(b'"checksum"', b'"checkSum"'),
    "another shape": lambda data: data.replace(b"[6,32]", b"[32,6]"),
    "another number format": lambda data: data.replace(b'"F32"', b'"I32"'),
    "another index": lambda data: data.replace(b'"I64"', b'"U64"'),
    "another damage": lambda data: data.replace(b'"damaged":"{}"', b'"damaged":"{ "'),
    "not this format": lambda data: b"PK\x03\x04" + bytes(500),
    "text": lambda data: b"<html>quota exceeded</html>",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_extracted_again(clip, config, caplog, damage):
    good = extract(clip, noise(6), config, KEY)
    path = only_file(config)
    with open(path, "rb") as file:
        data = file.read()
    assert damage(data) != data
    with open(path, "wb") as file:
        file.write(damage(data))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(extract(clip, noise(6), config, KEY), good)
    assert [r.levelname for r in caplog.records] == ["WARNING"] and path in caplog.text
    assert torch.equal(extract(clip, unreadable(6), config, KEY), good)
    assert only_file(config) == path


def test_a_file_of_another_number_of_images_is_not_used(clip, config):
    extract(clip, noise(6), config, KEY)
    assert extract(clip, noise(7), config, KEY).shape == (7, 32)


class Changed:
    """A CLIP with one property replaced."""

    def __init__(self, clip, **changes):
        self.__dict__.update(clip=clip, changes=changes)

    def __getattr__(self, name):
        return self.changes[name] if name in self.changes else getattr(self.clip, name)


def test_the_key_covers_what_decides_the_features(clips):
    clip, other = clips
    plain, encoder, inputs = clip.preprocess, clip_encoder(clip), PlainInputs(clip.preprocess)
    views = ViewsConfig("cached", 2)

    def viewed(config):
        return describe(encoder, ViewInputs(inputs, config), KEY, 6)

    def transformed(transform):
        return describe(encoder, PlainInputs(transform), KEY, 6)

    descriptions = [
        describe(encoder, inputs, KEY, 6),
        describe(clip_encoder(other), inputs, KEY, 6),  # other weights
        describe(encoder, inputs, ("noise", "test"), 6),
        describe(encoder, inputs, ("noisetrain", ""), 6),
        describe(encoder, inputs, KEY, 7),
        describe(encoder, PlainInputs(plain, "released"), KEY, 6),
        describe(encoder, ReadOnlyInputs(), KEY, 6),
        describe(replace(encoder, name="spatial"), inputs, KEY, 6),
        describe(replace(encoder, device=torch.device("meta")), inputs, KEY, 6),
        transformed(lambda image: plain(image) + 1),
        transformed(lambda image: plain(image) + 2),  # an equal repr but for its address
        transformed(lambda image: plain(image.rotate(90))),
        viewed(views),
        viewed(replace(views, count=3)),
        viewed(replace(views, seed=1)),
        viewed(replace(views, scale=(0.09, 1.0))),
        viewed(replace(views, scale=(0.08, 0.99))),
    ]
    assert len({FeatureCache("anywhere", description).path for description in descriptions}) == len(descriptions)


def test_the_key_does_not_change_from_run_to_run(clip):
    """A repr with a memory address in it must not become part of the key."""
    plain = clip.preprocess
    alike = [lambda image: plain(image) for _ in range(2)]  # both alive, so at two addresses
    descriptions = [describe(clip_encoder(clip), PlainInputs(preprocess), KEY, 6) for preprocess in alike]
    assert descriptions[0] == descriptions[1]
    assert "0x" not in json.dumps(PlainInputs(plain).key())


def test_a_folder_that_cannot_be_made_is_one_sentence(clip, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError) as error:
            extract(clip, unreadable(2), FeatureConfig(str(folder)), KEY)
        assert "features.cache_dir" in str(error.value) and str(folder) in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_sentence(clip, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"features\.cache_dir"):
        extract(clip, unreadable(2), FeatureConfig(str(tmp_path / "cache")), KEY)


def test_features_that_are_not_numbers_are_refused_and_not_kept(clip, config):
    broken = Changed(
        clip, encode_image=lambda images: clip.encode_image(images) / (images.mean((1, 2, 3)) > 9)[:, None]
    )
    with pytest.raises(UserError, match=r"feature of image 0 \(noise / train\) is not finite"):
        extract(broken, noise(3), config, KEY)
    assert os.listdir(config.cache_dir) == []


def test_others_may_read_a_shared_cache(clip, config):
    """The mode of any new file, not the 0600 of safetensors' writer."""
    extract(clip, noise(2), config)
    with open(config.cache_dir + "/plain", "w"):
        pass
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in files(config)}
    assert len(files(config)) == 2 and len(modes) == 1


def test_prepare_gives_every_client_the_features_of_its_images(clip, config):
    data, partition, calls = Digits(), Dirichlet(0.5), []
    federated = prepare(
        data,
        partition,
        clip,
        FederationConfig(clients=20),
        FeatureConfig(config.cache_dir, 256),
        seed=7,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (1797, 1797) and calls == sorted(calls) and len(calls) == 5 + 3  # of 256 images each
    everything = {}
    for part, split in (("train", data.train), ("test", data.test)):
        images = torch.stack([clip.preprocess(split.image(i)) for i in range(len(split))])
        everything[part] = torch.cat([clip.encode_image(batch) for batch in images.split(256)])
    for i, owned in enumerate(partition_dataset(data, partition, 20, seed=7)):
        client = federated.client(i)
        assert torch.equal(client.train_features, everything["train"][owned.train])
        assert torch.equal(client.test_features, everything["test"][owned.test])
        assert client.train_labels.tolist() == data.train.labels[owned.train].tolist()
        assert client.test_labels.tolist() == data.test.labels[owned.test].tolist()
    assert federated.template == data.template and federated.class_names == data.class_names


def test_prepare_answers_a_mistake_before_any_image_is_encoded(clip, config):
    with pytest.raises(UserError, match=r"partition\.min_size"):
        prepare(Digits(), Dirichlet(0.5, 1000), clip, FederationConfig(clients=20), config, seed=0)
    assert not os.path.exists(config.cache_dir)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: FeatureConfig(workers=-1), "features.workers"),
        (lambda: FeatureConfig(chunk=0), "features.chunk"),
        (lambda: FeatureConfig(damaged=UNKNOWN), "features.damaged"),
        (lambda: ViewsConfig(UNKNOWN), "views.kind"),
        (lambda: ViewsConfig(count=0), "views.count"),
        (lambda: ViewsConfig(scale=(0.0, 1.0)), "views.scale"),
        (lambda: ViewsConfig(scale=(0.5, 0.4)), "views.scale"),
    ],
)
def test_settings_are_checked(make, key):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        make()


class Thumbnail:
    """A transform that no package's version changes."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((2, 2), Image.Resampling.NEAREST), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 256

    def __repr__(self) -> str:
        return "Small()"


def test_a_cache_written_by_commit_a850f4b_is_found_and_continued(tmp_path, caplog):
    """tests/golden/feature_cache: "train" is whole but for image 3, "test" was interrupted at image 5 of 6."""
    folder = tmp_path / "cache"
    shutil.copytree(Path(__file__).parent / "golden" / "feature_cache", folder)
    encoder = Encoder("global", "golden", lambda x: x.flatten(1)[:, :5] * 2, (5,), torch.device("cpu"))
    seen = []

    def image(i: int) -> Image.Image:
        seen.append(i)
        if i == 3:
            raise OSError("cut short")
        return Image.new("RGB", (8, 6), (10 * i, 200 - i, 7))

    split, config = Split(np.zeros(6, int), image), FeatureConfig(str(folder), 2, chunk=2, damaged="skip")
    # by hand: the first 4 of 12 numbers are red, the fifth is green; 2 x / 256
    expected = torch.tensor([[10 * i / 128] * 4 + [(200 - i) / 128] if i != 3 else [0] * 5 for i in range(6)])
    for part, read in (("train", [3]), ("test", [3, 4, 5])):
        found = extract_features(encoder, split, PlainInputs(Thumbnail()), config, ("golden", part))
        assert seen == read and found.encoded == len(read) - 1
        assert torch.equal(found.values, expected) and list(found.damaged) == [3]
        seen.clear()
    assert len(files(config)) == 2 and "cannot be used" not in caplog.text
