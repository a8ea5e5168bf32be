"""FedMIA: other clients' uploads as the null hypothesis (Zhu, Li, Gu, Yao, Fan, Han, CVPR 2025, arXiv 2402.06289).

As its re-implementations have it; the paper's own tables and code were not compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedmoe.audit.membership.base import Membership, Setting, Shadow, has, over_times
from fedmoe.audit.threats import Seen


class FedMIA(Membership):
    """At each time, the statistic of a target under its owner's upload is compared with the same statistic under all
    others': the score is the normal distribution's function of it, with mean and standard deviation of the others after
    those above mean + 3 standard deviations are left out; then the mean over times. Needs no shadows.

    Args:
        statistic: confidence, minus the cross-entropy (FedMIA-I); alignment, the update's inner product with minus the
            target's gradient (FedMIA-II, which has the cosine there).
    """

    def __init__(self, statistic: str) -> None:
        self.statistic = statistic
        self.label = f"FedMIA, {'loss' if statistic == 'confidence' else 'gradient'}"

    def scores(self, seen: Seen, shadows: Sequence[Shadow], setting: Setting) -> Tensor | None:
        if not has(seen, self.statistic) or seen.values[self.statistic].shape[1] < 3:
            return None
        values = seen.values[self.statistic].double()
        values = logsigmoid(values) if self.statistic == "confidence" else values
        mine = torch.nn.functional.one_hot(setting.owner, values.shape[1]).T.bool()  # [J, X]
        own = values.masked_fill(~mine, 0).sum(dim=1)  # [E, X]; NaN is 0 where it is not the owner's
        return over_times(null_cdf(own, values.masked_fill(mine, torch.nan)))


def null_cdf(own: Tensor, others: Tensor) -> Tensor:
    """Phi((own - mean) / std) with mean and sample standard deviation of the others that are not above their mean + 3
    standard deviations: [E, X] and [E, J, X], NaN for what does not count -> [E, X]; NaN with fewer than two others."""
    for _ in range(2):
        counts = torch.isfinite(others).sum(dim=1)
        mean = others.nanmean(dim=1)
        std = ((others - mean.unsqueeze(1)).square().nansum(dim=1) / (counts - 1).clamp(min=1)).sqrt()
        result = torch.special.ndtr((own - mean) / std.clamp(min=1e-12))
        others = others.masked_fill(others > (mean + 3 * std).unsqueeze(1), torch.nan)
    return result.masked_fill(counts < 2, torch.nan)
