"""The prompt learner: start, tokens and their order, and what it refuses. Expected values are open_clip's and CoOp's.

Shape letters: C classes, l context tokens, w token width.
"""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import Tensor

from fedmoe.config import PromptConfig
from fedmoe.errors import UserError
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner, prompt_layout, readable, template_features

MakeClip = Callable[..., FrozenCLIP]
NAMES = ["cat", "American_bulldog", "aeroplane-shaped kite", "St. Bernard"]


@pytest.fixture
def clip(tiny_clip: MakeClip) -> FrozenCLIP:
    return tiny_clip()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tokens_are_open_clips(clip: FrozenCLIP) -> None:
    learner = PromptLearner(clip, NAMES, PromptConfig(length=4))
    texts = ["X X X X cat.", "X X X X American bulldog.", "X X X X aeroplane-shaped kite.", "X X X X St. Bernard."]
    assert torch.equal(learner.token_ids, open_clip.get_tokenizer("RN50")(texts))


def test_underscores_and_spare_spaces_are_spaces(clip: FrozenCLIP) -> None:
    assert readable("  American__bulldog ") == "American bulldog"
    learner = PromptLearner(clip, ["a_b", "a b", " a  b "], PromptConfig(length=2))
    assert learner.class_names == ("a b", "a b", "a b")
    assert torch.equal(learner.token_ids[0], learner.token_ids[1])


def test_random_start_has_the_given_spread_and_generator(clip: FrozenCLIP) -> None:
    config = PromptConfig(length=60, std=0.02)
    before = torch.get_rng_state()
    context = PromptLearner(clip, ["cat"], config, generator(5))["prompt"].detach()
    assert torch.equal(torch.get_rng_state(), before)
    assert context.shape == (60, clip.token_width)
    assert context.dtype == torch.float32
    assert float(context.std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(context.mean())) < 0.002
    assert torch.equal(context, PromptLearner(clip, ["cat"], config, generator(5))["prompt"])
    assert not torch.equal(context, PromptLearner(clip, ["cat"], config, generator(6))["prompt"])


def test_start_from_words_are_their_embeddings(clip: FrozenCLIP) -> None:
    learner = PromptLearner(clip, NAMES, PromptConfig(init="a_photo of a", length=16))
    tokens = open_clip.get_tokenizer("RN50")(["a photo of a"])[0, 1:5]
    assert torch.equal(learner["prompt"], clip.model.token_embedding.weight[tokens])
    specific = PromptLearner(clip, NAMES, PromptConfig(init="a photo of a", class_specific=True))
    assert specific["prompt"].shape == (4, 4, clip.token_width)
    assert all(torch.equal(one, learner["prompt"]) for one in specific["prompt"])
    specific["prompt"].data[0] += 1  # classes do not share memory
    assert torch.equal(specific["prompt"][1], learner["prompt"])


def coop_order(position: str, ctx: Tensor, prefix: Tensor, suffix: Tensor, name_length: int) -> Tensor:
    """One class's token vectors as CoOp's released code puts them together."""
    half = len(ctx) // 2
    name, rest = suffix[:name_length], suffix[name_length:]
    parts = {
        "end": [prefix, ctx, suffix],
        "middle": [prefix, ctx[:half], name, ctx[half:], rest],
        "front": [prefix, name, ctx, rest],
    }
    return torch.cat(parts[position])


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("length", [1, 4, 5])
def test_order_is_coops(position: str, length: int, clip: FrozenCLIP) -> None:
    layout = prompt_layout(clip, [readable(name) for name in NAMES], length, position, class_specific=False)
    tokenizer = open_clip.get_tokenizer("RN50")
    for c, name in enumerate(NAMES):
        name = name.replace("_", " ")
        ids = tokenizer([" ".join(["X"] * length) + " " + name + "."])[0]
        # Numbers in place of vectors: -1 - j stands for context vector j.
        expected = coop_order(
            position, -1 - torch.arange(length), ids[:1], ids[1 + length :], len(tokenizer.encode(name))
        )
        ours = torch.where(layout.slots[c] >= 0, -1 - layout.slots[c], layout.ids[c])
        assert ours.tolist() == expected.tolist()
        assert layout.ids[c, layout.eot[c]] == 49407  # CLIP's EOT


def test_only_the_context_is_registered(clip: FrozenCLIP) -> None:
    learner = PromptLearner(clip, NAMES, PromptConfig(length=4))
    assert list(learner.state_dict()) == ["learned.prompt"]
    assert [name for name, _ in learner.named_parameters()] == ["learned.prompt"]
    assert list(learner.modules()) == [learner, learner.learned]
    assert learner.clip is clip
    learner()
    assert list(learner.state_dict()) == ["learned.prompt"]


@pytest.mark.parametrize("class_specific", [False, True])
def test_features_are_normalized_and_depend_on_the_context(class_specific: bool, clip: FrozenCLIP) -> None:
    learner = PromptLearner(clip, NAMES, PromptConfig(length=4, class_specific=class_specific), generator())
    features = learner()
    assert features.shape == (4, clip.feature_dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
    other = learner["prompt"].detach().flip(-1)
    moved = learner(other)
    assert not torch.allclose(moved, features, atol=1e-3)
    assert torch.equal(learner(other), moved)  # the same bits each time
    features.sum().backward()
    assert learner["prompt"].grad is not None
    assert bool((learner["prompt"].grad.abs().sum(dim=-1) > 0).all())


def test_a_class_specific_context_reaches_its_class_only(clip: FrozenCLIP) -> None:
    learner = PromptLearner(clip, NAMES, PromptConfig(length=2, class_specific=True), generator())
    learner()[2].sum().backward()
    assert learner["prompt"].grad is not None
    assert learner["prompt"].grad.abs().sum(dim=(1, 2)).gt(0).tolist() == [False, False, True, False]


def test_a_context_of_another_shape_is_a_programming_error(clip: FrozenCLIP) -> None:
    learner = PromptLearner(clip, NAMES, PromptConfig(length=4))
    for shape in [(3, clip.token_width), (4, clip.token_width + 1), (1, 1, 4, clip.token_width)]:
        with pytest.raises(ValueError, match="a prompt has shape"):
            learner(torch.zeros(shape))


def test_a_name_that_is_too_long_is_one_sentence(clip: FrozenCLIP) -> None:
    fits = "cat " * 58  # SOS + 16 + 58 + full stop + EOT = 77
    PromptLearner(clip, ["dog", fits], PromptConfig(length=16))
    with pytest.raises(UserError, match=r"'cat( cat){58}' with prompt.length = 16 takes 78 tokens; .* 77"):
        PromptLearner(clip, ["dog", fits + "cat"], PromptConfig(length=16))


@pytest.mark.parametrize(
    ("class_names", "options", "words"),
    [
        ([], {}, "no class names"),
        (["cat", " _ "], {}, "class name is empty"),
        (["cat"], {"init": "cat " * 75}, "prompt.init is .* 75 tokens; valid are 1 to 74"),
        (["cat"], {"init": "_"}, "prompt.init is '', which has 0 tokens"),
    ],
)
def test_what_cannot_be_a_prompt(class_names: list[str], options: dict, words: str, clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match=words):
        PromptLearner(clip, class_names, PromptConfig(**options))


def test_words_that_a_compact_checkpoint_does_not_store(golden_clips: dict[str, FrozenCLIP]) -> None:
    with pytest.raises(UserError, match="no embedding for 'zebra'"):
        PromptLearner(golden_clips["rn"], ["cat", "zebra"], PromptConfig(length=4))
    with pytest.raises(UserError, match="no embedding for 'photo'"):
        PromptLearner(golden_clips["rn"], ["cat"], PromptConfig(init="photo"))
    with pytest.raises(UserError, match="no embedding for 'a', 'of', 'photo'"):
        template_features(golden_clips["rn"], ["cat"], "a photo of {class}.")


@pytest.mark.parametrize("place", ["{class}", "{}"])
def test_template_features_are_open_clips(place: str, clip: FrozenCLIP) -> None:
    features = template_features(clip, ["cat", "american_bulldog"], f"a photo of a {place}, a pet.")
    tokens = open_clip.get_tokenizer("RN50")(["a photo of a cat, a pet.", "a photo of a american bulldog, a pet."])
    expected = clip.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert not features.requires_grad


def test_templates_that_cannot_be_used(clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match=r"must contain \{class\}"):
        template_features(clip, ["cat"], "a photo of a cat")
    with pytest.raises(UserError, match="76 tokens; valid is at most 75"):
        template_features(clip, ["cat"], "{class}" + " dog" * 75)
