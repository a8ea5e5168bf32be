"""The feature cache on disk.

One safetensors file for each description, ``features-<key>.safetensors``, where the key is a hash of everything that
decides the contents. The file carries the description and a checksum; a file that fails either is never used. During an
extraction, the folder ``features-<key>.parts`` holds what has been done so far in files of the same format, so that an
interrupted extraction continues from there. That folder's lock makes a second run wait for the first; where the file
system has no locks both do the work, and as files are replaced atomically the result is the same.

Shape letters: k images of a block, n of a split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.features.views import digest
from fedmoe.io import locked, open_regular, write_tensors_atomic

log = logging.getLogger(__name__)
PREFIX, WHOLE, PARTS = "features-", ".safetensors", ".parts"
_POLL = 0.2  # seconds between two attempts at another run's lock


@dataclass(frozen=True, eq=False)
class Block:
    """Features of some images of a split.

    Images that cannot be read have no row; ``damaged`` says why, by index.
    """

    index: Tensor  # [k] int64, different indices into the split
    values: Tensor  # [k, ...] float32
    damaged: Mapping[int, str] = field(default_factory=dict)

    @property
    def images(self) -> Tensor:
        """The images that are here or damaged, ascending."""
        return torch.cat([self.index, torch.tensor(list(self.damaged), dtype=torch.int64)]).sort().values


class FeatureCache:
    """What a cache folder holds for one description.

    Args:
        folder: the cache folder; "~" is the home folder.
        description: everything that decides the features, as plain values.
        about: texts for whoever lists the cache; they are no part of the key.

    Attributes:
        path: the finished file, whether it exists or not.
        parts: the folder of an unfinished extraction.
    """

    def __init__(self, folder: str, description: Mapping[str, Any], about: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self._texts = {"description": _canonical(description), "about": _canonical(about or {})}
        key = hashlib.blake2b(self._texts["description"].encode("utf-8"), digest_size=16).hexdigest()
        self.path = self.folder / f"{PREFIX}{key}{WHOLE}"
        self.parts = self.path.with_suffix(PARTS)

    def load(self, count: int, shape: tuple[int, ...], *, warn: bool = True) -> Block | None:
        """What is stored of a split of ``count`` images with features of a ``shape``; None where there is nothing, or
        where the file is damaged, which is logged."""
        try:
            block = self._read(self.path, shape)
            if block is None or torch.equal(block.images, torch.arange(count)):
                return block
            problem = f"it does not hold {count} images"
        except ValueError as error:
            problem = str(error)
        if warn:
            log.warning("The feature cache %s cannot be used (%s); extracting its features again.", self.path, problem)
        return None

    def store(self, block: Block, path: Path | None = None) -> None:
        """Write a block that covers its split, or to ``path`` a part of it.

        Raises:
            UserError: the folder cannot be written to.
        """
        damaged = _canonical({str(i): why for i, why in block.damaged.items()})
        metadata = {**self._texts, "damaged": damaged, "checksum": _checksum(block.index, block.values, damaged)}
        with self._writing():
            # The temporary file lies among the parts, where there are any: what a killed run left there goes with them.
            folder = self.parts if self.parts.is_dir() else None
            write_tensors_atomic(path or self.path, {"features": block.values, "index": block.index}, metadata, folder)

    @contextmanager
    def work(self, waiting: Callable[[int], None]) -> Iterator[None]:
        """Hold the lock of ``parts``, after any other run has left it; the folder is deleted once it is of no use.

        ``waiting`` is called with the number of images that the other run has written. Where that run has finished,
        ``load`` finds its result.

        Raises:
            UserError: the folder cannot be made or written to.
        """
        with ExitStack() as stack:
            told = False
            while True:
                try:
                    with self._writing():
                        stack.enter_context(locked(self.parts))
                    break
                except BlockingIOError:
                    if not told:
                        log.warning("Another run is extracting the same features (%s); waiting for it.", self.parts)
                        told = True
                waiting(images_in(self.parts))
                time.sleep(_POLL)
            try:
                if not part_files(self.parts):  # says what is being extracted, to whoever lists the cache
                    self.store_part(Block(torch.zeros(0, dtype=torch.int64), torch.zeros(0)))
                yield
            finally:
                if not images_in(self.parts):
                    shutil.rmtree(self.parts, ignore_errors=True)

    def read_parts(self, count: int, shape: tuple[int, ...]) -> Iterator[Block]:
        """The parts written so far of such a split; damaged ones are deleted."""
        for path in part_files(self.parts):
            try:
                if not path.stem.endswith("-0") and (block := self._read(path, shape)) is not None:
                    if not set(block.images.tolist()) <= set(range(count)):
                        raise ValueError(f"it holds other images than the {count} of the split")
                    yield block
            except ValueError as error:
                log.warning("%s cannot be used (%s); its images are encoded again.", path, error)
                path.unlink(missing_ok=True)

    def store_part(self, block: Block) -> None:
        """Write a part, so that an interrupted extraction continues after it."""
        indices = [*block.index.tolist(), *block.damaged]
        first = f"{min(indices):09d}" if indices else "begun"
        name = f"part-{first}-{secrets.token_hex(4)}-{len(indices)}{WHOLE}"
        self.store(block, self.parts / name)

    def finish(self, block: Block) -> None:
        """Write the whole, and delete its parts."""
        self.store(block)
        for path in part_files(self.parts):
            path.unlink(missing_ok=True)

    def _read(self, path: Path, shape: tuple[int, ...]) -> Block | None:
        block = read_block(path, self._texts["description"])
        if block is not None and block.values.shape[1:] != shape:
            raise ValueError(f"it holds features of shape {list(block.values.shape[1:])}, not {list(shape)}")
        return block

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            raise UserError(
                f"features.cache_dir is {str(self.folder)!r}, where nothing can be written "
                f"({error.strerror or error}); valid is a folder that can be made and written to; what is finished is "
                "kept, and the same command continues from there."
            ) from error


def part_files(folder: Path) -> list[Path]:
    """The files in a folder of parts, in order of their first image."""
    return sorted(folder.glob(f"part-*{WHOLE}"))


def images_in(folder: Path) -> int:
    """Number of images written to a folder of parts, by the names of its files."""
    numbers = (path.stem.rpartition("-")[2] for path in part_files(folder))
    return sum(int(number) for number in numbers if number.isdecimal())


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a cache file: description, about and damaged (JSON), checksum.

    Raises:
        ValueError: the file is not one of this cache.
        FileNotFoundError: there is none.
    """
    return _read(path, lambda file: file.metadata() or {})


def read_block(path: Path, description: str | None = None) -> Block | None:
    """The contents of a cache file, None where there is no file.

    Raises:
        ValueError: the file is damaged, or ``description`` is given and not its own.
    """
    try:
        metadata, index, values = _read(
            path, lambda file: (file.metadata() or {}, file.get_tensor("index"), file.get_tensor("features"))
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    if description is not None and metadata.get("description") != description:
        raise ValueError("it describes other features")
    if (
        values.dtype not in (torch.float32, torch.float16)
        or index.dtype != torch.int64
        or index.shape != values.shape[:1]
    ):
        raise ValueError(
            f"it holds {values.dtype} of shape {tuple(values.shape)} for {index.dtype} of shape {tuple(index.shape)}"
        )
    if metadata.get("checksum") != _checksum(index, values, metadata.get("damaged", "")):
        raise ValueError("its checksum does not match")
    try:
        return Block(index, values, {int(i): str(why) for i, why in json.loads(metadata["damaged"]).items()})
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError("its list of damaged images cannot be read") from error


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            return read(file)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, SafetensorError) as error:
        raise ValueError(str(error)) from error


def _checksum(index: Tensor, values: Tensor, damaged: str) -> str:
    text = f"{digest(index)} {digest(values)} {damaged}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=True)
