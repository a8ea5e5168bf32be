"""The learning rate that pFedMoAP's released code trains with."""

from __future__ import annotations

import math

WARM_UP = 1e-5  # rate of the very first epoch


def released_rate(base: float, epoch: int, period: int) -> float:
    """The learning rate of an epoch: one cosine, counted over the epochs of all local fits of the federation.

    In the released code one scheduler serves all clients and is never reset: a warm-up epoch, then torch's
    ``CosineAnnealingLR`` with T_max = ``period``, which rises again after it has reached zero. So with 5 epochs a fit
    and a rate of 2e-3, the means over the fits are 1.16e-3, then 0.48e-3 and 1.52e-3 in turn. The two means were traced
    there. That the first epoch's rate is 1e-5 is CoOp's configuration, on which the released code builds.

    Args:
        base: the learning rate of the settings.
        epoch: number of epochs of all fits before this one, in the order in which clients train.
        period: epochs from the largest rate to zero; the number of epochs of a local fit.
    """
    if epoch == 0:
        return min(base, WARM_UP)
    return 0.5 * base * (1 + math.cos(math.pi * (epoch - 1) / period))
