"""What an attack on membership is.

Shape letters: E times, J prompts at a time, X targets, S shadow federations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmoe.audit.threats import Seen


@dataclass(frozen=True)
class Shadow:
    """A federation of the attacker's own: what it sees of it, and which targets are in, bool [X]."""

    seen: Seen
    members: Tensor


@dataclass(frozen=True)
class Setting:
    """What every attacker knows of the targets: owners [X], labels [X] and CLIP's features [X, d]."""

    owner: Tensor
    labels: Tensor
    features: Tensor


class Membership(ABC):
    """Base class of the attacks. They never get the coins of the federation under attack."""

    label: str
    learns: ClassVar[bool] = False  # whether it needs shadows

    @abstractmethod
    def scores(self, seen: Seen, shadows: Sequence[Shadow], setting: Setting) -> Tensor | None:
        """A score for each target that rises with the belief that it was in, float64 [X]; NaN where nothing was seen of
        its owner, None where the attack needs what this attacker does not have."""


def has(seen: Seen, name: str) -> bool:
    """Whether the statistic was seen of anybody."""
    return name in seen.values and bool(torch.isfinite(seen.values[name]).any())


def over_times(values: Tensor) -> Tensor:
    """The mean over the times at which something was seen: [E, X] -> [X], NaN where nothing ever was."""
    return values.double().nanmean(dim=0)
