"""Seeds for everything random, each derived from the run's seed and the place where it is used.

No generator is shared between two places, so neither the order in which clients run nor an additional draw in one place
changes anything elsewhere. Torch is imported only when a torch generator is requested.
"""

from __future__ import annotations

import hashlib
import json
import operator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *keys: int | str) -> int:
    """A seed in [0, 2**63) for the place that ``keys`` name, such as ``derive(seed, "local", round, client)``.

    The value depends on the seed and on every key, its position and its type (1 is not "1"); it is the same on every
    machine and in every version of Python. 63 bits, because both torch and numpy accept those.
    """
    path = [key if isinstance(key, str) else operator.index(key) for key in (seed, *keys)]
    text = json.dumps(path, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """A numpy generator for one place. PCG64 is explicit, so that a change of numpy's default changes no run."""
    return np.random.Generator(np.random.PCG64(derive(seed, *keys)))


def torch_generator(seed: int, *keys: int | str) -> torch.Generator:
    """A torch generator for one place, on the CPU, so that every device sees the same draws."""
    import torch

    return torch.Generator(device="cpu").manual_seed(derive(seed, *keys))
