"""The loss threshold (Yeom, Giacomelli, Fredrikson, Jha; CSF 2018, arXiv 1709.01604)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import logsigmoid

from fedmoe.audit.membership.base import Membership, Setting, Shadow, has, over_times
from fedmoe.audit.threats import Seen


class LossThreshold(Membership):
    """Minus the target's cross-entropy under its owner's prompt, mean over times. One threshold serves all targets."""

    label = "loss threshold"

    def scores(self, seen: Seen, shadows: Sequence[Shadow], setting: Setting) -> Tensor | None:
        if not has(seen, "confidence"):
            return None
        return over_times(logsigmoid(seen.own("confidence", setting.owner).double()))  # ln p_y of ln p_y - ln(1 - p_y)
