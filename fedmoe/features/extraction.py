"""Reading and encoding the images of a split: in batches, with worker processes, resumed where it was interrupted.

Shape letters: b images of a batch, n of a split; an image's input and its feature have any shape.
"""

from __future__ import annotations

import errno
import multiprocessing
import pickle
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedmoe.config import FeatureConfig
from fedmoe.data.base import Split
from fedmoe.errors import UserError
from fedmoe.features.batch_size import UNMEASURED, WORTH_MEASURING, fastest_batch
from fedmoe.features.cache import Block
from fedmoe.features.memory import memory_kept
from fedmoe.features.views import Inputs
from fedmoe.io import NOT_REGULAR

Progress = Callable[[int, int], None]

# What Pillow raises at files that are not images, or are cut short; other errors are faults of the program.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

# What the system says where a path leads to no file; a lost disk, or too many open files, is no fault of the data.
_FILES_FAULT = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, NOT_REGULAR)


@dataclass(frozen=True)
class Encoder:
    """The image encoder and the kind of features it makes.

    Attributes:
        name: the kind of features, for the cache's key; CLIP's pooled features are "global".
        identity: architecture, weights and precision, for the cache's key.
        encode: inputs [b, ...] on ``device`` -> features [b, *shape].
        dtype: the number format in which features are kept; another one than float32 is part of ``name``.
    """

    name: str
    identity: str
    encode: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Damage:
    """Why an image cannot be read; ``foreign`` where the cause is not the file but the machine."""

    reason: str
    foreign: bool = False


@dataclass(frozen=True, eq=False)
class ImageReader(Dataset[tuple[int, "np.ndarray | Damage"]]):
    """The encoder's inputs of a split, image by image."""

    split: Split
    inputs: Inputs
    name: str  # of the split, for messages

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | Damage]:
        """Index and input of an image; a numpy array, as those reach this process without shared memory."""
        try:
            image = self.split.image(index)
            image.load()
        except _UNREADABLE as error:
            return index, _damage(error)
        return index, self.inputs(image, index).numpy()

    def label(self, index: int) -> str:
        """The image in messages: its file, or its place in the split."""
        paths = self.split.paths
        return f"image {index} ({self.name})" if paths is None else str(paths[index])


def _damage(error: BaseException) -> Damage:
    if isinstance(error, FileNotFoundError):
        return Damage("there is no such file")
    number = getattr(error, "errno", None)
    text = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    return Damage(text.rstrip("."), foreign=number is not None and number not in _FILES_FAULT)


@dataclass
class Extraction:
    """The features of a split as far as they are known.

    Attributes:
        shape: of one image's features: the encoder's, or [V, ...] of V views.
        values: [n, *shape] float32 on the CPU; zeros where nothing is known.
        known: [n], whether an image is encoded.
        damaged: why an image cannot be read, by index.
        encoded: images encoded by ``run``, not taken from the cache.
    """

    reader: ImageReader
    encoder: Encoder
    shape: tuple[int, ...]
    config: FeatureConfig
    progress: Progress
    damaged: dict[int, str] = field(default_factory=dict)
    encoded: int = 0

    def __post_init__(self) -> None:
        count = len(self.reader.split)
        self.values = torch.zeros(count, *self.shape, dtype=self.encoder.dtype)
        self.known = torch.zeros(count, dtype=torch.bool)
        self._views = self.shape[0] if self.shape != self.encoder.shape else 1  # V

    @cached_property
    def batch_size(self) -> int:
        """Images (of views: views) in a batch of the encoder, as ``features.batch_size`` says."""
        size = self.config.batch_size
        if size != "auto":
            return size
        if len(self.reader.split) * self._views < WORTH_MEASURING:
            return UNMEASURED
        example = self.reader.inputs(Image.new("RGB", (256, 256)), 0)
        if self.shape != self.encoder.shape:
            example = example[0]  # of the views
        return fastest_batch(self.encoder.encode, example.to(self.encoder.device))

    def add(self, block: Block) -> None:
        """Take over what was extracted earlier."""
        self.values[block.index] = block.values
        self.known[block.index] = True
        self.damaged = {i: why for i, why in {**self.damaged, **block.damaged}.items() if not self.known[i]}

    def block(self, indices: Sequence[int] | None = None) -> Block:
        """What is known of these images, or of all."""
        if indices is None:
            index = self.known.nonzero()[:, 0]
            return Block(index, self.values if len(index) == len(self.known) else self.values[index], self.damaged)
        index = torch.tensor([i for i in indices if self.known[i]], dtype=torch.int64)
        return Block(index, self.values[index], {i: self.damaged[i] for i in indices if i in self.damaged})

    def run(self, keep: Callable[[Block], None] | None = None) -> None:
        """Encode what is not known yet, beginning with the images that could not be read before.

        Args:
            keep: writes down what is done, after each chunk and before an error leaves.

        Raises:
            UserError: an image is damaged and ``features.damaged`` is stop, or no image can be read, or a feature is
                not finite, or a worker has ended.
        """
        again = sorted(self.damaged)
        fresh = [i for i in (~self.known).nonzero()[:, 0].tolist() if i not in self.damaged]
        count = len(self.known)
        done = count - len(again) - len(fresh)
        if done:
            self.progress(done, count)
        pending: list[int] = []  # not written down yet
        try:
            # One after the other, so that batches are cut as if nothing had been damaged.
            with self._workers_watched(), memory_kept() if self.config.keep_memory else nullcontext():
                for index, inputs, damage in chain(self._batches(again), self._batches(fresh)):
                    self._take(index, inputs, damage)
                    pending += index
                    done += len(index)
                    self.progress(done, count)
                    if keep is not None and len(pending) * self._views >= self.config.chunk:
                        kept, pending = pending, []
                        keep(self.block(kept))
        except BaseException:  # also Ctrl-C
            if keep is not None and pending:
                keep(self.block(pending))
            raise
        if count and not bool(self.known.any()):
            first = min(self.damaged)
            raise UserError(
                f"None of the {count} images of {self.reader.name} can be read (the first is "
                f"{self.reader.label(first)}: {self.damaged[first]}); valid is data with at least one whole image."
            )

    def _take(self, index: list[int], inputs: np.ndarray | None, damage: dict[int, Damage]) -> None:
        """Encode a batch and note what is damaged."""
        self._judge(damage)
        if inputs is not None:
            good = torch.tensor([i for i in index if i not in damage])
            self.values[good] = self._features(torch.from_numpy(inputs), good)
            self.known[good] = True
            self.encoded += len(good)
        for i in index:
            self.damaged.pop(i, None)
        self.damaged |= {i: found.reason for i, found in damage.items()}

    def _batches(self, todo: Sequence[int]) -> Iterator[_Batch]:
        size = max(1, self.batch_size // self._views)
        workers = min(self.config.workers, -(-len(todo) // size))
        # fork: nothing need be pickled and no module imported again. Safe, as workers use neither threads nor a GPU.
        method = "fork" if sys.platform == "linux" else "spawn"
        if workers and method != "fork":
            require_picklable(self.reader, self.config.workers)
        loader = DataLoader(
            self.reader,
            batch_size=size,
            sampler=todo,
            num_workers=workers,
            collate_fn=_collate,
            multiprocessing_context=multiprocessing.get_context(method) if workers else None,
            generator=torch.Generator(),  # its draws, which nothing uses, must not come from the global one
        )
        yield from loader

    @contextmanager
    def _workers_watched(self) -> Iterator[None]:
        """A sentence for a worker's death. torch raises it from a signal, wherever this process is just then: waiting
        for the worker, or encoding what came before.

        Raises:
            UserError: a worker has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"A worker process that reads images ended unexpectedly with features.workers = {self.config.workers} "
                "(often for want of memory); try fewer, or 0, and the extraction continues where it stopped."
            ) from error

    def _judge(self, damage: Mapping[int, Damage]) -> None:
        """Raise a UserError where the policy, or the cause, does not allow to go on."""
        foreign = [i for i, found in damage.items() if found.foreign]
        if foreign:
            raise UserError(
                f"{self.reader.label(foreign[0])} cannot be read ({damage[foreign[0]].reason}); valid is an image that "
                "this user and machine can open."
            )
        if damage and self.config.damaged == "stop":
            named = "; ".join(f"{self.reader.label(i)}: {found.reason}" for i, found in damage.items())
            raise UserError(
                f"{self.reader.name} has {'images' if len(damage) > 1 else 'an image'} that cannot be read ({named}); "
                "valid are whole images, or features.damaged = skip, which leaves such images out."
            )

    @torch.no_grad()
    def _features(self, inputs: Tensor, index: Tensor) -> Tensor:
        """Inputs [b, ...] or [b, V, ...] -> features [b, *shape] float32 on the CPU."""
        flat = inputs if self.shape == self.encoder.shape else inputs.flatten(0, 1)  # [b V, ...]
        parts = [self.encoder.encode(part.to(self.encoder.device)) for part in flat.split(self.batch_size)]
        values = torch.cat(parts).to(self.encoder.dtype).cpu().reshape(len(inputs), *self.shape)
        finite = torch.isfinite(values).flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise UserError(
                f"CLIP's feature of image {int(index[~finite][0])} ({self.reader.name}) is not finite; valid are "
                "weights that fit clip.architecture, and clip.precision float32 where half precision overflows."
            )
        return values


_Batch = tuple[list[int], np.ndarray | None, dict[int, Damage]]


def _collate(items: Sequence[tuple[int, np.ndarray | Damage]]) -> _Batch:
    """Indices of a batch, the inputs [b, ...] of those that can be read, and the damage of the others."""
    arrays = [found for _, found in items if not isinstance(found, Damage)]
    damage = {index: found for index, found in items if isinstance(found, Damage)}
    return [index for index, _ in items], np.stack(arrays) if arrays else None, damage


def require_picklable(reader: ImageReader, workers: int) -> None:
    """Raise a UserError where a data set cannot be sent to a process that is not a copy of this one."""
    try:
        pickle.dumps(reader)
    except Exception as error:  # pickle raises whatever the objects do
        raise UserError(
            f"features.workers is {workers}, but {reader.name} cannot be sent to worker processes on this system "
            f"({' '.join(str(error).split()).rstrip('.')}); valid is 0."
        ) from error
