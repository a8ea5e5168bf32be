"""Reading files from folders that someone else may have filled: regular files only, up to a stated size."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedmoe.errors import UserError

MIB = 2**20


def read_regular(path: Path, most: int) -> bytes:
    """The contents of a regular file of at most ``most`` bytes.

    Raises:
        UserError: the file is missing, unreadable, larger, or no regular file (a FIFO, a device, a link to one).
    """
    with open_regular(path, most) as file:
        data = file.read(most + 1)
        _require_size(path, len(data), most)  # it may have grown
        return data


@contextmanager
def open_regular(path: Path, most: int) -> Iterator[BinaryIO]:
    """The file opened for reading bytes; errors as in ``read_regular``."""
    try:
        _require_regular(path, os.stat(path))  # before opening: that alone may have an effect on a device
        # Between the two calls the path may have become a FIFO, which without O_NONBLOCK waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _require_regular(path, status)
            _require_size(path, status.st_size, most)
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _require_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a FIFO, a socket or a device; valid is a regular file.")


def _require_size(path: Path, size: int, most: int) -> None:
    if size > most:
        raise UserError(f"{path} is larger than {most // MIB} MiB; valid is at most that.")
