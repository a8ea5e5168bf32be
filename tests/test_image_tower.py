"""The image tower and the sentence pass: open_clip's own where nothing is changed, its gradients where something is.

Shape letters: b images, N tokens, w tower width, p learned tokens.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from golden_helpers import read_case, with_rows
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedmoe.config import PromptConfig
from fedmoe.errors import UserError
from fedmoe.features.encoders import token_encoder
from fedmoe.models.blocks import beside, low_rank, replaced
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.image_tower import ImageTower
from fedmoe.models.prompt import PromptLearner
from fedmoe.seeds import torch_generator

TEMPLATE = "a photo of a {class}."
NAMES = ["airplane", "cat", "truck"]


@pytest.fixture(scope="module")
def clip(golden_clips: dict[str, FrozenCLIP]) -> FrozenCLIP:
    return with_rows(golden_clips["vit"], read_case("fedmgp_vit")[1])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch_generator(1))


def draw(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_without_edits_it_is_open_clips(clip: FrozenCLIP, images: Tensor, first: int) -> None:
    """From any block on, also from behind the last; the cached tokens are what the encoder declares."""
    encoder = token_encoder(clip, first)
    tokens = encoder.encode(images)
    assert tokens.shape == (5, *encoder.shape) == (5, 17, 64)
    torch.testing.assert_close(ImageTower(clip).upper(tokens, first), clip.encode_image(images), rtol=0, atol=1e-6)
    assert encoder.name == f"tokens{first}" and encoder.identity == clip.fingerprint


def test_half_precision_tokens_have_a_name_of_their_own(clip: FrozenCLIP, images: Tensor) -> None:
    """Features of tokens that were rounded to float16, with plain open_clip behind the rounding."""
    encoder = token_encoder(clip, 1, torch.float16)
    assert (encoder.name, encoder.dtype) == ("tokens1-float16", torch.float16)
    rounded = encoder.encode(images).half()
    visual = clip.model.visual
    plain = visual.ln_post(visual.transformer.resblocks[1](rounded.float()))[:, 0] @ visual.proj
    torch.testing.assert_close(ImageTower(clip).upper(rounded, 1), normalize(plain, dim=-1), rtol=0, atol=1e-6)


def test_many_images_are_encoded_in_parts_without_gradient(clip: FrozenCLIP, images: Tensor) -> None:
    tower, many = ImageTower(clip), images.repeat(30, 1, 1, 1)  # 150
    tokens, prompt = tower.lower(many, 0), draw(2, 64)
    whole = tower.upper(tokens, 0, append=prompt)
    with torch.no_grad():
        torch.testing.assert_close(tower.upper(tokens, 0, append=prompt), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("save_memory", [False, True])
def test_learned_tokens_behind_the_patches(clip: FrozenCLIP, images: Tensor, save_memory: bool) -> None:
    """Against open_clip's modules called one after the other: appended before ln_pre, replaced before block 1."""
    tower, visual = ImageTower(clip), clip.model.visual
    shallow, deep = (draw(2, 64, seed=seed).requires_grad_() for seed in (2, 3))
    edits = {1: replaced(deep, -2)}
    ours = tower.upper(tower.lower(images, 0), 0, edits, append=shallow, save_memory=save_memory)
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(5, 1, -1), patches], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, shallow.expand(5, -1, -1)], dim=1))
    first, second = visual.transformer.resblocks
    x = second(torch.cat([first(x)[:, :17], deep.expand(5, -1, -1)], dim=1))
    plain = normalize(visual.ln_post(x)[:, 0] @ visual.proj, dim=-1)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    weights = draw(*ours.shape, seed=4)
    found = torch.autograd.grad((weights * ours).sum(), [shallow, deep])
    expected = torch.autograd.grad((weights * plain).sum(), [shallow, deep])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_saving_memory_keeps_what_enters_a_block_alone(clip: FrozenCLIP, images: Tensor) -> None:
    """For the backward pass, of each block, and not its queries, keys, values and MLP."""
    tower, kept = ImageTower(clip), []
    tokens = tower.lower(images, 0)
    for save_memory in (False, True):
        sizes = list[int]()

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() * (tensor.shape[:1] == tokens.shape[:1]))  # activations, not weights
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tower.upper(tokens, append=draw(2, 64).requires_grad_(), save_memory=save_memory)
        kept.append(sum(sizes))
    assert 0 < 5 * kept[1] < kept[0]


def test_adapters_beside_a_block(clip: FrozenCLIP, images: Tensor) -> None:
    """A linear branch W of the normalized input: the block's output plus W ln_1(x), above a cached block."""
    tower, visual, branch = ImageTower(clip), clip.model.visual, nn.Linear(64, 64)
    with torch.no_grad():
        branch.weight.copy_(0.1 * draw(64, 64))
    ours = tower.upper(tower.lower(images, 1), 1, {1: beside(branch)})
    x = tower.lower(images, 1)
    block = visual.transformer.resblocks[1]
    plain = normalize(visual.ln_post(block(x) + branch(block.ln_1(x)))[:, 0] @ visual.proj, dim=-1)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    assert (ours - clip.encode_image(images)).abs().max() > 1e-3


def unfrozen(clip: FrozenCLIP) -> Any:
    return deepcopy(clip.model).requires_grad_(True)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_low_rank_gradients_follow_from_open_clips_weight_gradients(
    clip: FrozenCLIP, images: Tensor, tower: str
) -> None:
    """At B = 0 the features are open_clip's, the gradient of B is scale * dW A^T and that of A zero; dW is that of
    open_clip's own model with trainable weights."""
    down, up = draw(3, 2, 64).requires_grad_(), torch.zeros(3, 64, 2, requires_grad=True)
    edits, model = {1: low_rank(down, up, 0.5)}, unfrozen(clip)
    if tower == "image":
        image = ImageTower(clip)
        ours, plain = image.upper(image.lower(images, 1), 1, edits), normalize(model.encode_image(images), dim=-1)
        weight = model.visual.transformer.resblocks[1].attn.in_proj_weight
    else:
        prompts = PromptLearner(clip, NAMES, PromptConfig(length=4))
        ours = prompts.sentences(TEMPLATE, first=1)(None, edits)
        plain = normalize(model.encode_text(clip.tokenize([f"a photo of a {name}." for name in NAMES])), dim=-1)
        weight = model.transformer.resblocks[1].attn.in_proj_weight
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    weights = draw(*ours.shape, seed=4)
    grad_down, grad_up = torch.autograd.grad((weights * ours).sum(), [down, up])
    (full,) = torch.autograd.grad((weights * plain).sum(), [weight])
    expected = 0.5 * full.unflatten(0, (3, 64)) @ down.detach().mT
    torch.testing.assert_close(grad_up, expected, rtol=1e-4, atol=1e-5)
    assert not grad_down.any()


def test_a_low_rank_change_is_that_of_the_weights(clip: FrozenCLIP, images: Tensor) -> None:
    down, up, model = draw(3, 2, 64), draw(3, 64, 2, seed=3), unfrozen(clip)
    with torch.no_grad():
        weight = model.visual.transformer.resblocks[0].attn.in_proj_weight
        for part, (a, b) in enumerate(zip(down, up, strict=True)):
            weight[64 * part : 64 * (part + 1)] += 0.05 * b @ a
        tower = ImageTower(clip)
        ours = tower.upper(tower.lower(images, 0), 0, {0: low_rank(down, up, 0.05)})
        torch.testing.assert_close(ours, normalize(model.encode_image(images), dim=-1), rtol=0, atol=2e-6)


# The sentence pass


@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_plain_sentence_is_open_clips(clip: FrozenCLIP, first: int) -> None:
    prompts = PromptLearner(clip, NAMES, PromptConfig(length=4))
    encode = prompts.sentences(TEMPLATE, first=first)
    texts = clip.tokenize([f"a photo of a {name}." for name in NAMES])
    torch.testing.assert_close(encode(), normalize(clip.model.encode_text(texts), dim=-1), rtol=0, atol=1e-6)
    assert prompts.sentences(TEMPLATE, first=first) is encode  # made once


def test_learned_words_and_deep_ones(clip: FrozenCLIP) -> None:
    """Two words in place of "a photo"; before block 1, two others in the same places: open_clip's modules by hand."""
    prompts = PromptLearner(clip, NAMES, PromptConfig(length=4))
    words, deep = (draw(2, 64, seed=seed).requires_grad_() for seed in (2, 3))
    ours = prompts.sentences(TEMPLATE, learned=2)(words, {1: replaced(deep, 1)})
    ids = clip.tokenize([f"a photo of a {name}." for name in NAMES])
    x = clip.text.token_embedding(ids)
    x = torch.cat([x[:, :1], words.expand(3, -1, -1), x[:, 3:]], dim=1) + clip.text.positional_embedding
    for i, block in enumerate(clip.text.blocks):
        if i == 1:
            x = torch.cat([x[:, :1], deep.expand(3, -1, -1), x[:, 3:]], dim=1)
        x = block(x, attn_mask=clip.model.attn_mask)
    plain = normalize(clip.text.project(x[torch.arange(3), ids.argmax(dim=1)]), dim=-1)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    weights = draw(*ours.shape, seed=4)
    found = torch.autograd.grad((weights * ours).sum(), [words, deep])
    expected = torch.autograd.grad((weights * plain).sum(), [words, deep])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Refusals


def test_other_towers_are_refused(embedded_clip: FrozenCLIP, clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match=r"fedmoe-tiny.* is a ModifiedResNet, and prompts and adapters for it"):
        ImageTower(embedded_clip)
    other = deepcopy(clip)
    other.model.visual.pool_type = "avg"
    with pytest.raises(UserError, match="pools its tokens by the rule 'avg'"):
        ImageTower(other)


def test_more_words_than_the_template_has_are_refused(clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match=r"has 4 tokens before the name; valid are at least 5"):
        PromptLearner(clip, NAMES, PromptConfig(length=4)).sentences(TEMPLATE, learned=5)
