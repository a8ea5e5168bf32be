"""EuroSAT, UCF101, SUN397, StanfordCars and FGVCAircraft in CoOp's layout: split files, lists, names and captions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from feature_helpers import paths_of
from image_helpers import inside, paint
from scipy.io import savemat

from fedmoe.data import (
    DTD,
    SUN397,
    UCF101,
    Caltech101,
    EuroSAT,
    FGVCAircraft,
    Flowers102,
    Food101,
    OxfordPets,
    StanfordCars,
)
from fedmoe.data.check import check
from fedmoe.errors import UserError


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
