"""A sentence about each class through CLIP's text encoder, with learned changes to its words and to its blocks.

Shape letters: C classes, L positions, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.models.blocks import Edits, run_blocks
from fedmoe.models.text_pass import PromptLayout
from fedmoe.models.text_tower import TextTower


class SentencePass:
    """open_clip's own blocks on tokens up to the last EOT, or on all where each sees those behind it.

    Args:
        tower: CLIP's text tower.
        layout: of the sentences; its context vectors are the learned words.
        first: the first block that is ever edited. Without learned words, what enters it is computed once.
    """

    def __init__(self, tower: TextTower, layout: PromptLayout, first: int = 0) -> None:
        self._tower, self._layout = tower, layout
        self._first = 0 if bool((layout.slots >= 0).any()) else first
        self._device: torch.device | None = None

    def __call__(self, words: Tensor | None = None, edits: Edits | None = None, *, save_memory: bool = False) -> Tensor:
        """L2-normalized text features [C, d], float32.

        Args:
            words: the learned words [l, w]; None if there are none.
            edits: by the number of the block in the whole tower; none below ``first``.
            save_memory: as ``run_blocks``.
        """
        tower, first = self._tower, self._first
        self._prepare(tower.device)
        x = self._x
        if words is not None:
            positions = self._positions[: x.shape[1]]
            placed = words.to(tower.device)[self._slots.clamp(min=0)].to(x.dtype) + positions  # [C, L, w]
            x = torch.where((self._slots >= 0).unsqueeze(-1), placed, x)
        shifted = {i - first: edit for i, edit in (edits or {}).items()}
        x = run_blocks(tower.blocks[first:], x, self._mask, shifted, save_memory=save_memory)
        found = tower.project(x[torch.arange(len(x), device=x.device), self._eot])
        return F.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=-1)

    @torch.no_grad()
    def _prepare(self, device: torch.device) -> None:
        """What never changes, once for each device."""
        if self._device == device:
            return
        tower, layout = self._tower, self._layout
        length = int(layout.eot.max()) + 1 if tower.causal else tower.context_length
        self._slots, self._eot = layout.slots[:, :length].to(device), layout.eot.to(device)
        self._positions = tower.positional_embedding.to(tower.dtype)
        self._mask = tower.mask(length)
        embedded = tower.token_embedding(layout.ids[:, :length].to(device)).to(tower.dtype)
        x = embedded + self._positions[:length]
        self._x = run_blocks(tower.blocks[: self._first], x, self._mask)
        self._device = device
