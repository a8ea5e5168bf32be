"""Transformer blocks of CLIP's towers, with learned changes to some of them.

An edit runs one block in another way. Where there is none, open_clip's own block runs, so without edits a tower is
open_clip's.

Shape letters: n texts or images, N tokens, w token width, r rank, p learned tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

Edit = Callable[[Any, Tensor, "Tensor | None"], Tensor]  # a block, tokens [n, N, w], attention mask -> tokens [n, N, w]
Edits = Mapping[int, Edit]  # by the number of the block, from 0


def run_blocks(
    blocks: Sequence[Any],
    x: Tensor,
    mask: Tensor | None = None,
    edits: Edits | None = None,
    *,
    save_memory: bool = False,
) -> Tensor:
    """Tokens [n, N, w] through the blocks, each by its edit or plainly.

    Args:
        mask: the attention mask of every block [N, N].
        save_memory: keep no activations within a block for the backward pass, which computes them again.
    """
    edits = edits or {}
    for i, block in enumerate(blocks):
        step = edits.get(i, plain)
        if save_memory and torch.is_grad_enabled():
            x = checkpoint(step, block, x, mask, use_reentrant=False)
        else:
            x = step(block, x, mask)
    return x


def plain(block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """open_clip's own block."""
    found: Tensor = block(x, attn_mask=mask)
    return found


def replaced(prompt: Tensor, start: int) -> Edit:
    """Deep prompts: before the block, the tokens from ``start`` on (counted from the end if negative) become ``prompt``
    [p, w]."""

    def edit(block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        first = start % x.shape[1]
        learned = prompt.to(x.dtype).expand(len(x), -1, -1)
        return plain(block, torch.cat([x[:, :first], learned, x[:, first + len(prompt) :]], dim=1), mask)

    return edit


def beside(branch: Callable[[Tensor], Tensor]) -> Edit:
    """An adapter parallel to the whole block: ``branch`` of the block's normalized input is added to its output."""

    def edit(block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return plain(block, x, mask) + branch(block.ln_1(x)).to(x.dtype)

    return edit


def low_rank(down: Tensor, up: Tensor, scale: float) -> Edit:
    """LoRA: scale * B A is added to the weights of the query, key and value maps; ``down`` A [3, r, w], ``up`` B
    [3, w, r]."""

    def edit(block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        weight = block.attn.in_proj_weight  # [3 w, w]
        changed = weight + (scale * (up @ down).flatten(0, 1)).to(weight.dtype)
        found: Tensor = functional_call(block, {"attn.in_proj_weight": changed}, (x,), {"attn_mask": mask})
        return found

    return edit


class Adapter(nn.Module):
    """The maps around a bottleneck: down [r, w] and up [w, r] with biases, without what is between them.

    Args:
        width: w. rank: r.
        generator: for the weights, N(0, 2 / number of outputs); biases start at zero.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.down, self.up = he_linear(width, rank, generator), he_linear(rank, width, generator)


def default_linear(inputs: int, outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear map with torch's default initial values."""
    found, bound = nn.Linear(inputs, outputs), inputs**-0.5
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return found


def he_linear(inputs: int, outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear map with He's initial weights by the number of outputs, and a bias of zero."""
    found = nn.Linear(inputs, outputs)
    with torch.no_grad():
        found.weight.normal_(std=(2 / outputs) ** 0.5, generator=generator)
        found.bias.zero_()
    return found
