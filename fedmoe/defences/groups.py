"""Experts that are the mean of a group of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Serving
from fedmoe.errors import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Groups(Serving):
    """Others get the mean of a group of at least ``size`` entries in place of each of its members.

    Nobody is an expert alone (k-anonymous experts). With fewer entries than that in the pool, nothing is served.

    The group of the client with the lowest number, among those without one, is it and its nearest others; those left
    over join the last group. The members of a group count the same. Groups follow from the uploads and change with
    them, so means of overlapping groups may tell a member apart; k-anonymity is no guarantee.
    """

    size: int = 3
    """The smallest number of members of a group, at least 2."""

    def __post_init__(self) -> None:
        require(self.size >= 2, "serving.size", self.size, "an integer of at least 2")

    def shown(self, entries: Mapping[int, Tensor], shared: Tensor | None) -> Mapping[int, Tensor]:
        import torch

        found = dict[int, "Tensor"]()
        for group in groups(entries, self.size):
            mean = torch.stack([entries[i].double() for i in group]).mean(dim=0)
            found |= {i: mean.to(entries[i].dtype) for i in group}
        return {i: found[i] for i in entries if i in found}


def groups(entries: Mapping[int, Tensor], size: int) -> list[list[int]]:
    """The clients in groups of ``size``, the last one of up to 2 size - 1; none with fewer clients than that."""
    left, made = sorted(entries), list[list[int]]()
    while len(left) >= size:
        first, *others = left
        centre = entries[first].double()
        others.sort(key=lambda i: float((entries[i].double() - centre).norm()))  # stable: ties by number
        made.append([first, *others[: size - 1]])
        left = sorted(others[size - 1 :])
    if made:
        made[-1] += left
    return made
