"""Fed-VPT: visual prompts, averaged over the clients; with text prompts beside them, independent prompting (IVLP).

Jia et al., "Visual Prompt Tuning", ECCV 2022 (arXiv 2203.12119), in the form that federated works compare with: the
learned tokens come behind the patches, before the image tower's first norm and without a place of their own; deep ones
take their places before the next blocks. IVLP is the independent prompting of Khattak et al. (MaPLe, CVPR 2023).

Shape letters: C classes, J blocks with prompts, p visual tokens, n words, w a tower's width, d feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.methods.towers import TEMPLATE, TowerMethod, deep_prompts, first_words, tower_of
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.models.blocks import Edits
    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client


class FedVPT(TowerMethod):
    """All prompts are averaged over the cohort (weighted by n_i) and trained with ``optim.prompt_lr``; nothing stays.

    Args:
        vectors: number p of visual tokens; 0: none.
        depth: number J of blocks, from the first, that get prompts of their own: 1 is the shallow form. Towers with
            fewer blocks get them in all.
        text_vectors: number n of words that are learned, too (IVLP): they replace the template's first words, whose
            embeddings they start from; 0: none. The template's other words stay.
        std: standard deviation of the random starts, which are all but those from words.
        template: the sentence around a class name, with {class} in its place.
        save_memory: keep no activations within the towers' blocks for the backward pass, which computes them again.
        tokens: number format in which the cached tokens are kept; float16 takes half the room.
    """

    label = "Fed-VPT"

    def __init__(
        self,
        vectors: int = 4,
        depth: int = 1,
        text_vectors: int = 0,
        std: float = 0.02,
        template: str = TEMPLATE,
        save_memory: bool = False,
        tokens: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__(template, save_memory, tokens)
        for name, value in {"vectors": vectors, "text_vectors": text_vectors}.items():
            if value < 0:
                raise UserError(f"method.{name} is {value}; valid is an integer of at least 0.")
        if depth < 1:
            raise UserError(f"method.depth is {depth}; valid is an integer of at least 1.")
        if std < 0:
            raise UserError(f"method.std is {std}; valid is a number of at least 0.")
        self.vectors = vectors
        self.depth = depth
        self.text_vectors = text_vectors
        self.std = std

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        from fedmoe.models.prompt import template_features

        return {} if self.text_vectors else {"template": template_features(clip, class_names, self.template)}  # [C, d]

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        clip, tower = tower_of(model)
        parts = []
        if self.vectors:

            def visual(generator: torch.Generator) -> Tensor:
                shape = (min(self.depth, len(tower.blocks)), self.vectors, tower.width)
                return deep_prompts(None, shape, self.std, generator)

            parts.append(Parameter("visual", Scope.SHARED, visual))
        if self.text_vectors:
            words = first_words(clip, self.template, self.text_vectors)

            def text(generator: torch.Generator) -> Tensor:
                shape = (min(self.depth, len(clip.text.blocks)), *words.shape)
                return deep_prompts(words, shape, self.std, generator)

            parts.append(Parameter("text", Scope.SHARED, text))
        return parts

    def appended(self, client: Client) -> Tensor | None:
        return client.prompts["visual"][0] if self.vectors else None

    def image_edits(self, client: Client) -> Edits:
        from fedmoe.models.blocks import replaced

        if not self.vectors:
            return {}
        deep = client.prompts["visual"]
        return {i: replaced(deep[i], -self.vectors) for i in range(1, len(deep))}

    def text(self, client: Client) -> Tensor:
        from fedmoe.models.blocks import replaced

        if not self.text_vectors:
            return client.constants["template"].to(client.prompts.start)
        words = client.prompts["text"]
        encode = client.prompts.sentences(self.template, self.text_vectors)
        edits = {i: replaced(words[i], 1) for i in range(1, len(words))}
        return encode(words[0], edits, save_memory=self.save_memory)
