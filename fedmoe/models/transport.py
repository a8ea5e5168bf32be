"""Entropic optimal transport for many small problems at once, in the log domain.

For costs D, marginals u and v and the regularization eps, both solvers look for a plan of the form

    T_mn = r_m exp(-D_mn / eps) c_n

by rescaling rows and columns in turn: Sinkhorn's iterations (Cuturi, NeurIPS 2013) where the row sums must equal u,
and Dykstra's (Benamou et al., SIAM J. Sci. Comput. 2015, section 5.1) where they may be at most u, so that r is at most
one. FedOTP (arXiv 2403.00041) uses both. Only log r and log c are kept, and every sum is a log-sum-exp: nothing
overflows or divides by zero, whatever eps is (exp(-D / eps) itself is 0 in float32 from D / eps = 104 on).

Each problem stops individually, so its plan does not depend on which others it is solved with. The plan has no
gradient.

Shape letters: M rows (an image's tokens), N columns (prompts), C problems side by side (classes), ... any number of
problems. The problems are the last dimension, so that sums over rows and columns run along contiguous memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Transport = Callable[[Tensor, Tensor, Tensor, float, float, int], Tensor]


@torch.no_grad()
def balanced_transport(
    cost: Tensor, u: Tensor, v: Tensor, epsilon: float, stop_threshold: float, max_iterations: int
) -> Tensor:
    """The plan with row sums u and column sums v that minimizes <D, T> + eps sum T (log T - 1).

    Args:
        cost: D [..., M, N, C].
        u: row sums [M], positive.
        v: column sums [N], positive, with the same total.
        epsilon: eps, in units of the cost.
        stop_threshold: a problem stops when its r changes by less in the mean over its rows.
        max_iterations: rescalings of rows and columns, at most.

    Returns:
        T [..., M, N, C]; its column sums are v, its row sums u as far as it has converged.
    """
    return _plan(cost, u, v, epsilon, stop_threshold, max_iterations, cap=math.inf, watched=0)


@torch.no_grad()
def partial_transport(
    cost: Tensor, u: Tensor, v: Tensor, epsilon: float, stop_threshold: float, max_iterations: int
) -> Tensor:
    """The plan with row sums of at most u and column sums v that minimizes <D, T> + eps sum T (log T - 1).

    Args:
        cost: D [..., M, N, C].
        u: bound of the row sums [M], positive.
        v: column sums [N], positive; their total, the mass that is moved, is at most that of u.
        epsilon: eps, in units of the cost.
        stop_threshold: a problem stops when its c changes by less in the mean over its columns.
        max_iterations: rescalings of rows and columns, at most.

    Returns:
        T [..., M, N, C]; its column sums are v, its row sums at most u as far as it has converged.
    """
    return _plan(cost, u, v, epsilon, stop_threshold, max_iterations, cap=0.0, watched=1)


TRANSPORTS: Mapping[str, Transport] = {"partial": partial_transport, "balanced": balanced_transport}


def _plan(
    cost: Tensor,
    u: Tensor,
    v: Tensor,
    epsilon: float,
    stop_threshold: float,
    max_iterations: int,
    *,
    cap: float,
    watched: int,
) -> Tensor:
    """Rescale rows (log r at most ``cap``), then columns, until the watched factors (0: r, 1: c) stand still."""
    kernel = cost / -epsilon  # log K [..., M, N, C]
    log_u, log_v = u.log()[:, None, None], v.log()[:, None]
    rows, columns = torch.zeros_like(kernel[..., :1, :]), torch.zeros_like(kernel[..., :1, :, :])  # log r, log c
    moving = torch.ones_like(kernel[..., :1, :1, :], dtype=torch.bool)
    for _ in range(max_iterations):
        new_rows = (log_u - (kernel + columns).logsumexp(-2, keepdim=True)).clamp(max=cap)  # [..., M, 1, C]
        new_columns = log_v - (kernel + new_rows).logsumexp(-3, keepdim=True)  # [..., 1, N, C]
        old, new = ((rows, new_rows), (columns, new_columns))[watched]
        change = (new.exp() - old.exp()).abs().mean((-3, -2), keepdim=True)  # [..., 1, 1, C]
        rows, columns = torch.where(moving, new_rows, rows), torch.where(moving, new_columns, columns)
        moving &= ~(change < stop_threshold)  # a factor beyond the number format has no change: it goes on
        if not moving.any():
            break
    return (kernel + rows + columns).exp()
