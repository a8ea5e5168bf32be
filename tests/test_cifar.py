"""CIFAR-10 and CIFAR-100 in torchvision's layout, and their preprocessing."""

from __future__ import annotations

import json
import pickle
import tarfile
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from cifar_helpers import BOTH, FILES, NAMES, NAMES_10, NAMES_100, PROTOCOLS, python2_batch, write_cifar
from conftest import tiny_config
from local_server import serve

from fedmoe.cli import main
from fedmoe.data import CIFAR10, CIFAR100
from fedmoe.errors import UserError
from fedmoe.readers.array_pickle import load_arrays

TORCHVISION: dict[type, Any] = {CIFAR10: torchvision.datasets.CIFAR10, CIFAR100: torchvision.datasets.CIFAR100}


def torchvisions(root: Path, cls: type, train: bool):
    """torchvision's own reading of the same files, which the test has made; only the checksums are left out."""
    own: Any = type(cls.__name__, (TORCHVISION[cls],), {"_check_integrity": lambda self: True})
    folder, _, meta = FILES[cls]
    own.meta = {**own.meta, "md5": md5((root / folder / meta).read_bytes()).hexdigest()}
    return own(str(root), train=train)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("cls", BOTH)
def test_images_and_labels_are_those_that_torchvision_reads(cls, protocol, tmp_path):
    write_cifar(tmp_path, cls, each=7, protocol=protocol)
    data = cls(root=str(tmp_path))
    for train, split in ((True, data.train), (False, data.test)):
        expected = torchvisions(tmp_path, cls, train)
        assert len(split) == len(expected) == (7 * (len(FILES[cls][1]) - 1) if train else 7)
        assert split.labels.tolist() == expected.targets and list(data.class_names) == expected.classes
        for i, (image, _) in enumerate(expected):
            assert split.image(i).mode == "RGB" and split.image(i).tobytes() == image.tobytes()


@pytest.mark.parametrize("cls", BOTH)
def test_published_facts(cls):
    assert (cls.published.train, cls.published.test, cls.published.classes) == (50000, 10000, len(NAMES[cls]))
    assert list(cls.classes) == NAMES[cls]
    assert len(NAMES_100) == 100


def test_images_stay_in_their_file(tmp_path):
    """In files as CIFAR's own are written, the images of a batch are a view of the file, not of memory."""
    folder = write_cifar(tmp_path, CIFAR10, protocol=4)
    for name in FILES[CIFAR10][1]:
        batch = load_arrays(folder / name)
        (folder / name).write_bytes(python2_batch(batch["data"], batch["labels"]))
    split = CIFAR10(root=str(tmp_path)).train
    images: Any = split.image
    for batch in images.batches:
        assert batch.memory is None and isinstance(batch.rows(), np.memmap)
    expected = torchvisions(tmp_path, CIFAR10, train=True)
    assert all(split.image(i).tobytes() == image.tobytes() for i, (image, _) in enumerate(expected))
    sent = pickle.dumps(split)
    assert len(sent) < 3072 + 8 * len(split)  # what a worker process receives is less than an image and the labels
    assert pickle.loads(sent).image(99).tobytes() == split.image(99).tobytes()


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("preprocessing", ["clip", "released"])
def test_a_run_on_each(cls, preprocessing, tmp_path, capsys):
    """From the settings file to the table, with a tiny CLIP of random weights."""
    write_cifar(tmp_path / "data", cls)
    (tmp_path / "clip.json").write_text(json.dumps(tiny_config("vit")))
    data = {"root": str(tmp_path / "data"), "preprocessing": preprocessing, "subset": {"classes": 5}}
    settings = {
        "clip": {"model_config": str(tmp_path / "clip.json"), "pretrained": None},
        "prompt": {"length": 4},
        "data": {"class_path": cls.__name__, "init_args": data},
        "partition": {"class_path": "Dirichlet", "init_args": {"min_size": 1}},
        "federation": {"clients": 2, "rounds": 1, "local_epochs": 1, "batch_size": 4},
        "method": {"class_path": "PFedMoAP", "init_args": {"num_experts": 1, "gating_dim": 16, "heads": 2}},
        "features": {"cache_dir": str(tmp_path / "cache")},
        "runtime": {"threads": 1, "accelerator": "cpu"},
        "output": {"dir": str(tmp_path / "runs"), "name": "run"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "settings.yaml")]) == 0, capsys.readouterr().err
    partition = json.loads((tmp_path / "runs/run/partition.json").read_text())
    assert partition["class_names"] == NAMES[cls][:5]
    # Labels go round: of 100 (CIFAR-10) and of 20 (CIFAR-100) training images, each class has 10 and 1.
    assert np.sum(partition["counts_train"], axis=0).tolist() == [10 if cls is CIFAR10 else 1] * 5
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["rounds"] == 1


@pytest.mark.parametrize("cls", BOTH)
def test_the_shipped_settings_name_the_data_set(cls):
    path = Path(__file__).parents[1] / f"configs/data/{cls.name}.yaml"
    settings = yaml.safe_load(path.read_text())["data"]
    assert settings["class_path"] == cls.__name__
    cls(**settings["init_args"])


# What the paper's released code scales by, per channel.
STATISTICS = {
    CIFAR10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    CIFAR100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("cls", BOTH)
def test_released_preprocessing(cls, tmp_path, golden_clips):
    """Scaled by the data set's mean and standard deviation, then resized by torch's bilinear interpolation."""
    write_cifar(tmp_path, cls)
    data = cls(root=str(tmp_path), preprocessing="released")
    image = data.train.image(3)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[cls])
    pixels = (torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 - mean) / std
    for clip in golden_clips.values():
        size = clip.image_size
        assert size == 64
        expected = torch.nn.functional.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(data.transform(clip.preprocess)(image), expected)


def test_clips_own_preprocessing_is_the_default(embedded_clip):
    data = CIFAR10()
    assert data.transform(embedded_clip.preprocess) is embedded_clip.preprocess
    keys = [cls(preprocessing=p).transform_key() for cls in BOTH for p in ("clip", "released")]
    assert keys[0] == keys[2] == "clip" and len(set(keys)) == 3


@pytest.mark.parametrize("cls", BOTH)
def test_missing_files_are_named(cls, tmp_path):
    with pytest.raises(UserError) as error:
        cls(root=str(tmp_path)).train  # noqa: B018
    for part in ("data.root", FILES[cls][0], str(tmp_path), "data.download=true"):
        assert part in str(error.value)
    folder = write_cifar(tmp_path, cls)
    (folder / FILES[cls][1][0]).unlink()
    with pytest.raises(UserError, match=f"has no file '{FILES[cls][1][0]}'; valid is .* Python version"):
        cls(root=str(tmp_path)).train  # noqa: B018


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"labels": [0]},
        {"data": np.zeros((1, 3072), np.uint8)},
        {"data": np.zeros((1, 3072)), "labels": [0]},
        {"data": np.zeros((1, 3071), np.uint8), "labels": [0]},
        {"data": np.zeros(3072, np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["0"]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": 0},
    ],
)
def test_a_file_that_is_no_batch(content, tmp_path):
    folder = write_cifar(tmp_path, CIFAR10)
    (folder / "data_batch_2").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"data_batch_2 is no batch of CIFAR; valid is a pickle with 'data', uint8"):
        CIFAR10(root=str(tmp_path)).train  # noqa: B018


def test_other_class_names_are_refused(tmp_path):
    folder = write_cifar(tmp_path, CIFAR10)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES_10[::-1]}))
    with pytest.raises(UserError, match=r"batches\.meta does not list the class names of cifar10"):
        CIFAR10(root=str(tmp_path)).train  # noqa: B018


def test_the_cache_key_follows_the_images(tmp_path):
    folder = write_cifar(tmp_path, CIFAR10)
    first = CIFAR10(root=str(tmp_path)).cache_key()
    assert CIFAR10(root=str(tmp_path)).cache_key() == first
    batch = load_arrays(folder / "test_batch")
    batch["data"][3, 100] ^= 1
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    assert CIFAR10(root=str(tmp_path)).cache_key() != first


@pytest.mark.parametrize("cls", BOTH)
def test_download(cls, tmp_path, monkeypatch):
    """torchvision's own download and check of the archive, from this machine."""
    folder = write_cifar(tmp_path / "made", cls)
    archive = tmp_path / "offered" / TORCHVISION[cls].filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = str(tmp_path / "data")
    with serve(archive.parent) as address:
        monkeypatch.setattr(TORCHVISION[cls], "url", f"{address}/{archive.name}")
        monkeypatch.setattr(TORCHVISION[cls], "tgz_md5", "0" * 32)
        with pytest.raises(UserError, match=f"torchvision could not download {cls.__name__} "):
            cls(root=root, download=True).train  # noqa: B018
        monkeypatch.setattr(TORCHVISION[cls], "tgz_md5", md5(archive.read_bytes()).hexdigest())
        assert len(cls(root=root, download=True).test) == 20
    assert len(cls(root=root, download=True).test) == 20  # there is no server any more
