"""IDX files that cannot be used; archives that expand without end."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmoe.errors import UserError
from fedmoe.readers.idx import read_idx
from malformed.data_sets import idx
from malformed.helpers import Refused, each
from malformed.test_data_files import Spoilt, cuts, writes

IMAGES = "data/mnist/train-images-idx3-ubyte"
TESTS = "data/mnist/t10k-images-idx3-ubyte"
LABELS = "data/mnist/train-labels-idx1-ubyte"
PIXELS = np.zeros((20, 28, 28), dtype=np.uint8)
BOMB = gzip.compress(struct.pack(">HBBI", 0, 8, 1, 100) + bytes(2**28), 9)  # 268 MB behind 100 promised bytes


def header(*sizes: int, kind: int = 8, first: int = 0) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", first, kind, len(sizes), *sizes)


def files() -> list[Spoilt]:
    whole = idx(PIXELS)
    contents: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "begins with nothing"),
        "a page of HTML": (b"<html>404</html>", "does not begin as an IDX file"),
        "labels in their place": (idx(np.zeros(20, dtype=np.uint8)), "does not begin as an IDX file"),
        "floats": (header(20, 28, 28, kind=0x0D) + bytes(20 * 784 * 4), "does not begin as an IDX file"),
        "no zeros first": (header(20, 28, 28, first=1) + bytes(20 * 784), "does not begin as an IDX file"),
        "a cut header": (header(20, 28, 28)[:10], "does not begin as an IDX file"),
        "other sizes": (header(20, 14, 56) + bytes(20 * 784), "valid is 28 x 28"),
        "a byte less": (whole[:-1], "says that it holds 15,680 values, but has 15,679"),
        "a byte more": (whole + b"x", "but has more"),
        "a promise of 2^96": (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "valid are at most 47,040,000"),
        "a promise of 4 GB": (header(2**32 - 1, 1, 1), "valid are at most 47,040,000"),
        "an unfinished promise": (header(60000, 28, 28), "47,040,000 values, but has 0"),
        "packed, cut": (gzip.compress(os.urandom(9000))[:4000], "does not begin as an IDX file"),
        "packed, cut behind the header": (gzip.compress(whole, 0)[:4000], "cannot be unpacked"),
        "packed, damaged": (gzip.compress(whole)[:10] + b"\xff" * 60, "cannot be unpacked"),
        "packed, wrong checksum": (gzip.compress(whole)[:-8] + bytes(8), "cannot be unpacked"),
        "packed twice": (gzip.compress(gzip.compress(whole)), "does not begin as an IDX file"),
    }
    cases = [Spoilt(name, "mnist", writes(IMAGES, text), (IMAGES, words)) for name, (text, words) in contents.items()]
    labels = idx(np.full(20, 10, dtype=np.uint8))
    lone = idx(np.zeros(19, dtype=np.uint8))
    return [
        *cases,
        Spoilt("label 10", "mnist", writes(LABELS, labels), ("has the label 10",)),
        Spoilt("a label less", "mnist", writes(LABELS, lone), (LABELS, "holds 19 labels", "20 images")),
        Spoilt("cut", "mnist", cuts(IMAGES, 0.5), (IMAGES, "it is damaged")),
        Spoilt("no images", "mnist", unlinked(IMAGES), ("no file 'train-images-idx3-ubyte'",)),
        Spoilt("no labels", "mnist", unlinked(LABELS), ("no file 'train-labels-idx1-ubyte'",)),
        Spoilt("a folder", "mnist", lambda: (Path(TESTS).unlink(), Path(TESTS).mkdir()), ("no file 't10k-images",)),
        Spoilt("nothing", "mnist", unlinked(IMAGES, TESTS), ("data/mnist has no file",)),
    ]


def unlinked(*paths: str) -> Callable[[], Any]:
    return lambda: [Path(path).unlink() for path in paths]


@each(files())
def test_a_faulty_file_is_one_sentence(case: Spoilt, refused: Refused) -> None:
    case.check(refused)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """268 MB in 0.3 MB: no more than the promised bytes and one block come out."""
    (tmp_path / "labels.gz").write_bytes(BOMB)
    tracemalloc.start()
    with pytest.raises(UserError, match="but has more"):
        read_idx(tmp_path / "labels.gz", 1, 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
