"""``features.keep_memory``: buffers are used again, the features are the same, and the memory is given back."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory_helpers import own_memory
from torch import Tensor

from fedmoe.config import FeatureConfig
from fedmoe.data import Digits
from fedmoe.data.subset import SubsetConfig
from fedmoe.features.encoders import clip_encoder, extract_features, plain_inputs
from fedmoe.features.memory import memory_kept
from fedmoe.models.clip import FrozenCLIP

ROOT = Path(__file__).parents[1]
BUFFER = 64 << 20  # bytes; more than glibc ever keeps by itself
PAGE = resource.getpagesize()
needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="the C library is not glibc on Linux",
)


def faults(work: Callable[[], object]) -> int:
    """Number of pages that the system had to provide."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def fill() -> None:
    torch.empty(BUFFER, dtype=torch.uint8).fill_(1)


@needs_glibc
def test_pages_are_asked_for_once_and_given_back() -> None:
    """In a process of its own: what other tests have left in the heap would be used first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, ROOT)))}
    command = [sys.executable, "-c", "import test_kept_memory; test_kept_memory.check_pages()"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def check_pages() -> None:
    before = own_memory()
    fill()
    assert own_memory() - before < BUFFER / 2
    with memory_kept():
        for _ in range(8):  # until small objects have found their places beside the buffer
            fill()
        assert faults(fill) < BUFFER / PAGE / 100
        assert own_memory() - before > BUFFER / 2
    assert own_memory() - before < BUFFER / 2
    fill()
    assert own_memory() - before < BUFFER / 2  # as at first


@needs_glibc
def test_an_extraction_keeps_what_its_batches_need(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    data, plain = Digits(subset=SubsetConfig(train=80)), clip_encoder(embedded_clip)

    def encode(images: Tensor) -> Tensor:
        fill()
        return plain.encode(images)

    def extract(keep: bool) -> Tensor:
        config = FeatureConfig(cache_dir=str(tmp_path / str(keep)), batch_size=4, keep_memory=keep)
        encoder = replace(plain, encode=encode)
        return extract_features(encoder, data.train, plain_inputs(data, embedded_clip), config, ["digits"]).values

    found: dict[bool, Tensor] = {}
    asked = {keep: faults(lambda keep=keep: found.update({keep: extract(keep)})) for keep in (False, True)}  # type: ignore[misc]
    assert found[True].equal(found[False])
    assert asked[False] - asked[True] > 16 * BUFFER / PAGE  # of twenty batches
