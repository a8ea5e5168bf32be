"""The text and the picture that show a partition."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fedmoe.report.partition_view import show_partition


def test_text_of_a_small_partition(tmp_path):
    summary = {
        "class_names": ["cat", "dog"],
        "counts_train": [[5, 0], [7, 11]],
        "counts_test": [[2, 0], [0, 0]],
        "domains": ["real", "sketch"],
    }
    text = show_partition(summary, tmp_path / "plots" / "partition.png")
    rows = [line.split() for line in text.splitlines()]
    assert ["client", "domain", "train", "test", "classes", "cat", "dog"] in rows
    assert ["0", "real", "5", "2", "1", "5", "·"] in rows
    assert ["1", "sketch", "18", "0", "2", "7", "11"] in rows
    assert "2 clients, 2 classes, 23 training and 2 test examples" in text
    assert "left out of evaluation: 1 clients (1)" in text
    assert not any(line.endswith(" ") for line in text.splitlines())
    with Image.open(tmp_path / "plots" / "partition.png") as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.format == "PNG" and min(image.size) > 300
    assert (pixels == (255, 255, 255)).all(axis=2).mean() < 0.97  # something is drawn


def test_text_and_picture_of_a_large_partition(tmp_path):
    counts = np.zeros((60, 100), dtype=int)
    counts[:, 7], counts[0, 3] = 3, 1
    summary = {
        "class_names": [f"class {c}" for c in range(100)],
        "counts_train": counts.tolist(),
        "counts_test": counts.tolist(),
        "domains": None,
    }
    text = show_partition(summary, tmp_path / "partition.png", max_rows=5)
    assert "class 7 75 %, class 3 25 %" in text and "class 7 100 %" in text
    assert "... and 55 more clients" in text and len(text.splitlines()) < 20
    with Image.open(tmp_path / "partition.png") as image:
        image.load()
        assert max(image.size) < 3000
