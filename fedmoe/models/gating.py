"""The gates G (eq. 9 to 11), which weight the experts. The method uses attention; a linear projection is its ablation.

Shape letters: b images, C classes, d feature width, g gating width, K non-local experts, n <= K + 1 available experts,
h heads, e = g / h.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedmoe.errors import UserError
from fedmoe.models import functional


class Narrowing(nn.Module):
    """A module that works on features narrowed from CLIP's width d to g.

    Args:
        feature_dim: CLIP's feature width d.
        gating_dim: width g the features are pooled to; must divide d. At g = d nothing is pooled.
        pooling: stride keeps every (d / g)-th coordinate (the release), average takes the mean of each d / g
            neighbouring ones.

    Raises:
        UserError: g does not divide d.
    """

    poolings: ClassVar[Mapping[str, functional.Pooling]] = {
        "stride": functional.strided,
        "average": functional.averaged,
    }

    def __init__(self, feature_dim: int, gating_dim: int, pooling: str) -> None:
        super().__init__()
        if gating_dim < 1 or feature_dim % gating_dim:
            raise UserError(
                f"method.gating_dim is {gating_dim}, which does not divide CLIP's feature width {feature_dim}; "
                f"valid are {_divisors(feature_dim)}."
            )
        self.feature_dim, self.gating_dim, self.pooling = feature_dim, gating_dim, pooling

    def narrow(self, features: Tensor) -> Tensor:
        """[..., d] -> [..., g]"""
        return self.poolings[self.pooling](features, self.gating_dim)


class Gate(Narrowing, ABC):
    """Maps an image to a mixture T_MoE of the experts' text features for each class.

    Images and texts have CLIP's width d and are pooled to g here. Text features are those of the local expert, followed
    by those of the others. Arguments are those of ``Narrowing``.
    """

    @contextmanager
    def attention_shared(self) -> Iterator[None]:
        """Within it, the same weights are computed once, for calls without gradient on the same features: evaluation
        asks for logits and for the weights behind them."""
        yield

    @abstractmethod
    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Image features [b, d] and text features [n, C, d] -> T_MoE [b, C, g]."""

    @abstractmethod
    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """narrow(I) . T_MoE [b, C], equal to what ``forward`` gives, without building T_MoE [b, C, g]."""

    @abstractmethod
    def attention(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """The experts' weights in ``forward`` [b, C, h, n], for analysis; they sum to one over the experts."""


class AttentionGate(Gate):
    """Multi-head attention from an image to the experts' text features of each class.

    Query: the pooled image feature; keys and values: the pooled text features of the local expert and the K others.
    There is no positional term, so experts may come in any order and number. Four linear maps with bias.

    Args:
        feature_dim: CLIP's feature width d.
        gating_dim: width g the features are pooled to; must divide d.
        heads: attention heads h; must divide g.
        scale: factor on query . key before the softmax; the release uses 10 in place of 1 / sqrt(g / h).
        generator: source of the initial parameters (torch.nn.Linear's distribution); None: torch's global one.
        pooling: stride or average, see ``Narrowing``.
        start: random, or identity for the query and key maps, so that each expert's similarity with the image decides
            its weight from the first step on. The value and output maps start the same in both cases.

    Raises:
        UserError: a width does not divide the other.
    """

    def __init__(
        self,
        feature_dim: int,
        gating_dim: int = 128,
        heads: int = 8,
        scale: float = 10.0,
        generator: torch.Generator | None = None,
        pooling: str = "stride",
        start: str = "random",
    ) -> None:
        super().__init__(feature_dim, gating_dim, pooling)
        if heads < 1 or gating_dim % heads:
            raise UserError(
                f"method.heads is {heads}, which does not divide method.gating_dim = {gating_dim}; "
                f"valid are {_divisors(gating_dim)}."
            )
        self.heads, self.scale = heads, scale
        self._shared: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.query = linear(gating_dim, gating_dim, generator)
        self.key = linear(gating_dim, gating_dim, generator)
        self.value = linear(gating_dim, gating_dim, generator)
        self.output = linear(gating_dim, gating_dim, generator)
        if start == "identity":
            for layer in (self.query, self.key):
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Image features [b, d] and text features [K + 1, C, d], the local expert's first -> T_MoE [b, C, g]."""
        text = self.narrow(text_features)  # [K + 1, C, g]
        weights = self._attention(self.narrow(image_features), text)
        return self.output(functional.attend(weights, self._split(self.value(text))))

    def attention(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """The attention weights [b, C, h, K + 1] of ``forward``, for analysis."""
        return self._attention(self.narrow(image_features), self.narrow(text_features))

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """narrow(I) . T_MoE [b, C], equal to what ``forward`` gives, without building T_MoE [b, C, g].

        p . (W_o a + b_o) = (W_o^T p) . a + p . b_o moves the output map to the image's side, and a is a sum over
        experts, so only one number per image, class, head and expert has to be computed.
        """
        image, text = self.narrow(image_features), self.narrow(text_features)  # [b, g], [K + 1, C, g]
        weights = self._attention(image, text)  # [b, C, h, K + 1]
        folded = self._split(image @ self.output.weight)  # W_o^T p [b, h, e]
        gain = functional.products(folded, self._split(self.value(text)))  # [h, b, C, K + 1]
        return (weights.permute(2, 0, 1, 3) * gain).sum(dim=-1).sum(dim=0) + (image @ self.output.bias).unsqueeze(-1)

    @contextmanager
    def attention_shared(self) -> Iterator[None]:
        self._shared = []
        try:
            yield
        finally:
            self._shared = None

    def _attention(self, image: Tensor, text: Tensor) -> Tensor:
        """Narrowed features [b, g] and [n, C, g] -> weights [b, C, h, n]."""
        if self._shared is None or torch.is_grad_enabled():
            return self._weigh(image, text)
        for images, texts, weights in self._shared:
            if torch.equal(images, image) and torch.equal(texts, text):
                return weights
        weights = self._weigh(image, text)
        self._shared = [(image, text, weights)]  # only the last: they are large
        return weights

    def _weigh(self, image: Tensor, text: Tensor) -> Tensor:
        query, key = self._split(self.query(image)), self._split(self.key(text))
        return functional.attention_weights(query, key, self.scale)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # [..., g] -> [..., h, e]


class UniformGate(AttentionGate):
    """A control: every expert has the same weight 1 / (K + 1), for all images, classes and heads.

    Query and key maps are drawn, so that value and output maps start as those of an attention gate do, and then unused.
    """

    def _weigh(self, image: Tensor, text: Tensor) -> Tensor:
        experts, classes = text.shape[:2]
        return image.new_full((len(image), classes, self.heads, experts), 1 / experts)


ATTENTIONS: Mapping[str, type[AttentionGate]] = {"learned": AttentionGate, "uniform": UniformGate}


class LinearGate(Gate):
    """A linear projection of the image to one weight for each of a fixed number of experts (the ablation of table 7).

    w = softmax(W narrow(I) + b) over K + 1 experts, T_MoE^(c) = sum_k w_k narrow(T_k^(c)). The weights of an image are
    the same for all classes, and T_MoE is used in eq. 10 like that of the attention gate. The paper says only "linear
    projection" and gives the number of experts; the rest is our interpretation.

    W knows an expert only by its position, so the order matters: the local expert, then the others as assigned (nearest
    first). If fewer than K others are available, the last positions are left out of the softmax.

    Args:
        feature_dim: CLIP's feature width d.
        gating_dim: width g the features are pooled to; must divide d.
        num_experts: number K of non-local experts.
        generator: source of the initial parameters (torch.nn.Linear's distribution); None: torch's global one.
        pooling: stride or average, see ``Narrowing``.

    Raises:
        UserError: g does not divide d.
    """

    def __init__(
        self,
        feature_dim: int,
        gating_dim: int,
        num_experts: int,
        generator: torch.Generator | None = None,
        pooling: str = "stride",
    ) -> None:
        super().__init__(feature_dim, gating_dim, pooling)
        self.projection = linear(gating_dim, num_experts + 1, generator)

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        text = self.narrow(text_features)  # [n, C, g]
        return torch.einsum("bn,ncg->bcg", self._weights(self.narrow(image_features), len(text)), text)

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        image, text = self.narrow(image_features), self.narrow(text_features)
        similarity = torch.einsum("bg,ncg->bcn", image, text)
        return (similarity @ self._weights(image, len(text)).unsqueeze(-1)).squeeze(-1)

    def attention(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        experts, classes = text_features.shape[:2]
        weights = self._weights(self.narrow(image_features), experts)
        return weights[:, None, None].expand(-1, classes, 1, -1)  # one head, all classes alike

    def _weights(self, image: Tensor, experts: int) -> Tensor:
        """Narrowed images [b, g] -> [b, n]."""
        return self.projection(image)[:, :experts].softmax(dim=-1)


def linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear map with torch.nn.Linear's own initial distribution, U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _divisors(n: int) -> str:
    return ", ".join(str(i) for i in range(1, n + 1) if n % i == 0)
