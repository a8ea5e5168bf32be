"""The generators that fedmoe.seeds documents, derived here a second time: old runs depend on them bit for bit."""

from __future__ import annotations

import hashlib

import numpy as np


def derived(path: str) -> int:
    """The seed of a place, from its JSON text such as ``[0,"cohort",3]``: the upper 63 bits of a 64-bit BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") // 2


def stream(path: str) -> np.random.Generator:
    """The numpy generator of a place."""
    return np.random.Generator(np.random.PCG64(derived(path)))
