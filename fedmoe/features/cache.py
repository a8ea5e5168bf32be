"""The feature cache on disk.

One safetensors file for each description, ``features-<key>.safetensors``, where the key is a hash of everything that
decides the contents. The file carries the description and a checksum; one that fails either is never used. While an
extraction is under way, the folder ``features-<key>.parts`` holds what is done so far in files of the same format, so
that it can go on after an interruption. A lock in that folder makes a second run wait for the first; where the file
system has no locks both do the work, and as files are replaced atomically the result is the same.

Shape letters: k images of a block, n of a split.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.features.views import digest
from fedmoe.io import write_json_atomic, write_tensors_atomic

log = logging.getLogger(__name__)
PREFIX, WHOLE, PARTS, ABOUT = "features-", ".safetensors", ".parts", "about.json"
_POLL = 0.2  # seconds between two looks at another run's lock


@dataclass(frozen=True, eq=False)
class Block:
    """Features of some images of a split.

    Images that cannot be read have no row; ``damaged`` tells why, by index.
    """

    index: Tensor  # [k] int64, different indices into the split
    values: Tensor  # [k, ...] float32
    damaged: Mapping[int, str] = field(default_factory=dict)

    def covers(self, count: int) -> bool:
        """Whether every image of a split of ``count`` is either here or damaged."""
        found = torch.cat([self.index, torch.tensor(list(self.damaged), dtype=torch.int64)])
        return torch.equal(found.sort().values, torch.arange(count))


class FeatureCache:
    """The folder of cached features."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, description: Mapping[str, Any]) -> Path:
        """The file for a description, whether it exists or not."""
        return self.folder / f"{PREFIX}{key_of(description)}{WHOLE}"

    def stamp(self, description: Mapping[str, Any]) -> tuple[int, int] | None:
        """What differs once the file of a description has been replaced."""
        try:
            found = self.path(description).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def load(self, description: Mapping[str, Any], count: int) -> Block | None:
        """What is stored of a split of ``count`` images; None where there is nothing, or with a warning where the file
        is damaged."""
        path = self.path(description)
        try:
            block = read_block(path, description)
            if block is None or block.covers(count):
                return block
            problem = f"it does not hold {count} images"
        except ValueError as error:
            problem = str(error)
        log.warning("The feature cache %s cannot be used (%s); its features are extracted again.", path, problem)
        return None

    def store(
        self, description: Mapping[str, Any], about: Mapping[str, str], block: Block, folder: Path | None = None
    ) -> None:
        """Write a block that covers its split. ``folder`` is where the temporary file lies.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            _write_block(self.path(description), description, about, block, folder)
        except OSError as error:
            raise self._unwritable(error) from error

    @contextlib.contextmanager
    def work(
        self, description: Mapping[str, Any], about: Mapping[str, str], waiting: Callable[[int], None]
    ) -> Iterator[Work]:
        """The one place where the features of a description are being made, after any other run has left it.

        ``waiting`` is called with the number of images the other run has written down. Where that run has finished,
        ``load`` finds its result.

        Raises:
            UserError: the folder cannot be made or written to.
        """
        folder = self.path(description).with_suffix(PARTS)
        work = Work(self, folder, description, about)
        try:
            lock = _acquire(folder, lambda: waiting(work.written()))
            write_json_atomic(folder / ABOUT, {"description": dict(description), "about": dict(about)})
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield work
        finally:
            if work.finished or not work.parts():
                shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                lock.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"features.cache_dir is {str(self.folder)!r}, where nothing can be written ({error.strerror or error}); "
            "valid is a folder that can be made and written to."
        )


@dataclass
class Work:
    """An extraction under way."""

    cache: FeatureCache
    folder: Path
    description: Mapping[str, Any]
    about: Mapping[str, str]
    finished: bool = False

    def parts(self) -> list[Path]:
        """The blocks written down so far."""
        return sorted(self.folder.glob(f"part-*{WHOLE}"))

    def written(self) -> int:
        """How many images they hold."""
        return images_in(self.folder)

    def read(self) -> Iterator[Block]:
        """The blocks written down so far, but for damaged ones."""
        for path in self.parts():
            try:
                block = read_block(path, self.description)
            except ValueError as error:
                log.warning("%s cannot be used (%s); its images are encoded again.", path, error)
                path.unlink(missing_ok=True)
                continue
            if block is not None:
                yield block

    def keep(self, block: Block) -> None:
        """Write down a block, so that the work can go on behind it."""
        indices = [*block.index.tolist(), *block.damaged]
        path = self.folder / f"part-{min(indices):09d}-{secrets.token_hex(4)}-{len(indices)}{WHOLE}"
        try:
            _write_block(path, self.description, self.about, block)
        except OSError as error:
            raise self.cache._unwritable(error) from error

    def finish(self, block: Block) -> None:
        """Write the whole; the folder of parts goes when the work ends."""
        self.cache.store(self.description, self.about, block, self.folder if self.folder.is_dir() else None)
        self.finished = True


def key_of(description: Mapping[str, Any]) -> str:
    """The hash that names a description's file."""
    return hashlib.blake2b(_canonical(description).encode("utf-8"), digest_size=16).hexdigest()


def images_in(parts: Path) -> int:
    """Number of images written down in a folder of parts."""
    numbers = (path.stem.rpartition("-")[2] for path in parts.glob(f"part-*{WHOLE}"))
    return sum(int(number) for number in numbers if number.isdecimal())


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a cache file: description and about (JSON), damaged (JSON), checksum.

    Raises:
        ValueError: the file is not one of this cache.
        FileNotFoundError: there is none.
    """
    return _open(path, lambda file: file.metadata() or {})


def read_block(path: Path, description: Mapping[str, Any] | None = None) -> Block | None:
    """The contents of a cache file, None where there is no file.

    Raises:
        ValueError: the file is damaged, or does not hold what ``description`` says.
    """
    try:
        metadata, index, values = _open(
            path, lambda file: (file.metadata() or {}, file.get_tensor("index"), file.get_tensor("features"))
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    if description is not None and metadata.get("description") != _canonical(description):
        raise ValueError("it describes other features")
    if values.dtype != torch.float32 or index.dtype != torch.int64 or index.shape != values.shape[:1]:
        raise ValueError(
            f"it holds {values.dtype} of shape {tuple(values.shape)} for {index.dtype} of shape {tuple(index.shape)}"
        )
    if metadata.get("checksum") != _checksum(index, values, metadata.get("damaged", "")):
        raise ValueError("its checksum does not match")
    return Block(index, values, {int(i): why for i, why in json.loads(metadata["damaged"]).items()})


def _write_block(
    path: Path, description: Mapping[str, Any], about: Mapping[str, str], block: Block, folder: Path | None = None
) -> None:
    damaged = _canonical({str(i): why for i, why in block.damaged.items()})
    metadata = {
        "description": _canonical(description),
        "about": _canonical(about),
        "damaged": damaged,
        "checksum": _checksum(block.index, block.values, damaged),
    }
    write_tensors_atomic(path, {"features": block.values, "index": block.index}, metadata, folder)


def _open(path: Path, read: Callable[[Any], Any]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
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


def _acquire(folder: Path, waiting: Callable[[], None]) -> IO[bytes] | None:
    """Make the folder and lock it for this process, once no other has it; None where the system has no locks.

    The lock goes with the process, even a killed one, and is not inherited by its workers.
    """
    told = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return try_lock(folder)
        except BlockingIOError:
            if not told:
                log.warning("Another run is extracting the same features (%s); waiting for it.", folder)
                told = True
        waiting()
        time.sleep(_POLL)


def try_lock(folder: Path) -> IO[bytes] | None:
    """The lock of a folder of parts; None where the system has no locks.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        file = open(folder / "lock", "ab")  # noqa: SIM115, the caller holds it
    except FileNotFoundError as error:  # the run that had it has just finished
        raise BlockingIOError from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError | PermissionError):
            raise BlockingIOError from error
        return None
    if not os.fstat(file.fileno()).st_nlink:  # removed while it was being locked
        file.close()
        raise BlockingIOError
    return file
