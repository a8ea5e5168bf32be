"""CLIP's text encoder, part by part.

Shape letters: w token width, d feature width, n texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe.errors import UserError
from fedmoe.models.packed import PackedLinear, available

QUICK = 1.702  # OpenAI's activation is x sigmoid(1.702 x)


class TextTower:
    """open_clip's text transformer, part by part, for the text pass.

    Holds references only: the modules belong to ``FrozenCLIP`` and move with it.

    Attributes:
        packed: whether the shared text pass multiplies with packed weights (``fedmoe.models.packed``), where it can.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self.packed = False
        self._maps: Sequence[PackedMaps] | None = None
        self._packed_for: tuple[Any, ...] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTower:
        copied = TextTower(deepcopy(self._module, memo))  # packs its weights anew
        copied.packed = self.packed
        return copied

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

    def packed_maps(self) -> Sequence[PackedMaps] | None:
        """The packed linear maps of each block; None where plain products are used."""
        if not self.packed:
            return None
        weight = self.blocks[-1].attn.in_proj_weight
        held = (weight.device, weight.dtype, weight._version)
        if self._packed_for != held:
            can = available(weight)
            self._maps = [PackedMaps(block, self.quick_gelu) for block in self.blocks] if can else None
            self._packed_for = held
        return self._maps

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


class PackedMaps:
    """The linear maps of a block with packed weights. Where the activation is QuickGELU, its factor before it is in
    ``wide``, and that behind it in ``narrow``."""

    def __init__(self, block: Any, quick_gelu: bool) -> None:
        self._attn = attn = block.attn
        factor, wide, narrow = QUICK if quick_gelu else 1.0, block.mlp.c_fc, block.mlp.c_proj
        self._parts: dict[tuple[int | None, int | None], PackedLinear] = {}  # of the input map, made when first used
        self.out = PackedLinear(attn.out_proj.weight, attn.out_proj.bias)
        self.wide = PackedLinear(wide.weight, factor * wide.bias, factor)
        self.narrow = PackedLinear(narrow.weight, narrow.bias, 1 / factor)

    def project_in(self, x: Tensor, part: slice) -> Tensor:
        """To queries, keys and values, or to a part of them."""
        key = (part.start, part.stop)
        if key not in self._parts:
            bias = self._attn.in_proj_bias
            self._parts[key] = PackedLinear(self._attn.in_proj_weight[part], None if bias is None else bias[part])
        return self._parts[key](x)


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
