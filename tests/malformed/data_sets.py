"""Small whole data sets on disk, one of each kind that fedmoe reads, to be spoilt by the tests."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

TEXTURES = ("banded", "blotchy")
OBJECTS = (
    "back_pack", "bike", "calculator", "headphones", "keyboard", "laptop_computer", "monitor", "mouse", "mug",
    "projector",
)  # fmt: skip
SPLIT = "data/dtd/split_zhou_DescribableTextures.json"
LIST = "data/office_caltech_10/amazon_train.pkl"
BATCH = "data/cifar-10-batches-py/data_batch_1"
PETS = "data/oxford_pets/annotations/trainval.txt"
LABELS = "data/oxford_flowers/imagelabels.mat"
NAMES = "data/oxford_flowers/cat_to_name.json"


def paint(path: Path, number: int = 0) -> None:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def table() -> dict[str, list[Any]]:
    """The contents of CoOp's split file: two classes of 3 training images, 1 for validation, 2 for tests."""
    counts = {"train": 3, "val": 1, "test": 2}
    return {
        part: [[f"{name}/{part}_{i}.png", label, name] for label, name in enumerate(TEXTURES) for i in range(count)]
        for part, count in counts.items()
    }


def write_dtd(root: Path) -> None:
    for part, rows in table().items():
        for i, (path, *_) in enumerate(rows):
            paint(root / "dtd" / "images" / path, hash((part, i)) % 1000)
    (root / Path(SPLIT).relative_to("data")).write_text(json.dumps(table()))


def listed(domain: str = "amazon", part: str = "train", count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The contents of one of FedBN's lists."""
    rows = [(f"office_caltech_10/{domain}/{name}/{part}_{i}.jpg", name) for name in OBJECTS for i in range(count)]
    return np.array([path for path, _ in rows]), np.array([name for _, name in rows])


def write_office(root: Path) -> None:
    (root / "office_caltech_10").mkdir(parents=True)
    for domain in ("amazon", "caltech", "dslr", "webcam"):
        for part in ("train", "test"):
            path = root / "office_caltech_10" / f"{domain}_{part}.pkl"
            path.write_bytes(pickle.dumps(listed(domain, part)))


def batch(count: int = 20) -> dict[str, Any]:
    """The contents of a batch of CIFAR-10."""
    data = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, "labels": [i % 10 for i in range(count)]}


def write_cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch()))


def write_pets(root: Path) -> None:
    (root / "oxford_pets" / "images").mkdir(parents=True)
    (root / "oxford_pets" / "annotations").mkdir()
    for part, count in (("trainval", 10), ("test", 4)):
        rows = [
            f"{name}_{part}{i} {label} 1 1" for label, name in ((1, "Abyssinian"), (2, "Bengal")) for i in range(count)
        ]
        (root / "oxford_pets" / "annotations" / f"{part}.txt").write_text("\n".join(rows) + "\n")


def write_flowers(root: Path) -> None:
    (root / "oxford_flowers" / "jpg").mkdir(parents=True)
    savemat(root / "oxford_flowers" / "imagelabels.mat", {"labels": np.array([[1] * 10 + [2] * 10], dtype=np.uint8)})
    (root / "oxford_flowers" / "cat_to_name.json").write_text('{"1": "rose", "2": "tulip"}')


def write_folder(root: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(6):
            paint(root / name / f"{i}.png", i)


def idx(values: np.ndarray) -> bytes:
    """The contents of a file in MNIST's format."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(root: Path) -> None:
    (root / "mnist").mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (root / "mnist" / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 28, 28), dtype=np.uint8)))
        (root / "mnist" / f"{prefix}-labels-idx1-ubyte").write_bytes(idx((np.arange(20) % 10).astype(np.uint8)))


def write_saved(root: Path) -> None:
    """What Hugging Face's library saves; it takes a second to import."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)) for i in range(12)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 6}, features=features)
    rows.save_to_disk(str(root))


@dataclass(frozen=True)
class Kind:
    """A kind of data set: how to write it to the folder data, and how to name it."""

    write: Callable[[Path], None]
    args: tuple[str, ...]


KINDS = {
    "cifar": Kind(write_cifar, ("--data=CIFAR10", "--data.root=data")),
    "dtd": Kind(write_dtd, ("--data=DTD", "--data.root=data")),
    "pets": Kind(write_pets, ("--data=OxfordPets", "--data.root=data")),
    "flowers": Kind(write_flowers, ("--data=Flowers102", "--data.root=data")),
    "office": Kind(write_office, ("--data=OfficeCaltech10", "--data.root=data")),
    "folder": Kind(write_folder, ("--data=ImageFolder", "--data.root=data")),
    "mnist": Kind(write_mnist, ("--data=MNIST", "--data.root=data")),
    "saved": Kind(write_saved, ("--data=HuggingFace", "--data.root=data")),
}
