"""Weights that expand without end are refused before they fill the memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.readers.weights import EMBEDDING, ROWS, read_weights

ZEROS = b"\0" * 2**20
EXPANDED = 768  # MiB
READ = """
import json, resource, sys
from fedmoe.errors import UserError
from fedmoe.readers.weights import read_weights
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, told = peak(), "read"
try:
    read_weights(sys.argv[1])
except UserError as error:
    told = str(error)
print(json.dumps([told, peak() - before]))
"""


def archive(path: Path, *small: str) -> None:
    """A deflated archive with an entry of 768 MiB, and small ones."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in small:
            file.writestr(name, b"x")
        with file.open("w/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(EXPANDED):
                entry.write(ZEROS)


def checkpoint(path: Path) -> None:
    archive(path, "w/byteorder")


def torchscript(path: Path) -> None:
    archive(path, "w/constants.pkl")


def lying(path: Path) -> None:
    """The directory says that the entry has 100 bytes."""
    archive(path, "w/constants.pkl")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 100)
    path.write_bytes(data)


def overlapping(path: Path) -> None:
    """A thousand entries of the directory are the same megabyte."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w/constants.pkl", b"x")
        file.writestr("w/data.pkl", ZEROS)
        info = file.getinfo("w/data.pkl")
        for number in range(1000):
            other = zipfile.ZipInfo(f"w/data/{number}")
            other.header_offset, other.CRC = info.header_offset, info.CRC
            other.file_size = other.compress_size = info.file_size
            file.filelist.append(other)
            file.NameToInfo[other.filename] = other


@pytest.mark.parametrize("make", [checkpoint, torchscript, lying, overlapping])
def test_an_archive_that_expands_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    make(path)
    assert path.stat().st_size < 4 * 2**20
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told, mebibytes = json.loads(done.stdout)
    assert told.startswith(f"The weights file {path} is truncated, damaged or of no known format; ")
    assert mebibytes < EXPANDED / 3


def test_tensors_without_end_are_refused(tmp_path: Path) -> None:
    """One number on disk, 10^12 in its shape: a tensor of stride 0."""
    tensors: dict[str, Tensor] = {
        EMBEDDING: torch.zeros(1, 1).expand(10**12, 1),
        ROWS: torch.zeros(1, dtype=torch.int64).expand(10**12),
    }
    file = io.BytesIO()
    torch.save(tensors, file)
    path = tmp_path / "w.pt"
    path.write_bytes(file.getvalue())
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=r"weight has shape \[1000000000000, 1\], more numbers than are stored"):
        read_weights(path)
