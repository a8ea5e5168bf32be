"""How many images to encode at once: the number with the least time for an image, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

SIZES = (8, 16, 32, 64, 128, 256, 512)
WORTH_MEASURING = 1000  # images
UNMEASURED = 32


@torch.no_grad()
def fastest_batch(
    encode: Callable[[Tensor], Tensor], example: Tensor, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The batch size with which an image takes the least time, among sizes that grow as long as each is at least 5 %
    faster than the one before; a size that the memory does not hold ends the search.

    Args:
        encode: inputs [b, ...] -> features.
        example: one input, on the encoder's device.
    """
    best, least = SIZES[0], float("inf")
    for size in SIZES:
        inputs = example.expand(size, *example.shape).contiguous()
        try:
            if size == SIZES[0]:
                encode(inputs)  # the first one warms up
            began = clock()
            encode(inputs).cpu()  # which waits for a GPU
            each = (clock() - began) / size
        except (MemoryError, torch.OutOfMemoryError):
            break
        if each > 0.95 * least:
            break
        best, least = size, each
    return best
