"""The base class of methods that learn in the image encoder.

Shape letters: b images, C classes, N tokens of an image, w width of the image tower, d feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.features.extraction import Encoder
    from fedmoe.models.blocks import Edits
    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.models.image_tower import ImageTower
    from fedmoe.protocol.client import Client
    from fedmoe.protocol.parameters import ModelSpec, Parameter

TEMPLATE = "a photo of a {class}."


class TowerMethod(Method, ABC):
    """Works with the tokens [b, N, w] that enter the image tower's first changed block, which are cached like features.

    A method names that block (``first_block``), its changes to the blocks from there on (``image_edits``), and the text
    features (``text``). It needs CLIP's VisionTransformer.

    Args:
        template: the sentence around a class name, with {class} in its place.
        save_memory: keep no activations within the towers' blocks for the backward pass, which computes them again.
        tokens: number format in which the cached tokens are kept; float16 takes half the room.
    """

    half_precision = False

    def __init__(
        self, template: str = TEMPLATE, save_memory: bool = False, tokens: Literal["float32", "float16"] = "float32"
    ) -> None:
        if "{class}" not in template:
            raise UserError(f"method.template is {template!r}; valid is a sentence with {{class}} in it.")
        self.template = template
        self.save_memory = save_memory
        self.tokens = tokens

    @abstractmethod
    def parameters(self, model: ModelSpec) -> Sequence[Parameter]: ...

    def first_block(self, clip: FrozenCLIP) -> int:
        """The first block of the image tower that the method changes, from 0."""
        return 0

    def encoder(self, clip: FrozenCLIP) -> Encoder:
        import torch

        from fedmoe.features.encoders import token_encoder

        return token_encoder(clip, self.first_block(clip), getattr(torch, self.tokens))

    def prompt(self, client: Client) -> Tensor:
        """No prompt of this kind classifies; a fixed one, for what takes the gradients of the loss by examples."""
        return client.prompts.start

    def image_edits(self, client: Client) -> Edits:
        """The changes to the blocks of the image tower."""
        return {}

    def appended(self, client: Client) -> Tensor | None:
        """Learned tokens behind the patches [p, w]; None: no such tokens."""
        return None

    def text(self, client: Client) -> Tensor:
        """The text features [C, d], l2-normalized."""
        raise NotImplementedError

    def images(self, client: Client, tokens: Tensor) -> Tensor:
        """The image features [b, d] of tokens [b, N, w], l2-normalized."""
        from fedmoe.models.image_tower import ImageTower

        return ImageTower(client.clip).upper(
            tokens,
            self.first_block(client.clip),
            self.image_edits(client),
            append=self.appended(client),
            save_memory=self.save_memory,
        )

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        """Class logits [b, C] of tokens [b, N, w]."""
        from fedmoe.models.functional import local_logits

        return local_logits(self.images(client, image_features), self.text(client), client.logit_scale)


def tower_of(model: ModelSpec) -> tuple[FrozenCLIP, ImageTower]:
    """The CLIP whose towers a part belongs to, and its image tower."""
    from fedmoe.models.image_tower import ImageTower

    assert model.clip is not None
    return model.clip, ImageTower(model.clip)


def first_words(clip: FrozenCLIP, template: str, count: int) -> Tensor:
    """The embeddings [count, w] of a template's first words.

    Raises:
        UserError: fewer tokens than that come before the class name.
    """
    from fedmoe.models.prompt import word_embeddings

    words = template.partition("{class}")[0]
    known = clip.count_tokens(words)
    if known < count:
        raise UserError(
            f"method.template is {template!r}, with {known} tokens before the class name, but {count} of them are "
            f"learned; valid is a template with at least {count}."
        )
    return word_embeddings(clip, words, "method.template")[:count]


def deep_prompts(first: Tensor | None, shape: tuple[int, int, int], std: float, generator: torch.Generator) -> Tensor:
    """Prompts of the first blocks [J, p, w] from N(0, std^2); ``first`` [p, w], if given, for the first of them."""
    import torch

    found = torch.empty(shape).normal_(std=std, generator=generator)
    if first is not None and len(found):
        found[0] = first
    return found
