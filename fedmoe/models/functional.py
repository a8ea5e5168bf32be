"""The gate and the logits as pure functions (arXiv 2410.10114, eq. 9 to 11).

Shape letters: b images, C classes, d feature width, g gating width, K non-local experts, h heads, e = g / h.
All features are l2-normalized by the caller; nothing is normalized again here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Pooling = Callable[[Tensor, int], Tensor]  # features [..., d] and g, which divides d -> [..., g]; g = d: the identity


def pool(features: Tensor, gating_dim: int) -> Tensor:
    """Keep every (d // g)-th coordinate, as the release does: [..., d] -> [..., g]; ``gating_dim`` g must divide d."""
    return features[..., :: features.shape[-1] // gating_dim]


def average_pool(features: Tensor, gating_dim: int) -> Tensor:
    """The mean of each d // g neighbouring coordinates: [..., d] -> [..., g]; ``gating_dim`` g must divide d."""
    return features.unflatten(-1, (gating_dim, -1)).mean(dim=-1)


def attention_weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Weight of each expert for each image, class and head; the weights sum to one over the K + 1 experts.

    softmax(scale * q . k), with the release's constant in place of 1 / sqrt(e).

    Args:
        query: [b, h, e], from the pooled image features.
        key: [K + 1, C, h, e], from the pooled text features.

    Returns:
        [b, C, h, K + 1]
    """
    return torch.softmax(scale * products(query, key), dim=-1).permute(1, 2, 0, 3)


def products(query: Tensor, key: Tensor) -> Tensor:
    """q . k for each head, image, class and expert: [b, h, e] and [K + 1, C, h, e] -> [h, b, C, K + 1].

    One matrix product per head; experts are last in the result, which suits the softmax over them.
    """
    experts, classes = key.shape[:2]
    flat = key.permute(2, 3, 1, 0).flatten(2)  # [h, e, C (K + 1)]
    return (query.transpose(0, 1) @ flat).unflatten(-1, (classes, experts))


def normalized_entropy(weights: Tensor) -> Tensor:
    """Entropy of each image's weights over the K + 1 experts, divided by log(K + 1), mean over classes and heads:
    [b, C, h, K + 1], with K of at least 1 -> [b], in [0, 1]. 1: all experts weigh the same."""
    entropy = torch.special.entr(weights).sum(dim=-1) / math.log(weights.shape[-1])  # [b, C, h]
    return entropy.mean(dim=(1, 2))


def top_share(weights: Tensor) -> Tensor:
    """The largest of the weights over the K + 1 experts, mean over classes and heads: [b, C, h, K + 1] -> [b]."""
    return weights.amax(dim=-1).mean(dim=(1, 2))


def attend(weights: Tensor, value: Tensor) -> Tensor:
    """Mix the experts' values: weights [b, C, h, K + 1], value [K + 1, C, h, e] -> [b, C, g], heads side by side."""
    return torch.einsum("bchk,kche->bche", weights, value).flatten(2)


def local_logits(image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
    """CLIP's logits: exp(logit_scale) * I . T_L.

    Args:
        image_features: I [b, d].
        text_features: T_L [C, d].
        logit_scale: CLIP's factor, already exponentiated.

    Returns:
        [b, C]
    """
    return logit_scale * image_features @ text_features.T


def moe_logits(
    image_features: Tensor,
    text_features: Tensor,
    moe_features: Tensor,
    logit_scale: float,
    lmbda: float,
    pooling: Pooling = pool,
) -> Tensor:
    """Logits of the mixture: exp(logit_scale) * (pool(I) . T_MoE + lambda * I . T_L) (eq. 10).

    Args:
        image_features: I [b, d].
        text_features: T_L [C, d], of the local prompt.
        moe_features: T_MoE [b, C, g], from the gate.
        logit_scale: CLIP's factor, already exponentiated.
        lmbda: weight lambda of the local prompt's own logits.
        pooling: the gate's pooling.

    Returns:
        [b, C]
    """
    pooled = pooling(image_features, moe_features.shape[-1])  # [b, g]
    return combine(torch.einsum("bg,bcg->bc", pooled, moe_features), image_features, text_features, logit_scale, lmbda)


def combine(
    moe_similarity: Tensor, image_features: Tensor, text_features: Tensor, logit_scale: float, lmbda: float
) -> Tensor:
    """Eq. 10 from pool(I) . T_MoE [b, C], I [b, d] and T_L [C, d]: [b, C]."""
    return logit_scale * (moe_similarity + lmbda * image_features @ text_features.T)
