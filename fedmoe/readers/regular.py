"""Reading files from folders that someone else may have filled; what is wrong with one is a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedmoe import io
from fedmoe.errors import UserError

MIB = 2**20


def read_regular(path: Path, most: int) -> bytes:
    """The contents of a regular file of at most ``most`` bytes.

    Raises:
        UserError: the file is missing, unreadable, larger, or no regular file (a FIFO, a device, a link to one).
    """
    with _sentences(path, most):
        return io.read_regular(path, most)


@contextmanager
def open_regular(path: Path, most: int) -> Iterator[BinaryIO]:
    """The file opened for reading bytes; errors as in ``read_regular``."""
    with _sentences(path, most), io.open_regular(path, most) as file:
        yield file


@contextmanager
def _sentences(path: Path, most: int) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        special = {
            io.NOT_REGULAR: "is a FIFO, a socket or a device; valid is a regular file",
            errno.EFBIG: f"is larger than {most // MIB} MiB; valid is at most that",
        }
        found = special.get(error.errno or 0, f"cannot be read: {error.strerror}")
        raise UserError(f"{path} {found}.") from None
