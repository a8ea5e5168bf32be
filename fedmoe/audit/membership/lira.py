"""LiRA, the likelihood ratio attack (Carlini, Chien, Nasr, Song, Terzis, Tramèr; S&P 2022, arXiv 2112.03570).

Shape letters: S shadow federations, E times, X targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmoe.audit.membership.base import Membership, Setting, Shadow, has
from fedmoe.audit.threats import Seen

FEW = 64  # below so many shadows, all targets of a time share one standard deviation


class LiRA(Membership):
    """A normal distribution of the statistic for each target and time, over shadow federations.

    Online: ln N(s; mean_in, sd_in) - ln N(s; mean_out, sd_out), over the shadows with and without the target. Offline:
    (s - mean_out) / sd_out, which ranks as the one-sided tail does, over shadows without it alone. Times are added, as
    if they were independent; the paper has one.

    Args:
        statistic: confidence is the paper's, the logit of the true class's probability; alignment as in FedMIA.
        online: whether shadows with the target are used, too.
    """

    learns = True

    def __init__(self, statistic: str, online: bool) -> None:
        self.statistic, self.online = statistic, online
        self.label = f"LiRA {'online' if online else 'offline'}"
        self.label += ", gradient" if statistic == "alignment" else ""

    def scores(self, seen: Seen, shadows: Sequence[Shadow], setting: Setting) -> Tensor | None:
        if not has(seen, self.statistic):
            return None
        values = torch.stack([shadow.seen.own(self.statistic, setting.owner) for shadow in shadows]).double()
        inside = torch.stack([shadow.members for shadow in shadows]).unsqueeze(1)  # [S, 1, X]
        own = seen.own(self.statistic, setting.owner).double()  # [E, X]
        out = distribution(values.masked_fill(inside, torch.nan))
        if self.online:
            found = log_normal(own, *distribution(values.masked_fill(~inside, torch.nan))) - log_normal(own, *out)
        else:
            found = (own - out[0]) / out[1]
        never = torch.isnan(found).all(dim=0)
        return found.nansum(dim=0).masked_fill(never, torch.nan)


def distribution(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the shadows, NaN for those that do not count: [S, E, X] -> [E, X] each.

    With fewer than 64 shadows the standard deviation is one for all targets of a time: the root of their mean variance.
    """
    counts = torch.isfinite(values).sum(dim=0)
    mean = values.nanmean(dim=0)
    squares = (values - mean).square().nansum(dim=0)  # [E, X]
    if len(values) < FEW:
        freedom = (counts - 1).clamp(min=0).sum(dim=1, keepdim=True)
        squares = torch.where(counts > 1, squares, 0.0).sum(dim=1, keepdim=True)
        variance = (squares / freedom.clamp(min=1)).expand_as(mean)
    else:
        variance = squares / (counts - 1).clamp(min=1)
    return mean, variance.sqrt().clamp(min=1e-9)


def log_normal(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The logarithm of the normal density."""
    return -0.5 * ((values - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
