"""ImageNet, its relatives, and data sets of work on domains, on small files in their layouts: splits, names, labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import tiny_config
from feature_helpers import paths_of
from image_helpers import inside, paint

from fedmoe.cli import main
from fedmoe.data import (
    PACS,
    SUN397,
    UCF101,
    VLCS,
    EuroSAT,
    FGVCAircraft,
    ImageNet,
    ImageNetA,
    ImageNetR,
    ImageNetSketch,
    ImageNetV2,
    OfficeHome,
    StanfordCars,
    TinyImageNet,
)
from fedmoe.data.base import check_dataset
from fedmoe.data.check import check
from fedmoe.errors import UserError


@pytest.mark.parametrize(
    ("cls", "sizes"),
    [  # CoOp's table 1 and the data sets' publications
        (EuroSAT, (13500, 8100, 10)),
        (UCF101, (7639, 3783, 101)),
        (StanfordCars, (6509, 8041, 196)),
        (SUN397, (15880, 19850, 397)),
        (FGVCAircraft, (3334, 3333, 100)),
        (ImageNet, (1281167, 50000, 1000)),
        (ImageNetV2, (0, 10000, 1000)),
        (ImageNetSketch, (0, 50889, 1000)),
        (ImageNetA, (0, 7500, 200)),
        (ImageNetR, (0, 30000, 200)),
        (TinyImageNet, (100000, 10000, 200)),
        # A domain of 10 a + b images has 2 a + max(b - 8, 0) test images: 2,048, 2,344, 1,670 and 3,929 are PACS's.
        (PACS, (9991 - 1995, 408 + 468 + 334 + 785, 7)),
        (OfficeHome, (15588 - 3113, 484 + 872 + 887 + 870, 65)),
        (VLCS, (10729 - 2142, 282 + 530 + 674 + 656, 5)),
    ],
)
def test_published_sizes(cls, sizes):
    facts = cls.published
    assert (facts.train, facts.test, facts.classes) == sizes


# ImageNet and its relatives

WNIDS = ("n01440764", "n01443537", "n02012849")
CLASSNAMES = "n01440764 tench\nn01443537 goldfish\nn02012849 crane bird\nn03126707 tench\n"


def test_imagenet_labels_are_the_sorted_ids(tmp_path):
    folder = tmp_path / "imagenet"
    for part, count in (("train", 3), ("val", 2)):
        for wnid in ("n03126707", *WNIDS):
            for i in range(count):
                paint(folder / f"images/{part}/{wnid}/{wnid}_{i}.JPEG")
    (folder / "images/train/notes").mkdir()
    (folder / "classnames.txt").write_text(CLASSNAMES)
    data = ImageNet(root=str(tmp_path), shots=2)
    check_dataset(data)
    assert data.class_names == ("tench", "goldfish", "crane bird", "tench")  # a name twice, as CLIP has them
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and data.test.labels.tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert inside(data.test, folder)[-1] == "images/val/n03126707/n03126707_1.JPEG"


@pytest.mark.parametrize(
    ("cls", "folder", "images"),
    [
        (ImageNetSketch, "imagenet-sketch", "images"),
        (ImageNetA, "imagenet-adversarial", "imagenet-a"),
        (ImageNetR, "imagenet-rendition", "imagenet-r"),
    ],
)
def test_variants_number_their_own_classes(cls, folder, images, tmp_path):
    for wnid in (WNIDS[2], WNIDS[0]):
        for i in range(2):
            paint(tmp_path / folder / images / wnid / f"{i}.jpg")
    (tmp_path / folder / images / "README.txt").write_text("not a class")
    (tmp_path / folder / "classnames.txt").write_text(CLASSNAMES)
    data = cls(root=str(tmp_path))
    assert data.class_names == ("tench", "crane bird") and data.test.labels.tolist() == [0, 0, 1, 1]
    assert not len(data.train)
    report = check(data)
    assert "no training example" not in report.text and "no test example" not in report.text
    assert "4 test examples" in report.text
    with pytest.raises(UserError, match="has no training example"):
        check_dataset(data)
    (tmp_path / folder / "classnames.txt").write_text("n01440764 tench\n")
    with pytest.raises(UserError, match=r"classnames\.txt has no name for the folder 'n02012849'"):
        cls(root=str(tmp_path)).test  # noqa: B018


def test_imagenet_v2_folders_are_labels(tmp_path):
    folder = tmp_path / "imagenetv2"
    ids = [f"n{i:08d}" for i in range(1000)]
    (folder / "classnames.txt").parent.mkdir()
    (folder / "classnames.txt").write_text("".join(f"{wnid} name {i}\n" for i, wnid in enumerate(ids)))
    for i in range(1000):
        path = folder / f"imagenetv2-matched-frequency-format-val/{i}/a.jpeg"
        path.parent.mkdir(parents=True)
        path.touch()
    data = ImageNetV2(root=str(tmp_path))
    assert data.test.labels.tolist() == list(range(1000))
    assert data.class_names[10] == "name 10" and Path(paths_of(data.test)[10]).parent.name == "10"
    path.unlink()
    with pytest.raises(UserError, match="val/999 is missing or has no image"):
        ImageNetV2(root=str(tmp_path)).test  # noqa: B018
    (folder / "classnames.txt").write_text(CLASSNAMES)
    with pytest.raises(UserError, match=r"classnames\.txt lists 4 classes; valid are all 1000"):
        ImageNetV2(root=str(tmp_path)).test  # noqa: B018


def tiny_imagenet(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    for wnid in WNIDS:
        for i in range(2):
            paint(folder / f"train/{wnid}/images/{wnid}_{i}.JPEG")
    for i in range(3):
        paint(folder / f"val/images/val_{i}.JPEG")
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(WNIDS[::-1])]
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    words = {WNIDS[0]: "tench, Tinca tinca", WNIDS[1]: "goldfish, Carassius auratus", WNIDS[2]: "crane"}
    (folder / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in words.items()))
    return folder


def test_tiny_imagenet(tmp_path):
    folder = tiny_imagenet(tmp_path)
    data = TinyImageNet(root=str(tmp_path))
    assert data.class_names == ("tench", "goldfish", "crane")
    assert Counter(data.train.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert data.test.labels.tolist() == [2, 1, 0]
    assert inside(data.test, folder) == [f"val/images/val_{i}.JPEG" for i in range(3)]
    (folder / "classnames.txt").write_text(CLASSNAMES)
    assert TinyImageNet(root=str(tmp_path)).class_names == ("tench", "goldfish", "crane bird")


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("val/val_annotations.txt", "val_0.JPEG\tn00000000\n", "line 1, is"),
        ("val/val_annotations.txt", "../x.JPEG\tn01440764\n", "line 1, is"),
        ("val/val_annotations.txt", "val_0.JPEG n01440764\n", "line 1, is"),
        ("words.txt", "n01440764\n", "valid is a line such as 'n01440764 tench'"),
        ("words.txt", "n01440764\ta\nn01440764\tb\n", "lists n01440764 a second time"),
        ("words.txt", "n01440764\ttench\n", "has no name for the folder 'n01443537'"),
    ],
)
def test_faulty_files_of_tiny_imagenet_are_one_sentence(path, text, sentence, tmp_path):
    folder = tiny_imagenet(tmp_path)
    (folder / path).write_text(text)
    with pytest.raises(UserError) as error:
        TinyImageNet(root=str(tmp_path)).train  # noqa: B018
    assert sentence in str(error.value) and "\n" not in str(error.value)


# Domains


def domains(root: Path, cls: Any, count: int) -> Path:
    for domain in cls.domains:
        for name in cls.classes:
            for i in range(count):
                path = root / cls.folder / domain / cls.inner / name / f"{i:03d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return root / cls.folder


@pytest.mark.parametrize(
    ("cls", "place", "classes"),
    [
        (PACS, "PACS/sketch/person/000.jpg", 7),
        (OfficeHome, "Office-Home/Real World/Webcam/000.jpg", 65),
        (VLCS, "VLCS/SUN/full/person/000.jpg", 5),
    ],
)
def test_domains_are_split_by_their_places_modulo_ten(cls, place, classes, tmp_path):
    """With 6 images a class, the places 8 and 9 of a domain are images 2 and 3 of the second class, and so on."""
    domains(tmp_path, cls, 6)
    assert (tmp_path / place).is_file()
    data = cls(root=str(tmp_path))
    check_dataset(data)
    assert len(data.domain_names) == 4 and len(data.class_names) == classes
    assert list(data.class_names) == sorted(data.class_names)  # ImageFolder's order
    order = [(label, i) for label in range(classes) for i in range(6)]
    expected = [pair for k, pair in enumerate(order) if k % 10 >= 8]
    for domain in range(4):
        mine = np.flatnonzero(data.test.domains == domain).tolist()
        found = [(int(data.test.labels[k]), int(Path(paths_of(data.test)[k]).stem)) for k in mine]
        assert found == expected
    assert len(data.train) == 4 * (len(order) - len(expected))
    assert not set(paths_of(data.train)) & set(paths_of(data.test))


def test_domains_are_split_by_class_when_asked(tmp_path):
    domains(tmp_path, VLCS, 10)
    data, other = (VLCS(root=str(tmp_path), split="drawn", split_seed=seed) for seed in (0, 1))
    assert data.test.domains is not None
    assert Counter(zip(data.test.domains.tolist(), data.test.labels.tolist(), strict=True)) == {
        (domain, label): 2 for domain in range(4) for label in range(5)
    }
    assert paths_of(data.test) != paths_of(other.test)


def test_a_missing_class_of_a_domain_is_named(tmp_path):
    folder = domains(tmp_path, PACS, 1)
    (folder / "photo/guitar/000.jpg").unlink()
    with pytest.raises(UserError, match=r"photo/guitar is missing or has no image; pacs has images of all 7 classes"):
        PACS(root=str(tmp_path)).train  # noqa: B018


@pytest.mark.parametrize("name", ["tiny", "imagenet", "pacs"])
def test_a_run(name, tmp_path, capsys):
    """From the settings file to the table, with a tiny CLIP of random weights; two classes may share a name."""
    data: dict[str, Any] = {"root": str(tmp_path / "data")}
    if name == "tiny":
        folder = tiny_imagenet(tmp_path / "data")
        (folder / "classnames.txt").write_text(CLASSNAMES.replace("goldfish", "tench"))
        cls = "TinyImageNet"
    elif name == "imagenet":
        for part in ("train", "val"):
            for number, wnid in enumerate(WNIDS):
                paint(tmp_path / f"data/imagenet/images/{part}/{wnid}/a.jpg", number)
                paint(tmp_path / f"data/imagenet/images/{part}/{wnid}/b.jpg", number + 100)
        (tmp_path / "data/imagenet/classnames.txt").write_text(CLASSNAMES.replace("goldfish", "tench"))
        cls = "ImageNet"
    else:
        for i, path in enumerate(sorted(domains(tmp_path / "data", PACS, 3).rglob("*.jpg"))):
            paint(path, i)
        cls = "PACS"
    (tmp_path / "clip.json").write_text(json.dumps(tiny_config("vit")))
    settings = {
        "clip": {"model_config": str(tmp_path / "clip.json"), "pretrained": None},
        "prompt": {"length": 4},
        "data": {"class_path": cls, "init_args": data},
        "partition": {"class_path": "IID"},
        "federation": {"clients": 2, "rounds": 1, "local_epochs": 1, "batch_size": 4},
        "method": {"class_path": "PFedMoAP", "init_args": {"num_experts": 1, "gating_dim": 16, "heads": 2}},
        "features": {"cache_dir": str(tmp_path / "cache")},
        "runtime": {"threads": 1, "accelerator": "cpu"},
        "output": {"dir": str(tmp_path / "runs"), "name": "run"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "settings.yaml")]) == 0, capsys.readouterr().err
    assert (tmp_path / "runs/run/summary.json").is_file()
