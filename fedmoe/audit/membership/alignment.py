"""The update's alignment with a target's gradient: what is left of PromptMIA where there is no pool of prompts.

PromptMIA (Nguyen et al., arXiv 2601.06641) is an active attack on visual prompt pools with learned keys: the server
plants prompts whose keys only the target selects, and looks whether the client has moved them. The methods here have
no keys, and no image selects a prompt, so that mechanism does not exist. What carries over is the question: has the
update moved the prompt the way the target would have? Whether a server that sends a crafted prompt instead of the
average learns more cannot be determined from what is published on it, and is not tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedmoe.audit.membership.base import Membership, Setting, Shadow, has, over_times
from fedmoe.audit.threats import Seen


class Alignment(Membership):
    """<P - G, -grad_P loss(G; x)> for the owner's prompt P that was trained from G, mean over times."""

    label = "update alignment (PromptMIA)"

    def scores(self, seen: Seen, shadows: Sequence[Shadow], setting: Setting) -> Tensor | None:
        if not has(seen, "alignment"):
            return None
        return over_times(seen.own("alignment", setting.owner))
