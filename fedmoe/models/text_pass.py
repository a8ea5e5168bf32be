"""From prompts to text features, three ways with equal results.

CLIP's text encoder is causal and is read at the EOT, so tokens after the EOT change nothing, and tokens that are the
same before every class name have the same keys and values for every class. Where each token sees all others (SigLIP,
MobileCLIP), only the plain pass over all positions is right, and is taken.

- ``PlainPass`` runs open_clip's own modules: on all tokens (``full``, the oracle) or up to the last EOT (``cut``).
- ``SharedPass`` (``shared``) runs each distinct token once: a trunk of tokens that all classes have in common, and a
  branch for each class up to its EOT, which attends to the trunk and to itself. The tokens are packed into one matrix
  without padding. In the first block, queries, keys and values of tokens that are not learned are constants; the last
  block runs only at the EOT.

All are exact in values and gradients; only the order of sums differs.

Shape letters: M prompts at once, C classes, L positions, l context tokens, w token width, d feature width, h heads,
e = w / h; N packed tokens, n learned ones, G groups of branches, Q queries and J keys of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.models.text_tower import QUICK, PackedMaps, TextTower

TextPass = Callable[[Tensor], Tensor]

# Branches attend in groups of about this many tokens: larger groups compute more pairs of different classes only to
# mask them, smaller ones copy the trunk's keys more often.
GROUP_TOKENS = 64


@dataclass(frozen=True)
class PromptLayout:
    """What is at each position.

    ``ids`` [C, L] are the token ids; ``slots`` [C, L] is j at the position of context vector j and -1 elsewhere;
    ``eot`` [C] is the position at which each feature is read; ``front`` is the number of special tokens before each
    text (1: SOS).
    """

    ids: Tensor
    slots: Tensor
    eot: Tensor
    class_specific: bool
    front: int = 1

    @property
    def trunk(self) -> int:
        """Number of leading positions that are the same for every class: SOS, and the context after it if generic."""
        if self.class_specific:
            return self.front
        same = (self.slots[0] >= 0) & (self.slots == self.slots[:1]).all(dim=0)
        return self.front + int(same[self.front :].int().cumprod(dim=0).sum())


def text_pass(kind: Literal["shared", "cut", "full"], tower: TextTower, layout: PromptLayout) -> TextPass:
    """The pass of that name, or the next plainer one that is right for the tower. It maps contexts [M, l, w]
    ([M, C, l, w] if class-specific) on the tower's device to features [M, C, d] before normalization."""
    if kind == "shared" and tower.causal and tower.plain_blocks:
        return SharedPass(tower, layout)
    return PlainPass(tower, layout, cut=kind != "full" and tower.causal)


class PlainPass:
    """open_clip's own transformer on tokens [C, L] with the context vectors in their places.

    Args:
        tower: CLIP's text tower.
        layout: of the prompts.
        cut: drop the positions after the last EOT.
    """

    def __init__(self, tower: TextTower, layout: PromptLayout, cut: bool) -> None:
        self._tower, self._layout = tower, layout
        self._length = int(layout.eot.max()) + 1 if cut else tower.context_length
        self._device: torch.device | None = None

    def __call__(self, contexts: Tensor) -> Tensor:
        self._prepare(contexts.device)
        tower = self._tower
        if self._layout.class_specific:
            index = self._index[None, :, :, None].expand(len(contexts), -1, -1, contexts.shape[-1])
            placed = contexts.gather(2, index)  # [M, C, L, w]
        else:
            placed = contexts[:, self._index]
        x = torch.where(self._learned, placed, self._constant).to(tower.dtype)
        x = (x + tower.positional_embedding[: self._length].to(tower.dtype)).flatten(0, 1)  # [M C, L, w]
        x = tower.transform(x).unflatten(0, (len(contexts), -1))
        return tower.project(x[:, self._rows, self._eot])

    def _prepare(self, device: torch.device) -> None:
        if self._device == device:
            return
        layout, length = self._layout, self._length
        slots = layout.slots[:, :length].to(device)
        self._index, self._learned = slots.clamp(min=0), (slots >= 0).unsqueeze(-1)
        self._eot, self._rows = layout.eot.to(device), torch.arange(len(slots), device=device)
        with torch.no_grad():
            self._constant = self._tower.token_embedding(layout.ids[:, :length].to(device))  # [C, L, w]
        self._device = device


class SharedPass:
    """Each distinct token once, packed: a trunk and a branch for each class.

    Args:
        tower: CLIP's text tower.
        layout: of the prompts. The trunk contains a generic context before the name entirely, and half of one around
            the name; otherwise it is only SOS.
    """

    def __init__(self, tower: TextTower, layout: PromptLayout) -> None:
        self._tower, self._tree = tower, _Tree(layout)
        self._device: torch.device | None = None

    def __call__(self, contexts: Tensor) -> Tensor:
        self._prepare(contexts.device)
        tower = self._tower
        learned = contexts.flatten(1, -2)  # [M, n, w]
        if self._picked is not None:
            learned = learned.index_select(1, self._picked)
        learned = learned.to(tower.dtype) + self._positions
        x = self._pack(learned, self._constant)  # [M, N, w]
        blocks = tower.blocks
        maps: Sequence[PackedMaps | None] = tower.packed_maps() or [None] * len(blocks)
        for i, (block, packed) in enumerate(zip(blocks[:-1], maps, strict=False)):
            if i == 0:
                qkv = self._pack(_project_in(block, learned, slice(None), packed), self._constant_qkv)
            else:
                qkv = _project_in(block, x, slice(None), packed)  # [M, N, 3 w]
            query, key, value = qkv.chunk(3, dim=-1)
            x = _finish(block, x, self._body(query, key, value, tower.heads), tower.quick_gelu, packed)
        block, packed, width = blocks[-1], maps[-1], x.shape[-1]
        key, value = _project_in(block, x, slice(width, None), packed).chunk(2, dim=-1)
        x = x.index_select(1, self._eot)  # [M, C, w]
        query = _project_in(block, x, slice(width), packed)
        mixed = self._final(query, key, value, tower.heads)
        return tower.project(_finish(block, x, mixed, tower.quick_gelu, packed))

    @property
    def rows(self) -> int:
        """The number N of packed tokens of one prompt."""
        return len(self._tree.owner)

    def _pack(self, learned: Tensor, constant: Tensor) -> Tensor:
        """Rows of learned tokens [M, n, *] and of constant ones [N - n, *] in packed order [M, N, *]."""
        joined = torch.cat([learned, constant.expand(len(learned), -1, -1)], dim=1)
        return joined if self._order is None else joined.index_select(1, self._order)

    def _prepare(self, device: torch.device) -> None:
        """Index tensors and constants, once for each device."""
        if self._device == device:
            return
        tower, tree = self._tower, self._tree
        self._order = None if tree.order is None else tree.order.to(device)
        self._picked = None if tree.picked is None else tree.picked.to(device)
        self._eot = tree.eot.to(device)
        self._body = tree.attention(tree.body_queries, device, tower.dtype)
        self._final = tree.attention(tree.eot_queries, device, tower.dtype)
        with torch.no_grad():
            positions = tower.positional_embedding.to(tower.dtype)
            fixed, learned = ~tree.is_learned, tree.is_learned
            self._positions = positions[tree.position[learned].to(device)]  # [n, w]
            embedded = tower.token_embedding(tree.ids[fixed].to(device)).to(tower.dtype)
            self._constant = embedded + positions[tree.position[fixed].to(device)]  # [N - n, w]
            self._constant_qkv = _project_in(tower.blocks[0], self._constant, slice(None))  # [N - n, 3 w]
        self._device = device


def _project_in(block: Any, x: Tensor, part: slice, packed: PackedMaps | None = None) -> Tensor:
    """The block's first norm, then the queries, keys and values (or a part of them): [..., w] -> [..., 3 w]."""
    if packed is not None:
        return packed.project_in(block.ln_1(x), part)
    attn = block.attn
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[part]
    return F.linear(block.ln_1(x), attn.in_proj_weight[part], bias)


def _finish(block: Any, x: Tensor, mixed: Tensor, quick_gelu: bool, packed: PackedMaps | None) -> Tensor:
    """The rest of a block after its attention: output map, residual, MLP, residual; x and mixed [M, *, w]."""
    if packed is not None:
        x = x + block.ls_1(packed.out(mixed))
        h = packed.wide(block.ln_2(x))
        return x + block.ls_2(packed.narrow(F.silu(h) if quick_gelu else block.mlp.gelu(h)))
    x = x + block.ls_1(block.attn.out_proj(mixed))
    if not quick_gelu:
        return x + block.ls_2(block.mlp(block.ln_2(x)))
    # QuickGELU h sigmoid(1.702 h) is silu(1.702 h) / 1.702. The factors ride on the matrix products, which leaves one
    # pass over the widest activations where open_clip's module makes three.
    wide, narrow, factor = block.mlp.c_fc, block.mlp.c_proj, QUICK
    h = block.ln_2(x).flatten(0, 1)
    h = F.silu(torch.addmm(wide.bias, h, wide.weight.T, beta=factor, alpha=factor))
    h = torch.addmm(narrow.bias, h, narrow.weight.T, beta=factor).view_as(x)
    return torch.add(x, block.ls_2(h), alpha=1 / factor)


class _Tree:
    """Index arithmetic of the packed tokens: the trunk, then the branches one after the other.

    Attributes, one entry for each packed token: ``owner`` its class (-1 in the trunk), ``position``, ``ids``,
    ``is_learned``. ``eot`` [C]: the packed index of each class's EOT. ``picked`` [n]: which context row each learned
    token is; ``order`` [N]: where each packed token is among the learned and then the constant ones. Both are None if
    they would change nothing.
    """

    def __init__(self, layout: PromptLayout) -> None:
        trunk, (classes, _) = layout.trunk, layout.ids.shape
        lengths = [int(eot) + 1 - trunk for eot in layout.eot]
        owner = torch.repeat_interleave(torch.arange(-1, classes), torch.tensor([trunk, *lengths]))
        self.owner = owner
        self.position = torch.cat([torch.arange(trunk), *(torch.arange(trunk, trunk + n) for n in lengths)])
        row = owner.clamp(min=0)
        self.ids, slot = layout.ids[row, self.position], layout.slots[row, self.position]
        self.is_learned = slot >= 0
        self.eot = trunk - 1 + torch.tensor(lengths).cumsum(dim=0)
        length = int(layout.slots.max()) + 1
        picked = slot + (row * length if layout.class_specific else 0)
        self.picked = _unless_identity(picked[self.is_learned], classes * length if layout.class_specific else length)
        sources = torch.cat([self.is_learned.nonzero(), (~self.is_learned).nonzero()]).flatten()
        self.order = _unless_identity(sources.argsort(), len(owner))
        groups = _groups(lengths, GROUP_TOKENS)
        members = [torch.arange(trunk + sum(lengths[: g.start]), trunk + sum(lengths[: g.stop])) for g in groups]
        whole = [torch.cat([torch.arange(trunk), own]) for own in members]
        self.keys = whole
        self.body_queries = [whole[0], *members[1:]]  # the trunk's own queries go with the first group
        self.eot_queries = [self.eot[g.start : g.stop] for g in groups]

    def attention(self, queries: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> GroupedAttention:
        """Attention of those packed tokens, by group, to what they may see."""
        masks = []
        for query, key in zip(queries, self.keys, strict=True):
            before = self.position[key] <= self.position[query].unsqueeze(1)
            related = (self.owner[key] < 0) | (self.owner[key] == self.owner[query].unsqueeze(1))
            masks.append(before & related)
        return GroupedAttention(queries, self.keys, masks, device, dtype)


class GroupedAttention:
    """Attention in groups of queries, each group with its own keys and mask.

    Args:
        queries, keys: for each group the indices of packed tokens. Each query is in one group, in ascending order
            over all; a key may be in several.
        masks: for each group [Q, J], true where the query may see the key.
    """

    def __init__(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        masks: Sequence[Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._alone = len(queries) == 1
        most_queries, most_keys = max(map(len, queries)), max(map(len, keys))
        total = sum(map(len, queries))
        ranks = torch.arange(total).split([len(query) for query in queries])
        padded = torch.zeros(len(queries), most_queries, dtype=torch.long)
        seen = torch.zeros(len(queries), most_keys, dtype=torch.long)
        mask = torch.zeros(len(queries), 1, most_queries, most_keys, dtype=torch.bool)
        mask[..., 0] = True  # so that a padded query sees something
        back = []
        for g, (query, key, allowed) in enumerate(zip(ranks, keys, masks, strict=True)):
            padded[g, : len(query)] = query
            seen[g, : len(key)] = key
            mask[g, 0, : len(query), : len(key)] = allowed
            back.append(g * most_queries + torch.arange(len(query)))
        self._shape = (len(queries), most_queries, most_keys)
        self._queries, self._keys = padded.flatten().to(device), seen.flatten().to(device)
        self._back = torch.cat(back).to(device)
        self._mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf")).to(device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Queries [M, number of queries, w], keys and values [M, N, w] -> mixed values, as the queries lie."""
        prompts, (groups, most_queries, most_keys) = len(query), self._shape
        if not self._alone:
            query = query.index_select(1, self._queries).unflatten(1, (groups, most_queries)).flatten(0, 1)
            key = key.index_select(1, self._keys).unflatten(1, (groups, most_keys)).flatten(0, 1)
            value = value.index_select(1, self._keys).unflatten(1, (groups, most_keys)).flatten(0, 1)
        query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask = self._mask if prompts == 1 or self._alone else self._mask.repeat(prompts, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [M G, h, Q, e]
        mixed = mixed.transpose(1, 2).flatten(2)  # [M G, Q, w]
        if self._alone:
            return mixed
        return mixed.unflatten(0, (prompts, groups)).flatten(1, 2).index_select(1, self._back)


def _groups(lengths: Sequence[int], limit: int) -> list[range]:
    """Neighbouring classes in groups of at most ``limit`` tokens, or of one class."""
    groups, start, tokens = [], 0, 0
    for i, length in enumerate(lengths):
        if i > start and tokens + length > limit:
            groups.append(range(start, i))
            start, tokens = i, 0
        tokens += length
    return [*groups, range(start, len(lengths))]


def _unless_identity(index: Tensor, length: int) -> Tensor | None:
    return None if len(index) == length and bool((index == torch.arange(length)).all()) else index
