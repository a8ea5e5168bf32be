"""CIFAR-10 and CIFAR-100 in the layout that torchvision keeps them in (table 2 of the paper).

The batches are pickles, and ``safe_pickle`` reads them: torchvision's own reader would run whatever they contain. It is
used to download. The images stay in their files, which the operating system maps into memory page by page.

Shape letters: n examples.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fedmoe.data.base import DataSet, PublishedFacts, RawData, Split
from fedmoe.data.sets.coop_images import download_error
from fedmoe.data.sets.image_files import find_folder
from fedmoe.errors import UserError
from fedmoe.readers.array_pickle import load_arrays

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_ROW = 3 * 32 * 32  # bytes of an image: red, green, blue, each row by row
_COARSE_CLASSES = (  # of CIFAR-100, in the order of its coarse_label_names
    ("aquatic mammals", "beaver dolphin otter seal whale"),
    ("fish", "aquarium_fish flatfish ray shark trout"),
    ("flowers", "orchid poppy rose sunflower tulip"),
    ("food containers", "bottle bowl can cup plate"),
    ("fruit and vegetables", "apple mushroom orange pear sweet_pepper"),
    ("household electrical devices", "clock keyboard lamp telephone television"),
    ("household furniture", "bed chair couch table wardrobe"),
    ("insects", "bee beetle butterfly caterpillar cockroach"),
    ("large carnivores", "bear leopard lion tiger wolf"),
    ("large man-made outdoor things", "bridge castle house road skyscraper"),
    ("large natural outdoor scenes", "cloud forest mountain plain sea"),
    ("large omnivores and herbivores", "camel cattle chimpanzee elephant kangaroo"),
    ("medium-sized mammals", "fox porcupine possum raccoon skunk"),
    ("non-insect invertebrates", "crab lobster snail spider worm"),
    ("people", "baby boy girl man woman"),
    ("reptiles", "crocodile dinosaur lizard snake turtle"),
    ("small mammals", "hamster mouse rabbit shrew squirrel"),
    ("trees", "maple_tree oak_tree palm_tree pine_tree willow_tree"),
    ("vehicles 1", "bicycle bus motorcycle pickup_truck train"),
    ("vehicles 2", "lawn_mower rocket streetcar tank tractor"),
)


def _coarse(classes: tuple[str, ...], groups: tuple[tuple[str, str], ...]) -> tuple[int, ...]:
    """The group of each class."""
    group = {name: number for number, (_, members) in enumerate(groups) for name in members.split()}
    return tuple(group[name] for name in classes)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Cifar(DataSet):
    """What CIFAR-10 and CIFAR-100 share.

    Raises:
        UserError: on reading: files are missing, are no batches of CIFAR, or could not be downloaded.
    """

    root: str = "data"
    """Folder that holds the data set's folder, as torchvision extracts it."""
    download: bool = False
    """Where the folder is missing, download it to root."""
    preprocessing: Literal["clip", "released"] = "clip"
    """clip: CLIP's own preprocessing; released: as the paper's code does, scaled by the data set's mean and standard
    deviation, then resized to CLIP's input size (bilinear)."""

    folder: ClassVar[str]
    batches: ClassVar[dict[str, tuple[str, ...]]]
    meta: ClassVar[tuple[str, str]]  # file with the class names, and their key
    label_key: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]

    def _read(self) -> RawData:
        if self.download and not os.path.isdir(Path(self.root).expanduser() / self.folder):
            _download(type(self).__name__, Path(self.root).expanduser())
        hint = "" if self.download else "; data.download=true fetches it"
        folder = find_folder(self.root, self.folder, f"{self.folder}/ as torchvision extracts it{hint}")
        missing = [name for names in self.batches.values() for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} has no file {missing[0]!r}; valid is {self.name}'s Python version, with the files "
                f"{', '.join(name for names in self.batches.values() for name in names)}."
            )
        self._check_meta(folder)
        train, test = (
            _read_batches([folder / name for name in names], self.label_key) for names in self.batches.values()
        )
        return RawData(self.classes, (), train, test)

    def _check_meta(self, folder: Path) -> None:
        """Refuse a folder whose own list of class names is another one: its labels would mean something else."""
        path = folder / self.meta[0]
        if not path.is_file():
            return
        content = load_arrays(path)
        names = _get(content, self.meta[1]) if isinstance(content, dict) else None
        names = (
            [name.decode() if isinstance(name, bytes) else name for name in names] if isinstance(names, list) else None
        )
        if names != list(self.classes):
            raise UserError(f"{path} does not list the class names of {self.name} under {self.meta[1]!r}.")

    def _source_key(self) -> str:
        digest = hashlib.blake2b(digest_size=12)
        for split in (self._raw.train, self._raw.test):
            images = split.image
            assert isinstance(images, _CifarImages)
            for batch in images.batches:
                digest.update(batch.rows().data)
        return f"{self.name} {digest.hexdigest()}"

    def transform(self, clip_preprocess: Callable[[Image.Image], Tensor]) -> Callable[[Image.Image], Tensor]:
        if self.preprocessing == "clip":
            return clip_preprocess
        from PIL import Image
        from torchvision import transforms

        size = list(clip_preprocess(Image.new("RGB", (32, 32))).shape[-2:])  # the input that CLIP expects
        return transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(self.mean, self.std), transforms.Resize(size, antialias=True)]
        )

    def transform_key(self) -> str:
        return self.preprocessing if self.preprocessing == "clip" else f"released {self.mean} {self.std} bilinear"


@dataclass(frozen=True, eq=False, kw_only=True)
class CIFAR10(_Cifar):
    """CIFAR-10: 10 classes, 32 x 32 pixels, in ``<root>/cifar-10-batches-py/``."""

    name = "cifar10"
    folder = "cifar-10-batches-py"
    batches = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}  # noqa: RUF012
    meta = ("batches.meta", "label_names")
    label_key = "labels"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    published = PublishedFacts(train=50000, test=10000, classes=10)


@dataclass(frozen=True, eq=False, kw_only=True)
class CIFAR100(_Cifar):
    """CIFAR-100: 100 (fine) classes, 32 x 32 pixels, in ``<root>/cifar-100-python/``."""

    name = "cifar100"
    folder = "cifar-100-python"
    batches = {"train": ("train",), "test": ("test",)}  # noqa: RUF012
    meta = ("meta", "fine_label_names")
    label_key = "fine_labels"
    classes = (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
        "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
        "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
        "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
        "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
        "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
        "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
        "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
        "willow_tree", "wolf", "woman", "worm",
    )  # fmt: skip
    coarse = _coarse(classes, _COARSE_CLASSES)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    published = PublishedFacts(train=50000, test=10000, classes=100)


@dataclass(frozen=True, eq=False)
class _Batch:
    """The images of one file: where they begin in it, or the images themselves if they are not in one piece there."""

    path: str
    count: int
    offset: int = -1
    memory: np.ndarray | None = None  # [n, 3072] uint8

    def rows(self) -> np.ndarray:
        """All images [n, 3072] uint8, not to be written to."""
        if self.memory is not None:
            return self.memory
        if not self.count:
            return np.zeros((0, _ROW), dtype=np.uint8)
        return np.memmap(self.path, np.uint8, mode="r", offset=self.offset, shape=(self.count, _ROW))


@dataclass(frozen=True, eq=False)
class _CifarImages:
    """The image function of a split. Small enough to be sent to worker processes."""

    batches: tuple[_Batch, ...]
    ends: np.ndarray  # number of images up to and including each batch

    def __call__(self, i: int) -> Image.Image:
        from PIL import Image

        k = int(np.searchsorted(self.ends, i, side="right"))
        row = self.batches[k].rows()[i - (int(self.ends[k - 1]) if k else 0)]
        return Image.fromarray(np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0)))


def _read_batches(paths: list[Path], label_key: str) -> Split:
    """The split that some batches hold together, in their order."""
    batches: list[_Batch] = []
    labels: list[int] = []
    for path in paths:
        content = load_arrays(path)
        content = content if isinstance(content, dict) else {}
        data, found = _get(content, "data"), _get(content, label_key)
        if not (
            isinstance(data, np.ndarray)
            and data.dtype == np.uint8
            and data.shape[1:] == (_ROW,)
            and isinstance(found, list)
            and len(found) == len(data)
            and all(type(label) is int and 0 <= label < 2**63 for label in found)
        ):
            raise UserError(
                f"The file {path} is no batch of CIFAR; valid is a pickle with 'data', uint8 of shape [n, {_ROW}], and "
                f"{label_key!r}, a list of n integers of at least 0."
            )
        batches.append(_in_file(path, data))
        labels += found
    ends = np.cumsum([batch.count for batch in batches])
    return Split(np.array(labels, dtype=np.int64), _CifarImages(tuple(batches), ends))


def _in_file(path: Path, data: np.ndarray) -> _Batch:
    """The batch as a place in its file; as ``data`` itself where the pickle does not hold its bytes one by one."""
    if not len(data):
        return _Batch(str(path), 0)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        offset = content.find(data[0].tobytes())
        there = offset >= 0 and len(content) >= offset + data.nbytes
    if there:
        batch = _Batch(str(path), len(data), offset)
        if np.array_equal(batch.rows(), data):
            return batch
    return _Batch(str(path), len(data), memory=data)


def _get(content: dict[Any, Any], key: str) -> Any:
    """The value of a text key, which Python 3 reads as bytes from some of the files."""
    return content.get(key, content.get(key.encode()))


def _download(name: str, root: Path) -> None:
    """Download and extract by the address and checksum that torchvision knows; its class would unpickle the batches."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    known = getattr(datasets, name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        download_and_extract_archive(known.url, str(root), filename=known.filename, md5=known.tgz_md5)
    except Exception as error:  # whatever the network, the archive or the disk raise
        raise download_error(name, root, error) from error
