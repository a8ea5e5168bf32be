"""Files in MNIST's format IDX, plain or compressed by gzip; no more of one is unpacked than its data set can hold.

An IDX file is two zero bytes, one for the type of its values, one for the number d of axes, d sizes of four bytes (the
most significant first), and the values. Only the type 8 is read, uint8, which MNIST and its relatives have.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedmoe.errors import UserError
from fedmoe.readers.regular import open_regular

_UINT8 = 8
_BLOCK = 2**20  # bytes unpacked at once: what a header promises is not reserved before it has come


def read_idx(path: Path, axes: int, most: int) -> np.ndarray:
    """The array of a file, uint8 with ``axes`` axes and at most ``most`` values. It must end where the file does.

    Raises:
        UserError: the file is missing, is no such file, is damaged, or holds more.
    """
    header = 4 + 4 * axes
    with open_regular(path, 2 * most + 1024) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: BinaryIO = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
        try:
            start = stream.read(header)
            shape = _shape(start, axes, path)
            count = math.prod(shape)
            if count > most:
                raise UserError(f"{path} says that it holds {count:,} values; valid are at most {most:,}.")
            values = bytearray()
            while len(values) <= count:  # one more than there may be shows that the file goes on
                block = stream.read(min(_BLOCK, count + 1 - len(values)))
                if not block:
                    break
                values += block
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path} cannot be unpacked ({error}); a download that broke off leaves such a file."
            ) from error
    if len(values) != count:
        found = "more" if len(values) > count else f"{len(values):,}"
        raise UserError(f"{path} says that it holds {count:,} values, but has {found}; it is damaged.")
    array = np.frombuffer(values, dtype=np.uint8).reshape(shape)
    array.flags.writeable = False
    return array


def _shape(start: bytes, axes: int, path: Path) -> tuple[int, ...]:
    """The sizes that a header gives."""
    if start[:4] != bytes((0, 0, _UINT8, axes)) or len(start) != 4 + 4 * axes:
        raise UserError(
            f"{path} does not begin as an IDX file of bytes with {axes} axes does (it begins with "
            f"{start[:4].hex() or 'nothing'}, valid is 000008{axes:02x}, and its sizes)."
        )
    return struct.unpack(f">{axes}I", start[4:])
