"""Products by oneDNN's kernels (CPU, float32): above all linear maps with frozen weights, packed once in the order in
which those read them.

A plain product reads the weights as they lie and sorts them anew each time. Whether packing them pays depends on the
processor and on the number of tokens, so ``worthwhile`` measures it. Values and gradients equal the plain ones up to
the order of sums: the bits differ. The packed weights, one copy for each direction, take twice the memory of the
plain ones, which stay.

Shape letters: i inputs, o outputs of a map, n tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# What torch.compile's CPU code calls for frozen weights; torch has no public name for it.
_PACK, _PRODUCT = "_reorder_linear_weight", "_linear_pointwise"


def available(weight: Tensor) -> bool:
    """Whether maps with weights of this kind can be packed by the torch in use."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.requires_grad
    if not (fits and torch.backends.mkldnn.is_available()):
        return False
    try:
        _product(weight.new_zeros(1, weight.shape[1]), _pack(weight.detach()), None)
    except (AttributeError, RuntimeError, TypeError):  # another torch: no such operation, or with other arguments
        return False
    return True


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = getattr(torch.ops.mkldnn, _PACK)(weight.contiguous())
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = getattr(torch.ops.mkldnn, _PRODUCT)(x, packed, bias, "none", [], "")
    return found


@torch.no_grad()
def thin_product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix.T`` of a few rows [n, i] with a large matrix [o, i] that lies as it is: by oneDNN's kernel, which
    reads it once, where the torch in use offers it; equal up to the order of sums."""
    if (
        rows.device.type == "cpu"
        and rows.dtype == matrix.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    ):
        try:
            return _product(rows, matrix, None)
        except (AttributeError, RuntimeError, TypeError):  # as in ``available``
            pass
    return rows @ matrix.T


class PackedLinear:
    """x -> factor W x + bias, for x [..., i]; gradients reach x alone.

    Args:
        weight: W [o, i], frozen.
        bias: [o]; ``factor`` is not applied to it.
    """

    @torch.no_grad()
    def __init__(self, weight: Tensor, bias: Tensor | None, factor: float = 1.0) -> None:
        scaled = weight.detach() if factor == 1 else factor * weight.detach()
        self.forth, self.back = _pack(scaled), _pack(scaled.T)
        self.bias = None if bias is None else bias.detach().clone()

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = _Map.apply(x, self)
        return found


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedLinear) -> Tensor:
        ctx.packed = packed
        return _product(x, packed.forth, packed.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _product(gradient, ctx.packed.back, None), None


@torch.no_grad()
def worthwhile(weight: Tensor, rows: int, repeats: int = 4, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Whether products of ``rows`` tokens with weights like this one are at least 5 % faster packed, in both
    directions together. Measured in turn with the plain product, within about a second; the fastest repeat counts.

    Weights are taken from many copies, as a tower's blocks are: one alone would stay in the processor's cache.
    """
    if not available(weight):
        return False
    copies = [weight.detach().clone() for _ in range(6)]
    packed = [PackedLinear(copy, None) for copy in copies]
    x, gradient = (torch.ones(rows, width) for width in (weight.shape[1], weight.shape[0]))

    def plain() -> None:
        for copy in copies:
            F.linear(x, copy)
            gradient @ copy

    def ours() -> None:
        for one in packed:
            _product(x, one.forth, None)
            _product(gradient, one.back, None)

    best = dict.fromkeys((plain, ours), float("inf"))
    for repeat in range(1 + repeats):  # the first one warms up
        for run in best:
            began = clock()
            run()
            took = clock() - began
            best[run] = min(best[run], took) if repeat else best[run]
    return best[ours] < 0.95 * best[plain]
