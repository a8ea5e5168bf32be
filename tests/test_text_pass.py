"""The text pass: ``shared`` and ``cut`` against ``full``, and ``full`` against open_clip's own text encoder.

In float64, so that a difference in the tenth digit is a mistake and not rounding. Shape letters: M prompts at once,
C classes, l context tokens, w token width.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe.config import ClipConfig, PromptConfig
from fedmoe.models import text_pass
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner

WORDS = [
    "cat",
    "dog",
    "xylophonist",
    "a",
    "bird",
    "aeroplane-shaped",
    "kangaroo",
    "7",
    "sunflower",
    "teapot-like",
    "antidisestablishmentarianism",
]
MakeClip = Callable[..., FrozenCLIP]


def names(count: int) -> list[str]:
    """``count`` different class names of one to five words."""
    return [" ".join(WORDS[(i * (k + 3) + k) % len(WORDS)] for k in range(1 + i % 5)) + f" {i}" for i in range(count)]


def run(clip: FrozenCLIP, class_names: list[str], config: PromptConfig, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """Text features, and the gradient of a fixed combination of them with respect to the contexts."""
    learner = PromptLearner(clip, class_names, config)
    contexts = contexts.clone().requires_grad_()
    features = learner(contexts)
    weights = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(9))
    (gradient,) = torch.autograd.grad((features * weights).sum(), contexts)
    return features.detach(), gradient


def contexts_for(clip: FrozenCLIP, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(*shape, clip.token_width, generator=generator, dtype=torch.float64) * 0.3


def compare(clip: FrozenCLIP, class_names: list[str], contexts: Tensor, **options: Any) -> None:
    """All passes agree in value and gradient."""
    config = {"length": contexts.shape[-2], **options}
    expected = run(clip, class_names, PromptConfig(text_pass="full", **config), contexts)
    kind: Any
    for kind in ("cut", "shared"):
        for ours, reference in zip(
            run(clip, class_names, PromptConfig(text_pass=kind, **config), contexts), expected, strict=True
        ):
            torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11, msg=kind)


@pytest.fixture(scope="module")
def towers(golden_clips: dict[str, FrozenCLIP]) -> dict[str, FrozenCLIP]:
    return {name: deepcopy(clip).double() for name, clip in golden_clips.items()}


@pytest.mark.parametrize("backbone", ["rn", "vit"])
def test_golden_towers(backbone: str, towers: dict[str, FrozenCLIP]) -> None:
    clip = towers[backbone]
    known = ["airplane", "american_bulldog", "cat", "german_shorthaired", "egyptian_mau", "dog"]
    compare(clip, known, contexts_for(clip, 3, 16))


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize(("count", "length"), [(1, 16), (7, 5), (100, 1)])
@pytest.mark.parametrize("backbone", ["rn", "vit"])
def test_positions_and_class_counts(
    backbone: str, count: int, length: int, position: str, class_specific: bool, tiny_clip: MakeClip
) -> None:
    quick = backbone == "rn"
    clip = tiny_clip(backbone, quick_gelu=quick, custom_text=not quick).double()
    shape = (count, length) if class_specific else (length,)
    compare(clip, names(count), contexts_for(clip, *shape), position=position, class_specific=class_specific)


@pytest.mark.parametrize("limit", [1, 7, 20, 10_000])
@pytest.mark.parametrize("position", ["end", "front"])
def test_groups_of_any_size_and_batches_of_prompts(
    limit: int, position: str, tiny_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_pass, "GROUP_TOKENS", limit)
    clip = tiny_clip().double()
    compare(clip, names(9), contexts_for(clip, 3, 4), position=position)
    compare(clip, names(9), contexts_for(clip, 2, 9, 4), position=position, class_specific=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_layers": 1},
        {"text_layers": 2},
        {"text_ls_init_value": 0.5},
        {"text_ls_init_value": 0.5, "quick_gelu": True},
        {"text_proj_bias": True, "custom_text": True},
        {"text_proj_type": "none", "custom_text": True, "embed_dim": 32},
        {"text_context_length": 31},
        {"text_mlp_ratio": 2.5, "text_heads": 1},
    ],
    ids=str,
)
def test_variants_of_the_tower(changes: dict, tiny_clip: MakeClip) -> None:
    clip = tiny_clip(**changes).double()
    compare(clip, names(5), contexts_for(clip, 2, 3))
    compare(clip, names(5), contexts_for(clip, 3), position="middle")


def test_a_name_that_fills_the_window(tiny_clip: MakeClip) -> None:
    clip = tiny_clip(text_context_length=20).double()
    longest = "cat " * 12  # SOS, 5 vectors, 12 tokens, full stop, EOT: 20
    compare(clip, ["dog", longest], contexts_for(clip, 5))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    classes=st.lists(st.lists(st.sampled_from(["cat", "dog", "ship"]), min_size=1, max_size=4), min_size=1, max_size=6),
    length=st.integers(1, 6),
    position=st.sampled_from(["end", "middle", "front"]),
    class_specific=st.booleans(),
    prompts=st.integers(1, 3),
    limit=st.integers(1, 30),
)
def test_any_names(
    classes: list[list[str]],
    length: int,
    position: str,
    class_specific: bool,
    prompts: int,
    limit: int,
    towers: dict[str, FrozenCLIP],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_pass, "GROUP_TOKENS", limit)
    clip = towers["vit"]
    shape = (prompts, len(classes), length) if class_specific else (prompts, length)
    compare(
        clip,
        [" ".join(words) for words in classes],
        contexts_for(clip, *shape),
        position=position,
        class_specific=class_specific,
    )


@pytest.mark.parametrize("kind", ["full", "cut", "shared"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_words_as_context_give_open_clips_own_features(kind: Any, custom_text: bool, tiny_clip: MakeClip) -> None:
    clip = tiny_clip("vit", custom_text=custom_text)
    config = PromptConfig(init="a photo of a", text_pass=kind)
    learner = PromptLearner(clip, ["cat", "aeroplane_cat"], config)
    tokens = clip.tokenize(["a photo of a cat.", "a photo of a aeroplane cat."])
    expected = clip.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(learner(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("class_specific", [False, True])
def test_a_batch_of_prompts_is_each_prompt_alone(class_specific: bool, tiny_clip: MakeClip) -> None:
    clip = tiny_clip().double()
    learner = PromptLearner(clip, names(4), PromptConfig(length=3, class_specific=class_specific))
    contexts = contexts_for(clip, 5, 4, 3) if class_specific else contexts_for(clip, 5, 3)
    batch = learner(contexts)
    assert batch.shape == (5, 4, clip.feature_dim)
    torch.testing.assert_close(batch, torch.stack([learner(one) for one in contexts]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["full", "cut", "shared"])
def test_half_precision(precision: Any, kind: Any, tiny_clip: MakeClip, tmp_path) -> None:
    exact = tiny_clip("vit", quick_gelu=True)
    torch.save(exact.model.state_dict(), tmp_path / "weights.pt")
    half = FrozenCLIP.load(
        ClipConfig(weights=str(tmp_path / "weights.pt"), model_config=str(tmp_path / "vit.json"), precision=precision)
    )
    contexts = contexts_for(exact, 2, 4).float()
    config = PromptConfig(length=4, text_pass=kind)
    features, gradient = run(half, names(6), config, contexts)
    expected, expected_gradient = run(exact, names(6), config, contexts)
    assert features.dtype == gradient.dtype == torch.float32
    tolerance = 0.04 if precision == "bfloat16" else 0.005
    assert float((features - expected).abs().max()) < tolerance
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 5 * tolerance


def test_no_gradient_reaches_clip(tiny_clip: MakeClip) -> None:
    clip = tiny_clip()
    PromptLearner(clip, names(3), PromptConfig(length=2))().sum().backward()
    assert all(p.grad is None for p in clip.parameters())
