"""What a data set is: named classes, a train and a test split, images by index.

Cheap to import (no torch). A data set class is built from YAML by its class path, so building one must cost nothing:
files are read when ``class_names``, ``train`` or ``test`` is first asked for.

Shape letters: n examples of a split, C classes, H and W height and width in pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedmoe.data.subset import SubsetConfig, balanced, few_shot
from fedmoe.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_ALL = SubsetConfig()


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test examples of a data set: labels in memory, images one by one.

    Raises:
        ValueError: labels or domains are not vectors of one length, or there is not one path for each example.
    """

    labels: np.ndarray  # [n] int64, in [0, C)
    image: Callable[[int], Image.Image]  # the i-th image; may read a file, must give the same image each time
    domains: np.ndarray | None = None  # [n] int64, index into the data set's domain_names
    paths: Sequence[str] | None = None  # the file of each example, for messages; None where images lie in no file

    def __post_init__(self) -> None:
        for name in ("labels", "domains"):
            values = getattr(self, name)
            if values is None:
                continue
            values = np.asarray(values)
            if values.ndim != 1 or (len(values) and not np.issubdtype(values.dtype, np.integer)):
                raise ValueError(f"{name} must be a vector of integers, got {values.dtype} of shape {values.shape}")
            object.__setattr__(self, name, values.astype(np.int64))
        for name in ("domains", "paths"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.labels):
                raise ValueError(f"{len(self.labels)} labels, but {len(values)} {name}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The split of these examples, in this order."""
        return Split(
            self.labels[indices],
            _Taken(self.image, indices),
            None if self.domains is None else self.domains[indices],
            None if self.paths is None else [self.paths[i] for i in indices],
        )


@dataclass(frozen=True, eq=False)
class _Taken:
    """The image function of a part of a split. A class, not a closure, so that worker processes can receive it."""

    image: Callable[[int], Image.Image]
    indices: np.ndarray

    def __call__(self, i: int) -> Image.Image:
        return self.image(int(self.indices[i]))


@dataclass(frozen=True, eq=False)
class RawData:
    """A data set as it was read, before any limit."""

    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]  # empty for data without domains
    train: Split
    test: Split


@dataclass(frozen=True)
class PublishedFacts:
    """The size of a data set as published."""

    train: int
    test: int
    classes: int
    source: str = "table 5 of the paper"
    """Where these numbers stand, for messages."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet(ABC):
    """A labelled image data set. Adapters subclass it; the arguments of their ``__init__`` are their YAML settings.

    An adapter sets ``name`` and implements ``_read`` and ``_source_key``; the limits below are applied here, first the
    classes, then the shots, then the numbers of examples.

    Raises:
        UserError: a limit is not valid.
    """

    shots: int | None = None
    """Training examples kept of each class (of each class in each domain, where there are domains); null: all."""
    subset: SubsetConfig = _ALL
    """A part of the data, for quick trials."""
    sample_seed: int = 0
    """Seed of shots and subset: the same examples for every method and every seed of the run."""

    name: ClassVar[str]
    """Short name, for messages and folders."""
    template: ClassVar[str] = "a photo of a {class}."
    """Caption of a class for zero-shot prediction."""
    published: ClassVar[PublishedFacts | None] = None
    """The size that the paper, or else the data set's authors, give."""
    target_only: ClassVar[bool] = False
    """Whether there are test images only: a target for models that were trained on other data."""
    repeats_names: ClassVar[bool] = False
    """Whether two classes may have one name, as in CLIP's names of ImageNet's classes."""
    coarse: ClassVar[tuple[int, ...] | None] = None
    """The coarse class of each class, by label, where the data set has coarse classes."""

    def __post_init__(self) -> None:
        if self.shots is not None and self.shots < 1:
            raise UserError(f"data.shots is {self.shots!r}; valid is null or an integer of at least 1.")

    @property
    def mispairs(self) -> bool:
        """Whether a client's labels go with other examples' images (``partition.mispaired``)."""
        return False

    @abstractmethod
    def _read(self) -> RawData:
        """All there is: called once, when it is first needed. Opens no image.

        Raises:
            UserError: the files are missing or cannot be used.
        """

    @abstractmethod
    def _source_key(self) -> str:
        """Text that differs whenever an image of either split of ``_read``, or the images' order, differs."""

    @cached_property
    def _raw(self) -> RawData:
        return self._read()

    @cached_property
    def _kept(self) -> dict[str, np.ndarray]:
        """Ascending indices into the splits of ``_raw`` that the limits leave."""
        raw, kept = self._raw, {}
        classes = self.subset.classes
        if classes is not None and classes > len(raw.class_names):
            raise UserError(
                f"data.subset.classes is {classes}, but the data set {self.name!r} has {len(raw.class_names)} classes; "
                f"valid is null or 1 to {len(raw.class_names)}."
            )
        for part, split in (("train", raw.train), ("test", raw.test)):
            kept[part] = np.arange(len(split)) if classes is None else np.flatnonzero(split.labels < classes)
            if part == "train" and self.shots is not None:
                kept[part] = kept[part][few_shot(*_labels(split, kept[part]), self.shots, self.sample_seed)]
            limit = getattr(self.subset, part)
            if limit is not None:
                kept[part] = kept[part][balanced(*_labels(split, kept[part]), limit, self.sample_seed, part)]
        return kept

    def _limited(self, part: str, split: Split) -> Split:
        kept = self._kept[part]
        return split if len(kept) == len(split) else split.take(kept)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the C classes, by label; "_" is read as a space in prompts."""
        return self._raw.class_names[: self.subset.classes]

    @cached_property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, by index; empty for data without domains."""
        return self._raw.domain_names

    @cached_property
    def train(self) -> Split:
        """The training examples of all clients together."""
        return self._limited("train", self._raw.train)

    @cached_property
    def test(self) -> Split:
        """The test examples of all clients together."""
        return self._limited("test", self._raw.test)

    def cache_key(self) -> str:
        """Text that differs whenever an image of either split, or the images' order, differs."""
        raw, kept = self._raw, self._kept
        if len(kept["train"]) == len(raw.train) and len(kept["test"]) == len(raw.test):
            return self._source_key()
        digest = hashlib.blake2b(digest_size=8)
        for indices in kept.values():  # the indices, not the settings: a change of the sampling rule is seen too
            digest.update(len(indices).to_bytes(8, "little") + indices.astype("<i8").tobytes())
        return f"{self._source_key()} kept {digest.hexdigest()}"

    def transform(self, clip_preprocess: Callable[[Image.Image], Tensor]) -> Callable[[Image.Image], Tensor]:
        """What makes the image encoder's input [3, H, W] of an image: CLIP's own preprocessing, unless overridden."""
        return clip_preprocess

    def transform_key(self) -> str:
        """Text that differs whenever ``transform`` makes something else of CLIP's preprocessing."""
        return "clip"


def _labels(split: Split, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return split.labels[kept], None if split.domains is None else split.domains[kept]


def check_dataset(dataset: DataSet, training: bool = True) -> None:
    """Check that labels and domains point at names that exist, and that there is something to train on.

    Args:
        training: whether training examples are needed.

    Raises:
        UserError: there is no training example, a class name is doubled or not text, or a label or domain has no name.
    """
    where, num_classes = f"The data set {dataset.name!r}", len(dataset.class_names)
    doubled = sorted({name for name in dataset.class_names if dataset.class_names.count(name) > 1})
    if doubled and not dataset.repeats_names:
        raise UserError(f"{where} has several classes of the name {doubled[0]!r}; class names must differ.")
    for name in (*dataset.class_names, *dataset.domain_names):
        if not is_encodable(name):
            raise UserError(f"{where} has a class or domain of the name {name!r}, which is not text; rename it.")
    if training and not len(dataset.train):
        raise UserError(f"{where} has no training example; at least 1 is needed.")
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        check_range(split.labels, num_classes, f"{where}, split {part!r}, has the label", "class name")
        if split.domains is not None:
            what = f"{where}, split {part!r}, has the domain index"
            check_range(split.domains, len(dataset.domain_names), what, "domain name")


def is_encodable(text: str) -> bool:
    """Whether a text can be printed and name a file: it has no lone surrogates, as names that are not UTF-8 have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_range(values: np.ndarray, count: int, what: str, noun: str) -> None:
    """Raise a UserError that begins with ``what`` where a value lies outside [0, count)."""
    outside = np.flatnonzero((values < 0) | (values >= count))
    if len(outside):
        first = int(outside[0])
        valid = f"0 to {count - 1}" if count else "none"
        raise UserError(
            f"{what} {int(values[first])} (example {first}, {len(outside)} such in all), but there are {count} "
            f"{noun}s; valid is {valid}."
        )
