"""Experts of large owners only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Screening
from fedmoe.errors import require
from fedmoe.protocol.records import Update

if TYPE_CHECKING:
    from fedmoe.server.state import ServerState

_SIZES = "minimum_size.sizes"  # among the server's extras: [N], int64; 0: not known


@dataclass(frozen=True, kw_only=True)
class MinimumSize(Screening):
    """A prompt is served to others only if its owner trains on enough examples.

    Their number is the n_i of its last upload. A prompt that was trained on few examples tells most about each of them.
    """

    least: int = 50
    """The smallest number n_i of training examples whose owner's prompt is served."""

    def __post_init__(self) -> None:
        require(self.least >= 1, "screening.least", self.least, "an integer of at least 1")

    def trusted(self, server: ServerState) -> frozenset[int]:
        if _SIZES not in server.extras:
            return frozenset()
        sizes = server.extras[_SIZES].tolist()
        return frozenset(client for client, size in enumerate(sizes) if size >= self.least)

    def note(self, server: ServerState, updates: Sequence[Update]) -> None:
        import torch

        if not updates:
            return
        before = server.extras.get(_SIZES, torch.zeros(0, dtype=torch.int64))
        sizes = torch.zeros(max(len(before), 1 + max(update.client_id for update in updates)), dtype=torch.int64)
        sizes[: len(before)] = before
        for update in updates:
            sizes[update.client_id] = update.num_examples
        server.extras[_SIZES] = sizes
