"""Uploads as integers modulo 2^64, in which masks cancel and sums do not depend on the order.

A value x of a client with n examples becomes round(n x 2^32). With |x| <= 256 and at most 2^22 examples in a cohort, no
sum leaves the range of signed 64-bit integers. Rounding changes each client's n x by at most 2^-33, and so a mean over
clients with at least one example by at most 2^-33, a sixteenth of what float32 resolves at 0.01.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FRACTION = 32  # bits after the binary point
LARGEST = 256.0  # absolute value of an uploaded number
MOST_EXAMPLES = 2**22  # of a cohort


def encode(value: Tensor, weight: int) -> Tensor:
    """round(weight value 2^32), int64.

    Raises:
        ValueError: a number is not finite, or larger than 256.
    """
    found = value.double()
    if not bool((found.abs() <= LARGEST).all()):
        raise ValueError(f"an uploaded number is not between -{LARGEST:g} and {LARGEST:g}")
    return (found * weight * 2.0**FRACTION).round().long()


def encode_all(upload: Mapping[str, Tensor], weight: int) -> dict[str, Tensor]:
    """An upload with each tensor encoded, in the order of names.

    Raises:
        ValueError: a number is not finite, or larger than 256.
    """
    return {name: encode(value, weight) for name, value in sorted(upload.items())}


def decode(total: Tensor, weight: int, like: Tensor) -> Tensor:
    """The mean whose encoded sum this is, over ``weight`` examples, in the format of ``like``.

    Raises:
        ValueError: no mean has this sum: something was added that is no upload.
    """
    mean = total.double() / 2.0**FRACTION / weight
    if not bool((mean.abs() <= LARGEST).all()):
        raise ValueError("the sum is not that of the uploads")
    return mean.to(like.dtype)


def nothing(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoded sum of no uploads."""
    return {name: torch.zeros_like(value, dtype=torch.int64) for name, value in like.items()}


def add(total: Mapping[str, Tensor], encoded: Mapping[str, Tensor]) -> None:
    """Add an encoded upload to a sum, in place."""
    for name, value in total.items():
        value += encoded[name]


def mean(total: Mapping[str, Tensor], weight: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The uploads' mean, by name, given their encoded sum over ``weight`` examples, in the format of ``like``.

    Raises:
        ValueError: no mean has this sum.
    """
    return {name: decode(total[name], weight, value) for name, value in like.items()}


def require_examples(total: int) -> int:
    """The number of examples of a cohort.

    Raises:
        ValueError: there are too many.
    """
    if total > MOST_EXAMPLES:
        raise ValueError(f"the cohort has {total:,} examples; secure aggregation takes at most {MOST_EXAMPLES:,}")
    return total
