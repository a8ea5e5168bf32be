"""CIFAR's files as experiments.reproduce makes them up, in the real format."""

from __future__ import annotations

import pickletools
from pathlib import Path

import numpy as np

from experiments.reproduce.cifar_files import COARSE_LABELS, write_cifar
from fedmoe.data import CIFAR10, CIFAR100
from fedmoe.readers.array_pickle import load_arrays


def test_cifar_files_have_the_real_format(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    small, large = CIFAR10(root=str(tmp_path)), CIFAR100(root=str(tmp_path))
    assert (len(small.train), len(small.test), len(large.train), len(large.test)) == (60, 20, 400, 200)
    assert np.bincount(small.train.labels).tolist() == [6] * 10 or len(np.unique(small.train.labels)) == 10
    raw = load_arrays(tmp_path / "cifar-10-batches-py" / "data_batch_2")
    assert set(raw) == {"batch_label", "labels", "data", "filenames"}
    assert raw["data"].shape == (12, 3072) and raw["data"].dtype == np.uint8
    pixels = np.asarray(small.train.image(12))  # the first image of the second batch: red, green, blue planes
    assert pixels[3, 5].tolist() == [raw["data"][0, plane * 1024 + 3 * 32 + 5] for plane in range(3)]
    raw = load_arrays(tmp_path / "cifar-100-python" / "train")
    assert [COARSE_LABELS[label] for label in raw["fine_labels"]] == raw["coarse_labels"]
    assert sorted(np.bincount(COARSE_LABELS)) == [5] * 20  # five classes in each of the twenty groups
    codes = {op.name for op, _, _ in pickletools.genops((tmp_path / "cifar-100-python" / "meta").read_bytes())}
    assert "SHORT_BINSTRING" in codes and "BINUNICODE" not in codes  # as Python 2 wrote them
