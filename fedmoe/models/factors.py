"""A matrix seen through low-rank factors that are made anew in each pass, and noise on the factors' gradients.

Shape letters: l rows, w columns, r rank; ... any number of matrices side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def factor(matrix: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal factors U [..., l, r] and V [..., r, w] of a matrix L [..., l, w]: U spans the columns of L Z, V the
    rows of U^T L (one step of the power method; Vogels et al., NeurIPS 2019, arXiv 1905.13727).

    Args:
        probe: Z [..., w, r]; r is at most l and w.
    """
    left = torch.linalg.qr(matrix @ probe).Q
    return left, torch.linalg.qr(matrix.mT @ left).Q.mT


def reparametrized(left: Tensor, right: Tensor, grad_left: Tensor, grad_right: Tensor) -> Tensor:
    """The matrix's gradient from those of its factors: gU V + U gV - U U^T gU V [..., l, w] (DP-FPL, eq. 4; Yu et al.,
    ICML 2021, arXiv 2106.09352)."""
    back = grad_left @ right
    return back + left @ grad_right - left @ (left.mT @ back)


def reparametrized_as_released(left: Tensor, right: Tensor, grad_left: Tensor, grad_right: Tensor) -> Tensor:
    """What DP-FPL's release computes instead: the last term has the opposite sign, and all is divided by 10."""
    back = grad_left @ right
    return (back + left @ grad_right + left @ (left.mT @ back)) / 10


RULES: Mapping[str, Rule] = {"paper": reparametrized, "release": reparametrized_as_released}


def clipped(gradient: Tensor, bound: float | None) -> Tensor:
    """The gradient scaled down to an l2 norm of at most ``bound``; None: unchanged."""
    if bound is None:
        return gradient
    return gradient * (bound / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)).clamp(max=1)


class Clipped(torch.autograd.Function):
    """The identity, whose gradient is clipped: ``Clipped.apply(tensor, bound)``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: float | None) -> Tensor:
        ctx.bound = bound
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return clipped(gradients[0], ctx.bound), None


class Factored(torch.autograd.Function):
    """U V + R for U and V from ``factor`` and R = matrix - U V, or U V alone, whose gradient comes through the factors.

    With R, which has no gradient of its own, the value is the matrix itself. Backward, the gradients of U and V are
    each clipped, get noise from torch's global generator, and are put together to the matrix's by a rule.

    ``Factored.apply(matrix, probe, residual, bound, noise, rule)``: ``bound`` clips each factor's gradient (None: not
    at all), ``noise`` is the standard deviation in each of its coordinates, ``rule`` is one of ``RULES``.
    """

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, probe: Tensor, residual: bool, bound: float | None, noise: float, rule: Rule
    ) -> Tensor:
        left, right = factor(matrix, probe)
        ctx.save_for_backward(left, right)
        ctx.bound, ctx.noise, ctx.rule = bound, noise, rule
        return matrix.clone() if residual else left @ right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,), (left, right) = gradients, ctx.saved_tensors
        protected = []
        for found in (gradient @ right.mT, left.mT @ gradient):  # gU [..., l, r], gV [..., r, w]
            found = clipped(found, ctx.bound)
            protected.append(found + ctx.noise * torch.randn_like(found) if ctx.noise else found)
        return ctx.rule(left, right, *protected), None, None, None, None, None
