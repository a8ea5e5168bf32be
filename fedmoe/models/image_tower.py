"""CLIP's image encoder, part by part, for methods that learn in it.

What lies below the first block that a method touches never changes: its output is computed once for each image and
cached like any features. A training step runs the blocks from there on. Tokens that are learned and join at the very
input come after the patches' embeddings, so that even then images need not be read again.

Shape letters: b images, N tokens (class token and patches), w tower width, d feature width, p learned tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.models.blocks import Edits, run_blocks

if TYPE_CHECKING:
    from fedmoe.models.clip import FrozenCLIP

_IMAGES = 64  # encoded at once where no gradient is needed; bounds the memory of the activations


class ImageTower:
    """open_clip's VisionTransformer. Holds references only: the modules belong to ``FrozenCLIP`` and move with it.

    Attributes:
        blocks: open_clip's transformer blocks.
        width: w.
        tokens: N.

    Raises:
        UserError: the visual tower is another one, or is not read at its class token after the last norm.
    """

    def __init__(self, clip: FrozenCLIP) -> None:
        visual: Any = clip.model.visual
        kind, odd = type(visual).__name__, ""
        if kind != "VisionTransformer":
            odd = f"is a {kind}"
        elif visual.attn_pool is not None or visual.final_ln_after_pool or visual.pool_type != "tok":
            odd = f"pools its tokens by the rule {visual.pool_type!r}"
        if odd:
            raise UserError(
                f"The visual tower of {clip.name} {odd}, and prompts and adapters for it are not known; valid is a "
                "clip.architecture with CLIP's VisionTransformer, such as ViT-B-16 or the embedded fedmoe-tiny-vit."
            )
        self._visual, self._dtype = visual, clip.text.dtype
        self.blocks: list[Any] = list(visual.transformer.resblocks)
        self.tokens, self.width = visual.positional_embedding.shape

    @torch.no_grad()
    def lower(self, images: Tensor, first: int) -> Tensor:
        """Preprocessed images [b, 3, S, S] -> the tokens that enter block ``first`` [b, N, w], float32, no gradient."""
        visual = self._visual
        patches = visual.conv1(images.to(self._dtype)).flatten(2).transpose(1, 2)  # [b, N - 1, w]
        own = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([own, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        return run_blocks(self.blocks[:first], visual.ln_pre(x)).float()

    def upper(
        self,
        tokens: Tensor,
        first: int = 0,
        edits: Edits | None = None,
        *,
        append: Tensor | None = None,
        save_memory: bool = False,
    ) -> Tensor:
        """The rest of the tower: tokens that enter block ``first`` [b, N, w] -> l2-normalized features [b, d], float32.

        Args:
            edits: by the number of the block in the whole tower; none below ``first``.
            append: learned tokens [p, w] that are put behind the patches, before the tower's first norm; only with
                ``first`` = 0.
            save_memory: as ``run_blocks``.
        """
        if not torch.is_grad_enabled() and len(tokens) > _IMAGES:
            parts = tokens.split(_IMAGES)
            return torch.cat([self.upper(part, first, edits, append=append) for part in parts])
        x, visual = tokens.to(self._dtype), self._visual
        if append is not None:
            x = torch.cat([x, visual.ln_pre(append.to(x.dtype)).expand(len(x), -1, -1)], dim=1)  # [b, N + p, w]
        shifted = {i - first: edit for i, edit in (edits or {}).items()}
        x = run_blocks(self.blocks[first:], x, None, shifted, save_memory=save_memory)
        found = visual.ln_post(x[:, 0]) @ visual.proj
        return F.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=-1)
