"""Eq. 9 to 11 on numbers small enough for pencil and paper, with lambda, attention scale and logit scale away from the
paper's 0.5, 10 and exp(4.6).

Two images, two classes, feature width 4, pooled by stride to coordinates 0 and 2 (g = 2), K = 1 other expert, h = 2
heads of one number each. With a = ln(3) / 2 and the scale 2, every softmax is over logarithms of 1, 3 and 9.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedmoe.models.functional import (
    attend,
    attention_weights,
    averaged,
    combine,
    local_logits,
    moe_logits,
    products,
    strided,
)
from fedmoe.models.gating import AttentionGate, LinearGate

A = math.log(3) / 2
IMAGES = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.0, 1.0, -1.0, 1.0]])  # pooled: (1, 2) and (0, -1)
LOCAL = [[0.0, 1.0, 0.0, 2.0], [2 * A, 0.0, 0.0, 1.0]]  # pooled: (0, 0) and (2a, 0)
OTHER = [[A, 7.0, A, 8.0], [2 * A, 9.0, 0.0, 6.0]]  # pooled: (a, a) and (2a, 0)
TEXTS = torch.tensor([LOCAL, OTHER])

# W_q swaps the two numbers and adds (0, 1): q = (2, 2) and (-1, 1).
# W_k = diag(1, -1): k of class 0 is (0, 0) and (a, -a); its bias shifts all experts alike, which a softmax forgets.
# W_v = diag(1/a, 2/a) and (1, 3): v of class 0 is (1, 3) and (2, 5), of class 1 (3, 3) twice.
# W_o = [[1, -1], [2, 0]] and (1/4, 1/2).
MAPS = {
    "query": ([[0.0, 1.0], [1.0, 0.0]], [0.0, 1.0]),
    "key": ([[1.0, 0.0], [0.0, -1.0]], [5.0, -7.0]),
    "value": ([[1 / A, 0.0], [0.0, 2 / A]], [1.0, 3.0]),
    "output": ([[1.0, -1.0], [2.0, 0.0]], [0.25, 0.5]),
}

# Class 0, first image: 2 * 2 * (0, a) = (0, 2 ln 3), so 1 : 9; second head 2 * 2 * (0, -a), so 9 : 1.
# Second image: 2 * -1 * (0, a) = (0, -ln 3), so 3 : 1; second head 2 * 1 * (0, -a), so 3 : 1.
# Class 1: both experts are the same.
WEIGHTS = [
    [[[0.1, 0.9], [0.9, 0.1]], [[0.5, 0.5], [0.5, 0.5]]],
    [[[0.75, 0.25], [0.75, 0.25]], [[0.5, 0.5], [0.5, 0.5]]],
]
# Class 0, first image: (0.1 * 1 + 0.9 * 2, 0.9 * 3 + 0.1 * 5) = (1.9, 3.2);
# second: (0.75 * 1 + 0.25 * 2, 0.75 * 3 + 0.25 * 5) = (1.25, 3.5). Class 1: (3, 3).
ATTENDED = [[[1.9, 3.2], [3.0, 3.0]], [[1.25, 3.5], [3.0, 3.0]]]
# (x, y) -> (x - y + 1/4, 2 x + 1/2)
MIXED = [[[-1.05, 4.3], [0.25, 6.5]], [[-2.0, 3.0], [0.25, 6.5]]]
# (1, 2) . (-1.05, 4.3) = 7.55, (1, 2) . (0.25, 6.5) = 13.25; (0, -1) . (-2, 3) = -3, (0, -1) . (0.25, 6.5) = -6.5
SIMILARITY = [[7.55, 13.25], [-3.0, -6.5]]
# I . T_L: 3 - 2 = 1 and 2a - 1 = ln(3) - 1; 1 + 2 = 3 and 1
LOCAL_SIMILARITY = [[1.0, math.log(3) - 1], [3.0, 1.0]]
# lambda -> 2 (similarity + lambda I . T_L) at the logit scale 2
LOGITS = {
    0.2: [[15.5, 26.1 + 0.4 * math.log(3)], [-4.8, -12.6]],  # 2 (7.55 + 0.2), 2 (13.25 + 0.2 (ln 3 - 1)), ...
    3.0: [[21.1, 20.5 + 6 * math.log(3)], [12.0, -7.0]],  # 2 (7.55 + 3), 2 (13.25 + 3 (ln 3 - 1)), 2 (-3 + 9), ...
    0.0: [[15.1, 26.5], [-6.0, -13.0]],
}


def close(ours: Tensor, expected: list) -> None:
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.fixture
def gate() -> AttentionGate:
    gate = AttentionGate(4, 2, heads=2, scale=2.0)
    with torch.no_grad():
        for name, (weight, bias) in MAPS.items():
            layer = getattr(gate, name)
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return gate


def test_attention_gate(gate: AttentionGate) -> None:
    close(gate.attention(IMAGES, TEXTS), WEIGHTS)
    close(gate(IMAGES, TEXTS), MIXED)
    close(gate.similarity(IMAGES, TEXTS), SIMILARITY)


def test_attention_as_functions() -> None:
    query = torch.tensor([[2.0, 2.0], [-1.0, 1.0]]).unflatten(1, (2, 1))  # [b, h, e = 1]
    key = torch.tensor([[[0.0, 0.0], [2 * A, 0.0]], [[A, -A], [2 * A, 0.0]]]).unflatten(2, (2, 1))  # [K + 1, C, h, 1]
    value = torch.tensor([[[1.0, 3.0], [3.0, 3.0]], [[2.0, 5.0], [3.0, 3.0]]]).unflatten(2, (2, 1))
    # [h, b, C, K + 1]: head 0 has q = 2 and -1, head 1 has q = 2 and 1
    expected = [
        [[[0.0, 2 * A], [4 * A, 4 * A]], [[0.0, -A], [-2 * A, -2 * A]]],
        [[[0.0, -2 * A], [0.0, 0.0]], [[0.0, -A], [0.0, 0.0]]],
    ]
    close(products(query, key), expected)
    weights = attention_weights(query, key, 2.0)
    close(weights, WEIGHTS)
    close(attend(weights, value), ATTENDED)
    # At the scale 1, class 0 of the first image: 2 * (0, a) = (0, ln 3), so 1 : 3 and 3 : 1.
    close(attention_weights(query, key, 1.0)[0, 0], [[0.25, 0.75], [0.75, 0.25]])


@pytest.mark.parametrize("lmbda", LOGITS)
def test_logits_of_the_mixture(lmbda: float) -> None:
    text = torch.tensor(LOCAL)
    close(moe_logits(IMAGES, text, torch.tensor(MIXED), 2.0, lmbda), LOGITS[lmbda])
    close(combine(torch.tensor(SIMILARITY), IMAGES, text, 2.0, lmbda), LOGITS[lmbda])


@pytest.mark.parametrize("lmbda", LOGITS)
def test_gate_and_logits_together(gate: AttentionGate, lmbda: float) -> None:
    text = torch.tensor(LOCAL)
    close(moe_logits(IMAGES, text, gate(IMAGES, TEXTS), 2.0, lmbda), LOGITS[lmbda])
    close(combine(gate.similarity(IMAGES, TEXTS), IMAGES, text, 2.0, lmbda), LOGITS[lmbda])


def test_logits_with_more_classes_than_pooled_coordinates() -> None:
    """Three classes, g = 2, averaged: narrow((1, 3, 2, -1)) = (2, 1/2)."""
    text = torch.tensor([[0.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])  # I . T_L = 1, 0, 2
    mixed = torch.tensor([[[1.0, 2.0], [0.0, 4.0], [-1.0, 0.0]]])  # (2, 1/2) . T_MoE = 3, 2, -2
    # 5 (3 + 0.2), 5 (2 + 0), 5 (-2 + 0.4)
    close(moe_logits(IMAGES[:1], text, mixed, 5.0, 0.2, averaged), [[16.0, 10.0, -8.0]])
    close(moe_logits(IMAGES[:1], text, mixed, 5.0, 0.2), [[26.0, 40.0, -3.0]])  # stride: (1, 2) . T_MoE = 5, 8, -1


def test_local_logits_and_pooling() -> None:
    close(local_logits(IMAGES, torch.tensor(LOCAL), 2.0), [[2 * x for x in row] for row in LOCAL_SIMILARITY])
    close(strided(IMAGES, 2), [[1.0, 2.0], [0.0, -1.0]])
    close(averaged(IMAGES, 2), [[2.0, 0.5], [0.5, 0.0]])


def test_linear_gate() -> None:
    """K = 2 at most, but one other expert at hand: the third row, which would win, is left out.

    W = ((0, 0), (0, ln 3)) and b = (0, -ln 3) make (0, ln 3) of (1, 2) and (0, -2 ln 3) of (0, -1): 1 : 3 and 9 : 1.
    """
    gate = LinearGate(4, 2, num_experts=2)
    log3 = math.log(3)
    with torch.no_grad():
        gate.projection.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, log3], [0.0, 0.0]]))
        gate.projection.bias.copy_(torch.tensor([0.0, -log3, 100.0]))
    texts = torch.tensor([[[4.0, 5.0, 0.0, 5.0]], [[8.0, 5.0, 4.0, 5.0]]])  # pooled: (4, 0) and (8, 4), one class
    close(gate.attention(IMAGES, texts), [[[[0.25, 0.75]]], [[[0.9, 0.1]]]])
    # (4, 0) / 4 + (8, 4) * 3 / 4 = (7, 3); 0.9 (4, 0) + 0.1 (8, 4) = (4.4, 0.4)
    close(gate(IMAGES, texts), [[[7.0, 3.0]], [[4.4, 0.4]]])
    close(gate.similarity(IMAGES, texts), [[13.0], [-0.4]])  # (1, 2) . (7, 3), (0, -1) . (4.4, 0.4)
