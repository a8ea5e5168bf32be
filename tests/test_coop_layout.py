"""The five data sets in CoOp's layout: the split file, the rules that replace it, and a run on each."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torchvision
import yaml
from conftest import tiny_config
from feature_helpers import paths_of
from local_server import serve
from PIL import Image
from scipy.io import savemat

from fedmoe.cli import main
from fedmoe.data import DTD, Caltech101, Flowers102, Food101, OxfordPets
from fedmoe.data.sets.coop_layout import CoopLayout
from fedmoe.errors import UserError

FIVE = (Flowers102, OxfordPets, Food101, Caltech101, DTD)
# CoOp's folder, image folder and split file, as its page DATASETS.md gives them, and two of its class names.
PUBLISHED = {
    Flowers102: (
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        "pink primrose",
        "hard-leaved pocket orchid",
    ),
    OxfordPets: ("oxford_pets", "images", "split_zhou_OxfordPets.json", "abyssinian", "american_bulldog"),
    Food101: ("food-101", "images", "split_zhou_Food101.json", "apple_pie", "baby_back_ribs"),
    Caltech101: ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "face", "leopard"),
    DTD: ("dtd", "images", "split_zhou_DescribableTextures.json", "banded", "blotchy"),
}
# Training, test images and classes in table 5 of the paper.
TABLE_5 = {
    Flowers102: (4093, 2463, 102),
    OxfordPets: (2944, 3669, 37),
    Food101: (50500, 30300, 101),
    Caltech101: (4128, 2465, 100),
    DTD: (2820, 1692, 47),
}


def paint(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(path)


def write_published(root: Path, cls: type[CoopLayout], train: int = 3, test: int = 2) -> Path:
    """A small data set with its split file, as a user has it on disk; two classes."""
    folder, images, split_file, *names = PUBLISHED[cls]
    table: dict[str, list] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(names):
        for part, count in (("train", train), ("val", 1), ("test", test)):
            for i in range(count):
                path = f"{part}_{label}_{i}.jpg" if cls in (Flowers102, OxfordPets) else f"{name}/{part}_{i}.jpg"
                paint(root / folder / images / path, label * 100 + i)
                table[part].append([path, label, name])
    (root / folder / split_file).write_text(json.dumps(table))
    return root / folder / split_file


@pytest.mark.parametrize("cls", FIVE)
def test_a_published_split_is_read_as_it_stands(cls, tmp_path, caplog):
    table = json.loads(write_published(tmp_path, cls).read_text())
    data = cls(root=str(tmp_path))
    images = tmp_path / PUBLISHED[cls][0] / PUBLISHED[cls][1]
    assert data.class_names == PUBLISHED[cls][3:] and data.domain_names == ()
    for part, split in (("train", data.train), ("test", data.test)):
        assert split.labels.tolist() == [label for _, label, _ in table[part]]
        assert list(paths_of(split)) == [str(images / path) for path, _, _ in table[part]]
        for i in range(len(split)):
            with Image.open(paths_of(split)[i]) as expected:
                assert split.image(i).mode == "RGB" and split.image(i).tobytes() == expected.tobytes()
    assert not caplog.records


@pytest.mark.parametrize("cls", FIVE)
def test_published_sizes(cls):
    facts = cls.published
    assert (facts.train, facts.test, facts.classes) == TABLE_5[cls]


@pytest.mark.parametrize("cls", FIVE)
def test_a_run_on_each(cls, tmp_path, capsys):
    """From the settings file to the table, with a tiny CLIP of random weights."""
    write_published(tmp_path / "data", cls, train=5)
    (tmp_path / "clip.json").write_text(json.dumps(tiny_config("vit")))
    settings = {
        "clip": {"model_config": str(tmp_path / "clip.json"), "pretrained": None},
        "prompt": {"length": 4},
        "data": {"class_path": cls.__name__, "init_args": {"root": str(tmp_path / "data"), "shots": 4}},
        "partition": {"class_path": "Pathological"},
        "federation": {"clients": 2, "rounds": 2, "local_epochs": 1, "batch_size": 4},
        "method": {"class_path": "PFedMoAP", "init_args": {"num_experts": 1, "gating_dim": 16, "heads": 2}},
        "features": {"cache_dir": str(tmp_path / "cache")},
        "runtime": {"threads": 1, "accelerator": "cpu"},
        "output": {"dir": str(tmp_path / "runs"), "name": "run"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "settings.yaml")]) == 0, capsys.readouterr().err
    partition = json.loads((tmp_path / "runs/run/partition.json").read_text())
    assert partition["class_names"] == list(PUBLISHED[cls][3:])
    assert sorted(map(sorted, partition["counts_train"])) == [[0, 4], [0, 4]]
    assert sorted(map(sorted, partition["counts_test"])) == [[0, 2], [0, 2]]
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert summary["rounds"] == 2 and 0 <= summary["accuracy"]["mean"] <= 100
    lines = (tmp_path / "runs/run/clients.jsonl").read_text().splitlines()
    assert [json.loads(line)["total"] for line in lines] == [2] * 6  # two clients, before and after each round


@pytest.mark.parametrize("cls", FIVE)
def test_the_shipped_settings_name_the_data_set(cls):
    path = Path(__file__).parents[1] / f"configs/data/{cls.name}.yaml"
    settings = yaml.safe_load(path.read_text())["data"]
    assert settings["class_path"] == cls.__name__ and settings["init_args"]["shots"] == 16
    cls(**settings["init_args"])


def read(tmp_path: Path, change) -> None:
    """Read DTD after ``change`` of its split table, in place or to another value."""
    path = write_published(tmp_path, DTD)
    table = json.loads(path.read_text())
    changed = change(table)
    path.write_text(changed if isinstance(changed, str) else json.dumps(table if changed is None else changed))
    DTD(root=str(tmp_path)).train  # noqa: B018


def entry(part, number, value):
    def change(table):
        table[part][number] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: "", "is not JSON"),
        (lambda table: json.dumps(table)[:-9], "is not JSON"),
        (lambda table: "[" * 100_000, "is not JSON"),
        (lambda table: [1], "holds a list; valid is an object"),
        (
            lambda table: table.pop("val") and None,
            "has no 'val'; valid is an object with the lists train, val and test",
        ),
        (lambda table: table.update(test={}), "has an object as 'test'"),
        (entry("train", 1, ["a.jpg", 0]), "entry 1 of 'train', is [\"a.jpg\", 0]; valid is [path, label, class name]"),
        (entry("train", 0, ["a.jpg", "0", "banded"]), "entry 0 of 'train', is"),
        (entry("train", 0, ["a.jpg", True, "banded"]), "entry 0 of 'train', is"),
        (entry("test", 0, "ab0"), "entry 0 of 'test', is"),
        (
            entry("val", 0, ["../secret.jpg", 0, "banded"]),
            "the path '../secret.jpg', which is not below the image folder",
        ),
        (entry("train", 0, ["banded/../../secret.jpg", 0, "banded"]), "is not below the image folder"),
        (entry("train", 0, ["banded\\..\\..\\secret.jpg", 0, "banded"]), "is not below the image folder"),
        (entry("train", 0, ["/etc/secret.jpg", 0, "banded"]), "the path '/etc/secret.jpg', which is not below"),
        (entry("train", 0, ["C:\\secret.jpg", 0, "banded"]), "is not below the image folder"),
        (entry("train", 0, ["", 0, "banded"]), "is not below the image folder"),
        (entry("train", 0, ["a.jpg", -1, "banded"]), "has the label -1; valid is an integer of at least 0"),
        (entry("train", 0, ["a.jpg", 0, " "]), "has an empty class name"),
        (entry("train", 1, ["a.jpg", 0, "blotchy"]), "calls label 0 'blotchy', but it is 'banded' before"),
        (entry("test", 0, ["a.jpg", 2, "banded"]), "gives class 'banded' the label 2, but it has 0 before"),
        (entry("test", 0, ["a.jpg", 3, "dotted"]), "has 3 classes with labels up to 3, but none with label 2"),
        (
            entry("test", 0, ["banded/train_0.jpg", 0, "banded"]),
            "lists 'banded/train_0.jpg', which 'train' lists before",
        ),
    ],
)
def test_a_faulty_split_file_is_named(change, sentence, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, change)
    message = str(error.value)
    assert sentence in message and "split_zhou_DescribableTextures.json" in message and "\n" not in message


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError) as error:
        Caltech101(root=str(tmp_path / "nowhere")).train  # noqa: B018
    for part in ("data.root", "caltech-101/101_ObjectCategories", f"exists is {tmp_path})", "data.download=true"):
        assert part in str(error.value)
    path = write_published(tmp_path, DTD)
    (path.parent / "images").rename(path.parent / "pictures")
    with pytest.raises(UserError, match=r"there is no folder .*dtd/images"):
        DTD(root=str(tmp_path)).train  # noqa: B018


def folders(root: Path, cls: type[CoopLayout], counts: dict[str, int]) -> None:
    """Images without a split file, in folders."""
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            paint(root / PUBLISHED[cls][0] / PUBLISHED[cls][1] / name / f"image_{i:04d}.jpg", number * 100 + i)


def in_parts(data: CoopLayout, folder: Path) -> dict[str, list]:
    """What the built split puts where, by the file it writes."""
    return json.loads((folder / data.split_file).read_text())


def test_a_missing_split_of_folders_is_built_by_the_rules(tmp_path, caplog):
    """Of n images round(0.5 n) train and round(0.2 n) validate: of 10, 7 and 4 images 5, 4, 2 and 2, 1, 1."""
    folders(tmp_path, DTD, {"zigzagged": 10, "banded": 7, "dotted": 4})
    data = DTD(root=str(tmp_path))
    assert data.class_names == ("banded", "dotted", "zigzagged")
    assert np.bincount(data.train.labels).tolist() == [4, 2, 5]
    assert np.bincount(data.test.labels).tolist() == [2, 1, 3]
    assert not set(paths_of(data.train)) & set(paths_of(data.test))
    assert all(
        f"/{data.class_names[label]}/" in path
        for path, label in zip(paths_of(data.train), data.train.labels, strict=True)
    )
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    message = caplog.records[0].getMessage()
    for part in ("split_zhou_DescribableTextures.json is missing", "data.split_seed 0", "11 train, 4 val, 6 test"):
        assert part in message
    assert not (tmp_path / "dtd" / data.split_file).exists()


def test_the_built_split_depends_on_its_seed_alone(tmp_path):
    folders(tmp_path, Food101, {"apple_pie": 20, "sushi": 20})
    first, again, other = (Food101(root=str(tmp_path), split_seed=seed) for seed in (0, 0, 1))
    assert first.train.paths == paths_of(again.train) != other.train.paths
    assert first.cache_key() == again.cache_key() != other.cache_key()
    for data in (first, other):
        assert np.bincount(data.train.labels).tolist() == [10, 10] and np.bincount(data.test.labels).tolist() == [6, 6]


def test_the_built_split_is_written_when_asked(tmp_path, caplog):
    folders(tmp_path, Food101, {"apple_pie": 10, "sushi": 10})
    built = Food101(root=str(tmp_path), write_split=True)
    expected = [(path, int(label)) for path, label in zip(paths_of(built.train), built.train.labels, strict=True)]
    table = in_parts(built, tmp_path / "food-101")
    assert {part: len(table[part]) for part in ("train", "val", "test")} == {"train": 10, "val": 4, "test": 6}
    listed = [path for part in ("train", "val", "test") for path, _, _ in table[part]]
    assert sorted(listed) == sorted(f"{name}/image_{i:04d}.jpg" for name in ("apple_pie", "sushi") for i in range(10))
    assert "it is written there" in caplog.text
    caplog.clear()
    again = Food101(root=str(tmp_path), split_seed=5)  # the file counts now, not the seed
    assert [
        (path, int(label)) for path, label in zip(paths_of(again.train), again.train.labels, strict=True)
    ] == expected
    assert not caplog.records


def test_too_few_images_for_the_rules(tmp_path):
    folders(tmp_path, DTD, {"banded": 10, "dotted": 2})
    with pytest.raises(
        UserError, match=r"class 'dotted' has 2 images, too few .* valid is at least 4, or a split file"
    ):
        DTD(root=str(tmp_path)).train  # noqa: B018


def test_caltech_leaves_out_two_folders_and_renames_four(tmp_path):
    names = ["airplanes", "Motorbikes", "BACKGROUND_Google", "Faces", "accordion", "Faces_easy", "Leopards", "yin_yang"]
    folders(tmp_path, Caltech101, dict.fromkeys(names, 4))
    data = Caltech101(root=str(tmp_path))
    assert data.class_names == ("face", "leopard", "motorbike", "accordion", "airplane", "yin_yang")
    used = {Path(path).parent.name for split in (data.train, data.test) for path in paths_of(split)}
    assert used == {"Faces", "Leopards", "Motorbikes", "accordion", "airplanes", "yin_yang"}


def pets(root: Path, lists: dict[str, list[str]]) -> None:
    for part, lines in lists.items():
        path = root / "oxford_pets/annotations" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    for line in {line.split(" ")[0] for lines in lists.values() for line in lines}:
        paint(root / "oxford_pets/images" / f"{line}.jpg")


PETS = {
    "trainval": [f"Abyssinian_{i} 1 1 1" for i in range(10)] + [f"american_bulldog_{i} 2 2 1" for i in range(5)],
    "test": [f"american_bulldog_{i} 2 2 1" for i in range(5, 9)] + ["Abyssinian_20 1 1 1"],
}


def test_pets_split_is_built_from_the_annotations(tmp_path):
    pets(tmp_path, PETS)
    data = OxfordPets(root=str(tmp_path), write_split=True)
    assert data.class_names == ("abyssinian", "american_bulldog")
    assert np.bincount(data.train.labels).tolist() == [8, 4] and np.bincount(data.test.labels).tolist() == [1, 4]
    table = in_parts(data, tmp_path / "oxford_pets")
    assert Counter(label for _, label, _ in table["val"]) == {0: 2, 1: 1}
    assert [Path(path).stem for path in paths_of(data.test)] == [line.split(" ")[0] for line in PETS["test"]]
    trained = [path for part in ("train", "val") for path, _, _ in table[part]]
    assert sorted(trained) == sorted(line.split(" ")[0] + ".jpg" for line in PETS["trainval"])


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ({"test": PETS["test"]}, "trainval.txt cannot be read (No such file"),
        ({**PETS, "test": ["Abyssinian_20 1 1"]}, "test.txt, line 1, is 'Abyssinian_20 1 1'; valid is"),
        ({**PETS, "trainval": ["Abyssinian 1 1 1"]}, "trainval.txt, line 1, is"),
        ({**PETS, "trainval": ["Abyssinian_1 0 1 1"]}, "trainval.txt, line 1, is"),
        ({**PETS, "trainval": ["Abyssinian_1 1 1 1"]}, "lists 1 images of class 'abyssinian', too few"),
        ({**PETS, "test": ["../../x_1 1 1 1"]}, "is not below the image folder"),
    ],
)
def test_faulty_annotations_of_pets_are_named(lists, sentence, tmp_path):
    pets(tmp_path, lists)
    data = OxfordPets(root=str(tmp_path), write_split=True)
    with pytest.raises(UserError) as error:
        data.train  # noqa: B018
    assert sentence in str(error.value)
    assert not (tmp_path / "oxford_pets" / data.split_file).exists()


def flowers(root: Path, labels: list[int], names: dict[str, str] | None) -> Path:
    folder = root / "oxford_flowers"
    for i in range(len(labels)):
        paint(folder / "jpg" / f"image_{i + 1:05d}.jpg", i)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    if names is not None:
        (folder / "cat_to_name.json").write_text(json.dumps(names))
    return folder


def test_flowers_split_is_built_from_the_label_file(tmp_path):
    labels = [2, 1] * 5 + [1] * 4 + [2]
    flowers(tmp_path, labels, {"2": "rose", "1": "daisy", "3": "not used"})
    data = Flowers102(root=str(tmp_path))
    assert data.class_names == ("daisy", "rose")
    # Of 9 daisies round(4.5) = 4 are for training, half to even, and round(1.8) = 2 for validation; of 6 roses 3 and 1.
    assert np.bincount(data.train.labels).tolist() == [4, 3] and np.bincount(data.test.labels).tolist() == [3, 2]
    for split in (data.train, data.test):
        numbers = [int(Path(path).stem.removeprefix("image_")) for path in paths_of(split)]
        assert [labels[number - 1] - 1 for number in numbers] == split.labels.tolist()


def test_flowers_have_torchvisions_names_without_a_file_of_names(tmp_path, caplog):
    flowers(tmp_path, [1] * 5 + [2] * 5, None)
    assert Flowers102(root=str(tmp_path)).class_names == ("pink primrose", "hard-leaved pocket orchid")
    assert "cat_to_name.json is missing: class names are torchvision's" in caplog.text


def test_faulty_files_of_flowers_are_named(tmp_path):
    folder = flowers(tmp_path, [1] * 5 + [3] * 5, {"1": "daisy", "2": "tulip", "3": "rose"})
    with pytest.raises(UserError, match="2 classes with labels up to 2, but none with label 1"):
        Flowers102(root=str(tmp_path)).train  # noqa: B018
    (folder / "cat_to_name.json").write_text('{"1": "daisy"}')
    with pytest.raises(UserError, match=r"imagelabels\.mat has the label 3, which has no class name"):
        Flowers102(root=str(tmp_path)).train  # noqa: B018
    (folder / "cat_to_name.json").write_text("[]")
    with pytest.raises(UserError, match=r"cat_to_name\.json cannot be used"):
        Flowers102(root=str(tmp_path)).train  # noqa: B018
    (folder / "imagelabels.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(UserError, match=r"imagelabels\.mat has no readable 'labels'"):
        Flowers102(root=str(tmp_path)).train  # noqa: B018
    (folder / "imagelabels.mat").unlink()
    with pytest.raises(UserError, match=r"imagelabels\.mat is missing"):
        Flowers102(root=str(tmp_path)).train  # noqa: B018


@pytest.mark.parametrize(
    ("cls", "place"),
    [
        (Flowers102, "flowers-102"),
        (OxfordPets, "oxford-iiit-pet"),
        (Caltech101, "caltech101"),
        (DTD, "dtd/dtd"),
    ],
)
def test_torchvisions_folders_are_found(cls, place, tmp_path):
    path = write_published(tmp_path / "given", cls)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    path.parent.rename(tmp_path / place)
    assert cls(root=str(tmp_path)).train.paths[0].startswith(str(tmp_path / place))


def test_download_by_torchvision(tmp_path, monkeypatch):
    """torchvision's own download, from this machine."""
    folders(tmp_path / "made", DTD, {"banded": 10, "dotted": 10})
    for part in ("train", "val", "test"):  # torchvision reads its own lists when it is done
        path = tmp_path / "made/dtd/labels" / f"{part}1.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("banded/image_0000.jpg\n")
    archive = tmp_path / "offered/dtd.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made/dtd", "dtd")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", md5(archive.read_bytes()).hexdigest())
    with serve(archive.parent) as address:
        monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{address}/dtd.tar.gz")
        data = DTD(root=str(tmp_path / "data"), download=True)
        assert len(data.train) == 10 and len(data.test) == 6
    assert Path(paths_of(data.train)[0]).is_file()
    assert len(DTD(root=str(tmp_path / "data"), download=True).train) == 10  # there is no server any more


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(tmp_path) as address:
        monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{address}/nothing.tar.gz")
        with pytest.raises(UserError) as error:
            DTD(root=str(tmp_path / "data"), download=True).train  # noqa: B018
    assert "torchvision could not download DTD" in str(error.value) and "\n" not in str(error.value)
    assert "404" in str(error.value)


def test_the_cache_key_follows_the_files(tmp_path):
    path = write_published(tmp_path, DTD)
    first = DTD(root=str(tmp_path)).cache_key()
    assert DTD(root=str(tmp_path)).cache_key() == first
    paint(path.parent / "images/banded/train_0.jpg", 999)
    changed = DTD(root=str(tmp_path)).cache_key()
    assert changed != first
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "train": table["train"][::-1]}))
    assert DTD(root=str(tmp_path)).cache_key() not in (first, changed)
