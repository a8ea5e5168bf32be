"""CLIP's text encoder, part by part.

Shape letters: w token width, d feature width, n texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe.errors import UserError


class TextTower:
    """open_clip's text transformer, part by part, for the text pass.

    Holds references only: the modules belong to ``FrozenCLIP`` and move with it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    @property
    def token_embedding(self) -> nn.Embedding:
        return self._module.token_embedding  # [vocabulary, w]

    @property
    def positional_embedding(self) -> Tensor:
        return self._module.positional_embedding  # [context_length, w]

    @property
    def blocks(self) -> list[Any]:
        return list(self._module.transformer.resblocks)

    @property
    def ln_final(self) -> nn.Module:
        return self._module.ln_final

    @property
    def projection(self) -> Tensor | nn.Linear | None:
        return self._module.text_projection  # [w, d]

    @property
    def heads(self) -> int:
        return self.blocks[0].attn.num_heads

    @property
    def quick_gelu(self) -> bool:
        """Whether the blocks' activation is OpenAI's x sigmoid(1.702 x)."""
        return all(type(block.mlp.gelu).__name__ == "QuickGELU" for block in self.blocks)

    @property
    def context_length(self) -> int:
        return self._module.context_length

    @property
    def causal(self) -> bool:
        """Whether each token sees only those before it, so that what follows the one that is read changes nothing."""
        return self._module.attn_mask is not None

    @property
    def plain_blocks(self) -> bool:
        """Whether blocks are CLIP's own, whose arithmetic ``SharedPass`` knows."""
        return all(type(block).__name__ == "ResidualAttentionBlock" for block in self.blocks)

    def ends(self, ids: Tensor) -> Tensor:
        """The position at which the feature of each text [n, L] is read, [n]: open_clip's ``pool_type``."""
        prefix = "text_" if hasattr(self._module, "text_pool_type") else ""
        pool, eos = (getattr(self._module, prefix + name) for name in ("pool_type", "eos_id"))
        if pool == "eos":
            return (ids == eos).int().argmax(dim=-1)
        if pool == "argmax":  # the EOT is the largest of CLIP's ids
            return ids.argmax(dim=-1)
        return torch.full((len(ids),), {"first": 0, "last": ids.shape[1] - 1}[str(pool)])

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the linear maps, and of the activations between them."""
        return self._module.transformer.get_cast_dtype()

    @property
    def device(self) -> torch.device:
        return self.positional_embedding.device

    def transform(self, x: Tensor) -> Tensor:
        """open_clip's own transformer with its mask, on embedded tokens [n, at most context_length, w]."""
        return self._module.transformer(x, attn_mask=self.mask(x.shape[1]))

    def mask(self, length: int) -> Tensor | None:
        """The causal attention mask of so many tokens, [length, length]; None if there is none."""
        found: Tensor | None = self._module.attn_mask
        return None if found is None else found[:length, :length]

    def project(self, x: Tensor) -> Tensor:
        """Final norm and projection of the tokens at the EOT: [..., w] -> [..., d]."""
        x, projection = self.ln_final(x), self.projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def require_prompts(config: Mapping[str, Any], name: str) -> None:
    """Raise ``UserError`` unless prompts can be learned for the text encoder of a model in open_clip's config format.

    That takes open_clip's text transformer over token vectors, read at a position that depends on the prompt.
    """
    text = config["text_cfg"]
    pool, reason = text.get("pool_type", "argmax"), None
    if "multimodal_cfg" in config or text.get("embed_cls"):
        reason = "is CoCa's, which reads a class token behind a mask of the words, and so of the prompt"
    elif text.get("hf_model_name"):
        reason = f"is Hugging Face's {text['hf_model_name']}, which takes token ids and no vectors"
    elif pool == "none" or (pool == "first" and not text.get("no_causal_mask")):
        reason = f"is read by the rule {pool!r}, at no position that a prompt could change"
    if reason:
        raise UserError(
            f"The text encoder of {name} {reason}; valid are architectures with open_clip's own text transformer, such "
            "as RN50, ViT-B-16 or ViT-B-16-SigLIP."
        )
