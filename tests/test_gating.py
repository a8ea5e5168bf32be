"""The attention gate and the logits of eq. 10, against torch's own attention and sums written out by hand.

Shape letters: b images, C classes, d feature width, g gating width, K non-local experts, h heads, e = g / h.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe.errors import UserError
from fedmoe.models.functional import attend, averaged, combine, local_logits, moe_logits, strided
from fedmoe.models.gating import AttentionGate, Gate, LinearGate


def features(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def gate(
    feature_dim: int = 64, gating_dim: int = 32, heads: int = 4, scale: float = 10.0, seed: int = 3, **more: str
) -> AttentionGate:
    return AttentionGate(feature_dim, gating_dim, heads, scale, torch.Generator().manual_seed(seed), **more)


def reference(gate: AttentionGate) -> nn.MultiheadAttention:
    """torch's attention with the gate's weights; its 1 / sqrt(e) is undone and the gate's scale put into the query."""
    attention = nn.MultiheadAttention(gate.gating_dim, gate.heads, batch_first=True)
    factor = gate.scale * math.sqrt(gate.gating_dim / gate.heads)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([gate.query.weight * factor, gate.key.weight, gate.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([gate.query.bias * factor, gate.key.bias, gate.value.bias]))
        attention.out_proj.load_state_dict(gate.output.state_dict())
    return attention


@pytest.mark.parametrize("experts", [0, 1, 9])
@pytest.mark.parametrize(("gating_dim", "heads"), [(32, 4), (64, 1), (8, 8)])
def test_forward_and_weights_are_torchs_attention(experts: int, gating_dim: int, heads: int) -> None:
    ours = gate(64, gating_dim, heads)
    image, text = features(5, 64), features(experts + 1, 6, 64, seed=1)
    attention = reference(ours)
    # d // g is the stride, so coordinates 0, d/g, 2 d/g, ...
    kept = torch.arange(gating_dim) * (64 // gating_dim)
    mixed, weights = ours(image, text), ours.attention(image, text)
    assert mixed.shape == (5, 6, gating_dim)
    assert weights.shape == (5, 6, heads, experts + 1)
    for c in range(6):
        tokens = text[:, c, kept].expand(5, -1, -1)  # [b, K + 1, g]
        expected, expected_weights = attention(image[:, None, kept], tokens, tokens, average_attn_weights=False)
        torch.testing.assert_close(mixed[:, c], expected[:, 0])
        torch.testing.assert_close(weights[:, c], expected_weights[:, :, 0])


def test_pooling_keeps_every_nth_coordinate() -> None:
    assert strided(torch.arange(12.0), 4).tolist() == [0, 3, 6, 9]
    assert strided(torch.arange(24.0).view(2, 12), 12).tolist() == torch.arange(24.0).view(2, 12).tolist()


@pytest.mark.parametrize("gating_dim", [1, 4, 16, 64])
def test_average_pooling_is_torchs(gating_dim: int) -> None:
    text = features(3, 5, 64)
    width = 64 // gating_dim
    torch.testing.assert_close(averaged(text, gating_dim), F.avg_pool1d(text, width))
    assert torch.equal(averaged(text, 64), text)  # at g = d nothing is pooled


def test_the_gate_pools_as_it_is_told() -> None:
    """With average pooling it is the unpooled gate on features that are averaged beforehand; at g = d both agree."""
    image, text = features(5, 64), features(4, 6, 64, seed=1)
    average, plain = gate(pooling="average"), gate(feature_dim=32)  # the same parameters
    small_image, small_text = F.avg_pool1d(image, 2), F.avg_pool1d(text, 2)
    for ours, expected in (
        (average(image, text), plain(small_image, small_text)),
        (average.attention(image, text), plain.attention(small_image, small_text)),
        (average.similarity(image, text), plain.similarity(small_image, small_text)),
    ):
        torch.testing.assert_close(ours, expected)
    assert not torch.allclose(average(image, text), gate()(image, text))
    assert torch.equal(gate(gating_dim=64, pooling="average")(image, text), gate(gating_dim=64)(image, text))


@pytest.mark.parametrize(
    ("gating_dim", "count"),
    [(32, 4_224), (64, 16_640), (128, 66_048), (256, 263_168), (512, 1_050_624), (1024, 4_198_400)],
)
def test_parameter_counts_of_the_paper(gating_dim: int, count: int) -> None:
    """Table 9: 4.2K, 16.6K, 66.0K, 263.2K, 1.1M and 4.2M parameters, for RN50's features; at 1024 nothing is pooled."""
    ours = AttentionGate(1024, gating_dim)
    assert sum(p.numel() for p in ours.parameters()) == count
    mixed = ours(features(2, 1024), features(3, 4, 1024, seed=1))
    assert mixed.shape == (2, 4, gating_dim)
    assert bool(mixed.isfinite().all())


def test_order_and_number_of_experts_are_free() -> None:
    ours, image, text = gate(), features(3, 64), features(6, 4, 64, seed=1)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(ours(image, text), ours(image, text[order]))
    twice = torch.cat([text, text])  # each expert twice, at half the weight
    torch.testing.assert_close(ours(image, text), ours(image, twice))


def test_a_single_expert_takes_all_the_weight() -> None:
    ours, image, text = gate(), features(3, 64), features(1, 4, 64, seed=1)
    assert ours.attention(image, text).eq(1).all()
    expected = ours.output(ours.value(strided(text[0], 32))).expand(3, 4, 32)
    torch.testing.assert_close(ours(image, text), expected)


def test_scale_zero_weighs_all_experts_alike() -> None:
    ours = gate(scale=0.0)
    weights = ours.attention(features(3, 64), features(5, 4, 64, seed=1))
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2))


def test_attend_by_hand() -> None:
    weights = torch.tensor([[[[0.25, 0.75], [1.0, 0.0]]]])  # [1, 1, h = 2, 2]
    value = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]])  # [2, 1, h = 2, e = 2]
    assert attend(weights, value).tolist() == [[[4.0, 5.0, 3.0, 4.0]]]


def test_logits_by_hand() -> None:
    image = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    text = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    mixed = torch.tensor([[[2.0, 1.0], [0.0, -1.0]]])  # [1, 2, g = 2]; narrow(I) = (1, 3)
    assert local_logits(image, text, 10.0).tolist() == [[10.0, 50.0]]
    # 10 ((1, 3) . (2, 1) + 0.5 * 1) and 10 ((1, 3) . (0, -1) + 0.5 * 5)
    assert moe_logits(image, text, mixed, 10.0, 0.5).tolist() == [[55.0, -5.0]]
    assert moe_logits(image, text, mixed, 10.0, 0.0).tolist() == [[50.0, -30.0]]
    # averaged, narrow(I) = (1.5, 3.5): 10 ((1.5, 3.5) . (2, 1) + 0.5 * 1) and 10 ((1.5, 3.5) . (0, -1) + 0.5 * 5)
    assert moe_logits(image, text, mixed, 10.0, 0.5, averaged).tolist() == [[70.0, -10.0]]
    assert combine(torch.tensor([[5.0, -3.0]]), image, text, 10.0, 0.5).tolist() == [[55.0, -5.0]]


@pytest.mark.parametrize(("pooling", "reduce"), [("stride", strided), ("average", averaged)])
def test_folded_similarity_is_the_plain_one_in_value_and_gradient(pooling: str, reduce) -> None:
    ours = gate(scale=10.0, pooling=pooling).double()
    image, text = features(5, 64).double(), features(4, 6, 64, seed=1).double().requires_grad_()
    inputs = [text, *ours.parameters()]
    plain = torch.einsum("bg,bcg->bc", reduce(image, 32), ours(image, text))
    folded = ours.similarity(image, text)
    torch.testing.assert_close(folded, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(folded, inputs, weights), torch.autograd.grad(plain, inputs, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_initial_values_are_torch_linears_from_the_given_generator() -> None:
    torch.manual_seed(11)
    expected = [nn.Linear(32, 32) for _ in range(4)]  # draws from the global generator
    before = torch.get_rng_state()
    ours = gate(seed=11)
    assert torch.equal(torch.get_rng_state(), before)
    for linear, layer in zip(expected, (ours.query, ours.key, ours.value, ours.output), strict=True):
        assert torch.equal(linear.weight, layer.weight)
        assert torch.equal(linear.bias, layer.bias)
    assert not torch.equal(ours.query.weight, gate(seed=12).query.weight)


def test_all_parameters_get_gradients() -> None:
    ours = gate()
    ours(features(3, 64), features(5, 4, 64, seed=1)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in ours.parameters() if p is not ours.key.bias)


@pytest.mark.parametrize(
    ("feature_dim", "gating_dim", "heads", "words"),
    [
        (
            12,
            5,
            1,
            ["method.gating_dim is 5, which does not divide CLIP's feature width 12; valid are 1, 2, 3, 4, 6, 12."],
        ),
        (24, 12, 5, ["method.heads is 5, which does not divide method.gating_dim = 12; valid are 1, 2, 3, 4, 6, 12."]),
        (1024, 100, 8, ["method.gating_dim is 100", "1024", "64, 128, 256"]),
        (1024, 2048, 8, ["method.gating_dim is 2048", "1024"]),
        (1024, 0, 8, ["method.gating_dim is 0"]),
        (512, 128, 7, ["method.heads is 7", "method.gating_dim = 128", "1, 2, 4, 8"]),
        (512, 128, 0, ["method.heads is 0"]),
    ],
)
def test_widths_that_do_not_divide_are_refused(feature_dim: int, gating_dim: int, heads: int, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        AttentionGate(feature_dim, gating_dim, heads)
    for word in words:
        assert word in str(caught.value)


def test_defaults_are_the_paper_s() -> None:
    """Section 4.1: width 128, 8 heads; the release's scale of 10."""
    image, text = features(3, 512), features(4, 5, 512, seed=1)
    plain = AttentionGate(512, generator=torch.Generator().manual_seed(3))
    assert (plain.gating_dim, plain.heads, plain.scale) == (128, 8, 10.0)
    named = AttentionGate(512, 128, 8, 10.0, torch.Generator().manual_seed(3), "stride")
    assert torch.equal(plain(image, text), named(image, text))


@pytest.mark.parametrize("make", [lambda: AttentionGate(6, 1, heads=1), lambda: LinearGate(6, 1, num_experts=2)])
def test_a_single_pooled_coordinate_is_enough(make) -> None:
    ours, image, text = make(), features(3, 6), features(3, 4, 6, seed=1)
    assert ours.narrow(image).tolist() == image[:, :1].tolist()
    assert ours(image, text).shape == (3, 4, 1)
    torch.testing.assert_close(ours.similarity(image, text), image[:, :1] * ours(image, text)[..., 0])


def linear_gate(seed: int = 3, **more: str) -> LinearGate:
    return LinearGate(64, 32, 4, torch.Generator().manual_seed(seed), **more)


@pytest.mark.parametrize(
    ("pooling", "reduce"), [("stride", lambda x: x[..., ::2]), ("average", lambda x: F.avg_pool1d(x, 2))]
)
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_linear_gate_is_a_softmax_of_a_linear_map(experts: int, pooling: str, reduce) -> None:
    """One image and class at a time; experts that are not at hand take no part."""
    ours, image, text = linear_gate(pooling=pooling), features(3, 64), features(experts, 6, 64, seed=1)
    small_image, small_text = reduce(image), reduce(text)
    weight, bias = ours.projection.weight.detach(), ours.projection.bias.detach()
    mixed, weights, similarity = ours(image, text), ours.attention(image, text), ours.similarity(image, text)
    assert mixed.shape == (3, 6, 32)
    assert weights.shape == (3, 6, 1, experts)
    for b in range(3):
        scores = [float(weight[k] @ small_image[b] + bias[k]) for k in range(experts)]
        expected = np.exp(scores) / np.exp(scores).sum()
        for c in range(6):
            assert weights[b, c, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
            by_hand = sum(w * small_text[k, c] for k, w in enumerate(expected.tolist()))
            torch.testing.assert_close(mixed[b, c], by_hand)
            torch.testing.assert_close(similarity[b, c], small_image[b] @ by_hand)


def test_linear_gate_has_a_row_for_each_expert_and_the_local_one() -> None:
    torch.manual_seed(11)
    expected = nn.Linear(32, 5)  # draws from the global generator
    before = torch.get_rng_state()
    ours = linear_gate(seed=11)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(ours.projection.weight, expected.weight)
    assert torch.equal(ours.projection.bias, expected.bias)
    assert ours.pooling == LinearGate(64, 32, 4, None, "stride").pooling == "stride"
    with pytest.raises(UserError, match=r"method\.gating_dim is 5, which does not divide CLIP's feature width 64"):
        LinearGate(64, 5, 4)


@pytest.mark.parametrize("make", [gate, linear_gate])
def test_a_gate_keeps_its_widths(make) -> None:
    ours: Gate = make()
    assert (ours.feature_dim, ours.gating_dim) == (64, 32)
