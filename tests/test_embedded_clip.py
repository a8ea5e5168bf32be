"""The embedded CLIP: how it is made (captions, glyphs, loss) and how good the shipped checkpoint is.

Shape letters: b images, n captions, C classes, d feature width.
"""

from __future__ import annotations

import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression

from experiments.embedded_clip import captions, check, glyphs, pretrain
from fedmoe.config import ClipConfig
from fedmoe.data.sets.digits import Digits
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import template_features

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "fedmoe" / "assets"

CONFIG = json.loads((ASSETS / "fedmoe-tiny.json").read_text())
CHECKPOINT = ASSETS / "fedmoe-tiny-glyphs.safetensors"


@pytest.fixture(scope="module")
def fonts() -> tuple[glyphs.FontFile, ...]:
    return glyphs.find_fonts(frozenset({"matplotlib"}))  # the other packages are needed by the experiment only


@pytest.fixture(scope="module")
def atlas(fonts: tuple[glyphs.FontFile, ...]) -> glyphs.Atlas:
    return glyphs.render_atlas(fonts)


def looks() -> list[captions.Look]:
    return [
        captions.Look(character, style, weight, tilt, colour, background)
        for character in captions.CHARACTERS
        for style, weight, tilt in (
            ("serif", "heavy", "left"),
            ("plain", None, None),
            ("typewriter", "light", "upright"),
        )
        for colour, background in (("white", "black"), ("orange", "blue"))
    ]


# Captions


def test_every_caption_is_clean_names_its_character_and_fits():
    rng = random.Random(0)
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    rows = set(pretrain.token_rows(tokenizer).tolist())
    words = set(captions.vocabulary())
    names = dict(zip("0123456789", captions.DIGIT_NAMES, strict=True))
    drawn = [(look, captions.draw_caption(look, rng)) for look in looks() for _ in range(20)]
    for look, text in drawn:
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*\.?", text), text
        said = text.removesuffix(".").split(" ")
        assert set(said) <= words, text
        assert {look.character.lower(), names.get(look.character)} & set(said), text
        for first, second in pairwise(said):
            if first in ("a", "an") and len(second) > 1 and second != "on":
                assert (first == "an") == (second[0] in "aeiou" and second != "one"), text
    tokens = tokenizer([text for _, text in drawn])
    assert tokens.argmax(dim=1).max() < pretrain.MAX_TOKENS  # the end token is never cut off
    assert set(tokens.flatten().tolist()) <= rows


def test_captions_say_only_what_is_known():
    rng = random.Random(1)
    look = captions.Look("7", "plain", None, None, "white", "black")
    texts = [captions.draw_caption(look, rng) for _ in range(2000)]
    said = {word for text in texts for word in text.removesuffix(".").split(" ")}
    tables = (captions.WEIGHTS, captions.TILTS, captions.CASES)
    unknown = {word for table in tables for words in table.values() for word in words}
    assert not said & (unknown | set(captions.LETTER_NOUNS) | set(captions.STYLES) - {"plain"})
    assert not said & (set(captions.COLOURS) - {"white", "black"})
    assert 0.71 < sum("seven" in text for text in texts) / len(texts) < 0.79  # 3:1; six standard deviations wide
    assert {"a photo of the digit seven.", "a photo of a seven", "seven", "7"} <= set(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a eight", "a photo of an eight"),
        ("a one", "a one"),
        ("a sketch of the letter a on a orange background", "a sketch of the letter a on an orange background"),
        ("a 8", "an 8"),
        ("a uppercase letter b", "an uppercase letter b"),
    ],
)
def test_articles(text: str, expected: str):
    assert captions.fix_articles(text) == expected


# Glyphs


def test_atlas_shows_every_character_of_every_font(fonts, atlas):
    assert len(fonts) >= 16
    assert not any(mark in font.path.stem for font in fonts for mark in ("Siz", "NonUni", "Display", "sy10", "ex10"))
    assert atlas.cells.shape == (len(fonts), 62, 48, 48)
    assert atlas.cells.dtype == torch.uint8
    flat = atlas.cells.flatten(2).float()
    assert (flat.amax(dim=-1) > 200).all()  # nothing is blank
    digits = flat[:, :10]  # and no missing-glyph box stands in for several digits
    assert all(not torch.equal(digits[:, i], digits[:, j]) for i in range(10) for j in range(i))


def test_batches_have_the_stated_shape_range_and_shares(atlas):
    images, known = glyphs.draw_batch(atlas, 1000, torch.Generator().manual_seed(0))
    assert images.shape == (1000, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert len(known) == 1000
    assert (images.flatten(1).std(dim=1) > 0.02).all()  # a stroke is visible in each
    shares = {
        0.45: sum(look.character.isdigit() for look in known) / 1000,
        0.35: sum((look.colour, look.background) == ("white", "black") for look in known) / 1000,
        0.15: sum((look.colour, look.background) == ("black", "white") for look in known) / 1000,
    }
    for wanted, share in shares.items():
        assert wanted - 0.06 < share < wanted + 0.08  # four standard deviations, and random pairs add a little
    again, _ = glyphs.draw_batch(atlas, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_white_on_black_is_bright_on_dark(atlas):
    images, known = glyphs.draw_batch(atlas, 400, torch.Generator().manual_seed(1))
    for image, look in zip(images, known, strict=True):
        if (look.colour, look.background) == ("white", "black"):
            border = torch.cat([image[:, 0].flatten(), image[:, -1].flatten()])
            assert border.median() < 0.5 < image.max()


def test_an_unturned_grid_reads_each_pixel_in_place():
    zero, one = torch.zeros(1), torch.ones(1)
    grid = glyphs._sampling_grid(zero, zero, one, one, torch.zeros(1, 2), torch.zeros(1, 2, 4, 4))
    centres = (torch.arange(32) + 0.5) / 16 - 1
    expected = torch.stack([centres.expand(32, 32), centres[:, None].expand(32, 32)], dim=-1)
    torch.testing.assert_close(grid[0], expected)


# Training


def test_short_text_pass_equals_open_clips(atlas):
    torch.manual_seed(0)
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    rows = pretrain.token_rows(tokenizer)
    ours = pretrain.build_model(CONFIG, len(rows)).eval()
    theirs = open_clip.CLIP(**CONFIG).eval()
    state = ours.state_dict()
    table = torch.zeros(49408, 64)
    table[rows] = state["token_embedding.weight"]
    theirs.load_state_dict(state | {"token_embedding.weight": table})
    tokens = tokenizer(["a photo of the digit zero.", "z", "a picture of a bold red capital letter q"])
    short = torch.searchsorted(rows, tokens[:, :12].contiguous())
    with torch.no_grad():
        expected = theirs.encode_text(tokens, normalize=True)
        torch.testing.assert_close(pretrain.encode_captions(ours, short), expected, rtol=1e-5, atol=1e-6)


def test_loss_shares_the_mass_over_equal_captions():
    # Three images; the first two have caption 0. Unit vectors in the plane, temperature 2.
    images = torch.eye(2)[[0, 1, 1]]
    texts = torch.eye(2)
    caption = torch.tensor([0, 0, 1])
    # Rows: images 0, 1, 2 against captions 0, 0, 1: similarities (2, 2, 0), (0, 0, 2), (0, 0, 2).
    a, b = math.log(2 * math.e**2 + 1), math.log(2 + math.e**2)
    by_image = ((a - 2) + b + (b - 2)) / 3
    # Columns: captions 0, 0, 1 against the images: (2, 0, 0) twice, then (0, 2, 2).
    by_text = ((b - 1) * 2 + (a - 2)) / 3
    loss = pretrain.contrastive_loss(images, texts, caption, torch.tensor(2.0))
    assert loss.item() == pytest.approx((by_image + by_text) / 2, rel=1e-6)


def test_learning_rate_warms_up_and_falls_to_its_final_share():
    assert pretrain.learning_rate(0, 500) == pytest.approx(2e-3 / 60)
    assert pretrain.learning_rate(60, 500) == pytest.approx(2e-3)
    assert pretrain.learning_rate(280, 500) == pytest.approx(2e-3 * 0.51)  # half-way: 2 % + 98 % / 2
    assert pretrain.learning_rate(500, 500) == pytest.approx(2e-3 * 0.02)


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(fonts, monkeypatch):
    monkeypatch.setattr(pretrain, "BATCH", 32)
    first, second, other = (pretrain.pretrain(CONFIG, 2, seed, fonts[:2]) for seed in (0, 0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


# The checkpoint


@pytest.fixture(scope="module")
def clip():
    return FrozenCLIP.load(ClipConfig(architecture="fedmoe-tiny", pretrained="glyphs"))


@pytest.fixture(scope="module")
def features(clip):
    return check.digit_features(clip, Digits())


def test_checkpoint_is_small():
    assert CHECKPOINT.stat().st_size < 10_000_000


def test_training_and_use_normalize_alike(clip):
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = pretrain.normalize(pixels.permute(2, 0, 1)[None].float() / 255)[0]
    torch.testing.assert_close(clip.preprocess(Image.fromarray(pixels.numpy())), expected)


def test_checkpoint_stores_every_caption_token_and_no_other(clip):
    rows = pretrain.token_rows(open_clip.SimpleTokenizer(context_length=77))
    assert not clip.unknown_tokens(rows)
    assert clip.unknown_tokens(clip.tokenize(["a photo of an elephant"]))
    assert clip.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_zero_shot_on_digits_leaves_room_for_prompts(clip, features):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    texts = template_features(clip, names, "a photo of the digit {class}.")
    images, labels = features.all
    correct = F.cosine_similarity(images[:, None], texts[None], dim=-1).argmax(dim=1) == labels
    assert len(labels) == 1797
    assert 0.5 < correct.double().mean().item() < 0.8


def test_linear_probe_separates_the_digits(features):
    probe = LogisticRegression(C=100, max_iter=5000).fit(features.train.numpy(), features.train_labels.numpy())
    assert probe.score(features.test.numpy(), features.test_labels.numpy()) > 0.93
