"""``features.batch_size: auto``: the fastest batch of the image encoder, and the same features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmoe.config import FeatureConfig, ViewsConfig
from fedmoe.data import Digits
from fedmoe.data.subset import SubsetConfig
from fedmoe.errors import UserError
from fedmoe.features import extraction
from fedmoe.features.batch_size import fastest_batch
from fedmoe.features.encoders import extract_dataset
from fedmoe.models.clip import FrozenCLIP

EXAMPLE = torch.ones(3)


def chosen(seconds_an_image: Sequence[float], room: int = 10_000) -> tuple[int, list[int]]:
    """The batch size that is found where batches of 8, 16, ... take so long an image, and the sizes encoded."""
    now, sizes = [0.0], list[int]()

    def encode(inputs: Tensor) -> Tensor:
        if len(inputs) > room:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(inputs))
        now[0] += len(inputs) * seconds_an_image[[8, 16, 32, 64, 128, 256, 512].index(len(inputs))]
        return inputs

    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    return fastest_batch(encode, EXAMPLE, clock), sizes


def test_sizes_grow_while_that_pays() -> None:
    assert chosen([3.0, 2.0, 1.0, 1.0, 0.1, 0.1, 0.1]) == (32, [8, 8, 16, 32, 64])
    assert chosen([1.0, 0.96, 0.1, 0.1, 0.1, 0.1, 0.1]) == (8, [8, 8, 16])
    assert chosen([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])[0] == 512
    assert chosen([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], room=100) == (64, [8, 8, 16, 32, 64])


@pytest.mark.parametrize("views", ["none", "cached"])
def test_features_are_those_of_any_batch(
    embedded_clip: FrozenCLIP, tmp_path: Path, views: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = Digits(subset=SubsetConfig(train=30, test=20)), ViewsConfig(kind=views, count=2)  # type: ignore[arg-type]
    monkeypatch.setattr(extraction, "WORTH_MEASURING", 25)  # measured for one split and not for the other
    configs = [FeatureConfig(cache_dir=str(tmp_path / str(size)), batch_size=size) for size in ("auto", 7)]
    found = [extract_dataset(data, embedded_clip, config, settings) for config in configs]
    for auto, plain in zip(*found, strict=True):
        assert auto.encoded == plain.encoded > 0
        torch.testing.assert_close(auto.values, plain.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0, "fast", -1])
def test_other_sizes_are_refused(size: int | str) -> None:
    with pytest.raises(UserError, match=r"features\.batch_size is .*; valid is auto or an integer of at least 1"):
        FeatureConfig(batch_size=size)  # type: ignore[arg-type]
