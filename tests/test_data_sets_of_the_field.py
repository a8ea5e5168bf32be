"""Data sets of CoOp's page and of work on domains, on small files in their layouts: splits, names, labels, captions."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import tiny_config
from feature_helpers import paths_of
from PIL import Image
from scipy.io import savemat

from fedmoe.cli import main
from fedmoe.data import (
    DTD,
    PACS,
    SUN397,
    UCF101,
    VLCS,
    Caltech101,
    EuroSAT,
    FGVCAircraft,
    Flowers102,
    Food101,
    ImageNet,
    ImageNetA,
    ImageNetR,
    ImageNetSketch,
    ImageNetV2,
    OfficeHome,
    OxfordPets,
    StanfordCars,
    TinyImageNet,
)
from fedmoe.data.base import check_dataset
from fedmoe.data.check import check
from fedmoe.errors import UserError


def paint(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value % 256, dtype=np.uint8)).save(path)


def inside(split: Any, folder: Path) -> list[str]:
    """The paths of a split's images, below a folder."""
    return [str(Path(path).relative_to(folder)) for path in paths_of(split)]


# CoOp's split files


@pytest.mark.parametrize(
    ("cls", "folder", "images", "split_file", "path"),
    [
        (EuroSAT, "eurosat", "2750", "split_zhou_EuroSAT.json", "River/River_{}.jpg"),
        (UCF101, "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "Yo_Yo/v_YoYo_g01_c0{}.jpg"),
        (SUN397, "sun397", "SUN397", "split_zhou_SUN397.json", "a/abbey/sun_{}.jpg"),
        (StanfordCars, "stanford_cars", "", "split_zhou_StanfordCars.json", "cars_train/0000{}.jpg"),
    ],
)
def test_split_files_are_found(cls, folder, images, split_file, path, tmp_path):
    rows = [[path.format(i), 0, "name"] for i in range(3)]
    for row in rows:
        paint(tmp_path / folder / images / row[0])
    table = dict(zip(("train", "val", "test"), ([row] for row in rows), strict=True))
    (tmp_path / folder / split_file).write_text(json.dumps(table))
    data = cls(root=str(tmp_path))
    assert data.class_names == ("name",)
    assert paths_of(data.train) == [str(tmp_path / folder / images / rows[0][0])]
    assert paths_of(data.test) == [str(tmp_path / folder / images / rows[2][0])]
    assert "Files: all 2 are there" in check(data).text


@pytest.mark.parametrize(
    ("cls", "caption"),
    [  # trainers/zsclip.py of CoOp's repository
        (OxfordPets, "a photo of a {class}, a type of pet."),
        (Flowers102, "a photo of a {class}, a type of flower."),
        (FGVCAircraft, "a photo of a {class}, a type of aircraft."),
        (DTD, "{class} texture."),
        (EuroSAT, "a centered satellite photo of {class}."),
        (Food101, "a photo of {class}, a type of food."),
        (UCF101, "a photo of a person doing {class}."),
        (StanfordCars, "a photo of a {class}."),
        (SUN397, "a photo of a {class}."),
        (Caltech101, "a photo of a {class}."),
    ],
)
def test_coops_captions_are_an_option(cls, caption):
    assert cls().template == "a photo of a {class}."
    assert cls(captions="coop").template == caption


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


def test_eurosats_classes_have_coops_names(tmp_path):
    folders = ["SeaLake", "AnnualCrop", "Highway"]
    for name in folders:
        for i in range(10):
            paint(tmp_path / f"eurosat/2750/{name}/{name}_{i}.jpg")
    data = EuroSAT(root=str(tmp_path))
    assert data.class_names == ("Annual Crop Land", "Highway or Road", "Sea or Lake")
    assert np.bincount(data.train.labels).tolist() == [5, 5, 5] and np.bincount(data.test.labels).tolist() == [3, 3, 3]


def test_the_split_of_ucf_is_built_from_its_lists(tmp_path):
    lists = tmp_path / "ucf101/ucfTrainTestlist"
    lists.mkdir(parents=True)
    (tmp_path / "ucf101/UCF-101-midframes").mkdir()
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n")
    train = [f"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c0{i}.avi 1" for i in range(5)]
    (lists / "trainlist01.txt").write_text("\n".join(train + [f"YoYo/v_YoYo_g08_c{i}.avi 2" for i in range(10)]))
    (lists / "testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\nApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n")
    data = UCF101(root=str(tmp_path))
    assert data.class_names == ("Apply_Eye_Makeup", "Yo_Yo")
    assert np.bincount(data.train.labels).tolist() == [4, 8]  # a fifth of 5 and of 10 is for validation
    images = tmp_path / "ucf101/UCF-101-midframes"
    expected = ["Yo_Yo/v_YoYo_g01_c01.jpg", "Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg"]
    assert inside(data.test, images) == expected and data.test.labels.tolist() == [1, 0]
    assert set(inside(data.train, images)) < {
        re.sub(r"^(ApplyEyeMakeup|YoYo)/(.*)\.avi.*", lambda m: f"{NAMES[m[1]]}/{m[2]}.jpg", line)
        for line in (lists / "trainlist01.txt").read_text().splitlines()
    }


NAMES = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "YoYo": "Yo_Yo"}


def test_the_split_of_sun_is_built_from_its_lists(tmp_path):
    folder = tmp_path / "sun397"
    (folder / "SUN397").mkdir(parents=True)
    (folder / "ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n")
    train = [f"/a/abbey/sun_{i}.jpg" for i in range(5)]
    train += [f"/a/apartment_building/outdoor/sun_{i}.jpg" for i in range(5)]
    (folder / "Training_01.txt").write_text("\n".join(train))
    (folder / "Testing_01.txt").write_text("/a/apartment_building/outdoor/sun_9.jpg\n/a/abbey/sun_9.jpg\n")
    data = SUN397(root=str(tmp_path))
    assert data.class_names == ("abbey", "outdoor apartment_building")
    assert np.bincount(data.train.labels).tolist() == [4, 4]
    assert inside(data.test, folder / "SUN397") == ["a/apartment_building/outdoor/sun_9.jpg", "a/abbey/sun_9.jpg"]
    assert data.test.labels.tolist() == [1, 0]


def test_the_split_of_cars_is_built_from_its_files(tmp_path):
    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Tesla Model S 2012"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names[None]})

    def annotate(path: Path, rows: list[tuple[str, int]]) -> None:
        kind = [("bbox_x1", object), ("class", object), ("fname", object)]
        savemat(path, {"annotations": np.array([[(1, label, file) for file, label in rows]], dtype=kind)})

    annotate(folder / "devkit/cars_train_annos.mat", [(f"{i:05d}.jpg", 1 + i % 2) for i in range(10)])
    annotate(folder / "cars_test_annos_withlabels.mat", [("00002.jpg", 2), ("00001.jpg", 1)])
    data = StanfordCars(root=str(tmp_path))
    assert data.class_names == ("2000 AM General Hummer SUV", "2012 Tesla Model S")
    assert np.bincount(data.train.labels).tolist() == [4, 4]
    for path, label in zip(inside(data.train, folder), data.train.labels, strict=True):
        assert re.fullmatch(r"cars_train/0000\d\.jpg", path) and int(Path(path).stem) % 2 == label
    assert inside(data.test, folder) == ["cars_test/00002.jpg", "cars_test/00001.jpg"]
    assert data.test.labels.tolist() == [1, 0]
    annotate(folder / "cars_test_annos_withlabels.mat", [("00002.jpg", 3), ("1.jpg", 1)])
    with pytest.raises(UserError, match=r"annotation 0, has the class 3, but cars_meta\.mat names 2; valid is 1 to 2"):
        StanfordCars(root=str(tmp_path)).train  # noqa: B018
    (folder / "devkit/cars_meta.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(UserError, match=r"cars_meta\.mat has no readable 'class_names'"):
        StanfordCars(root=str(tmp_path)).train  # noqa: B018


def aircraft(root: Path) -> Path:
    folder = root / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("737-200\nF/A-18\nDC-3 Dakota\n")
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{number}00000{i} {name}" for i, name in enumerate(("DC-3 Dakota", "737-200", "F/A-18"))]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_aircraft(tmp_path):
    folder = aircraft(tmp_path)
    data = FGVCAircraft(root=str(tmp_path))
    assert data.class_names == ("737-200", "F/A-18", "DC-3 Dakota")
    assert inside(data.train, folder / "images") == ["0000000.jpg", "0000001.jpg", "0000002.jpg"]
    assert inside(data.test, folder / "images") == ["2000000.jpg", "2000001.jpg", "2000002.jpg"]
    assert data.train.labels.tolist() == data.test.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("cls", "path", "text", "sentence"),
    [
        (FGVCAircraft, "fgvc_aircraft/images_variant_test.txt", "1 737-20\n", "did you mean '737-200'"),
        (FGVCAircraft, "fgvc_aircraft/images_variant_test.txt", "../../x 737-200\n", "not below the image folder"),
        (FGVCAircraft, "fgvc_aircraft/images_variant_train.txt", None, "cannot be read (No such file"),
        (FGVCAircraft, "fgvc_aircraft/variants.txt", b"\xff\xfe", "cannot be read"),
        (UCF101, "ucf101/ucfTrainTestlist/classInd.txt", "one ApplyEyeMakeup\n", "line 1, is 'one ApplyEyeMakeup'"),
        (UCF101, "ucf101/ucfTrainTestlist/trainlist01.txt", "YoYo/../../x.avi 1\n", "line 1, is"),
        (UCF101, "ucf101/ucfTrainTestlist/trainlist01.txt", "YooYo/x.avi 1\n", "did you mean 'YoYo'"),
        (SUN397, "sun397/ClassName.txt", "abbey\n", "line 1, is 'abbey'; valid is a path such as '/a/abbey'"),
        (SUN397, "sun397/Training_01.txt", "/a/abbeey/x.jpg\n", "did you mean 'a/abbey'"),
        (SUN397, "sun397/Testing_01.txt", "/a/abbey/../x.jpg\n", "which ClassName.txt does not list"),
    ],
)
def test_faulty_lists_are_one_sentence(cls, path, text, sentence, tmp_path):
    aircraft(tmp_path)
    for name, content in {
        "ucf101/ucfTrainTestlist/classInd.txt": "1 YoYo\n",
        "ucf101/ucfTrainTestlist/trainlist01.txt": "YoYo/a.avi 1\nYoYo/b.avi 1\nYoYo/c.avi 1\n",
        "ucf101/ucfTrainTestlist/testlist01.txt": "YoYo/d.avi\n",
        "sun397/ClassName.txt": "/a/abbey\n",
        "sun397/Training_01.txt": "/a/abbey/1.jpg\n/a/abbey/2.jpg\n/a/abbey/3.jpg\n",
        "sun397/Testing_01.txt": "/a/abbey/4.jpg\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "ucf101/UCF-101-midframes").mkdir()
    (tmp_path / "sun397/SUN397").mkdir()
    assert len(cls(root=str(tmp_path)).train) > 0
    if text is None:
        (tmp_path / path).unlink()
    else:
        (tmp_path / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        cls(root=str(tmp_path)).train  # noqa: B018
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_download_that_torchvision_does_not_offer(tmp_path):
    with pytest.raises(UserError, match=r"torchvision does not download ucf101; valid is false"):
        UCF101(root=str(tmp_path), download=True).train  # noqa: B018


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
