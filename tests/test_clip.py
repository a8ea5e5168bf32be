"""FrozenCLIP: its features, tokens and preprocessing are open_clip's, and nothing in it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from conftest import GOLDEN, tiny_config
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from fedmoe.config import ClipConfig
from fedmoe.models.clip import FrozenCLIP


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("backbone", ["rn", "vit"])
def test_features_are_open_clips(backbone: str, custom_text: bool, tmp_path: Path) -> None:
    settings = tiny_config(backbone)
    torch.manual_seed(1)
    expected = open_clip.CLIP(**settings).eval()
    torch.save(expected.state_dict(), tmp_path / "weights.pt")
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_cfg": settings | {"custom_text": custom_text}}))
    clip = FrozenCLIP.load(ClipConfig(weights=str(tmp_path / "weights.pt"), model_config=str(path)))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(clip.encode_image(images), expected.encode_image(images, normalize=True))
    tokens = clip.tokenize(["a cat", "two dogs"])
    torch.testing.assert_close(clip.model.encode_text(tokens), expected.encode_text(tokens))
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert (clip.feature_dim, clip.token_width, clip.image_size) == (48, 32, 32)


def test_golden_weights_are_open_clips_with_the_stored_rows(golden_clips: dict[str, FrozenCLIP]) -> None:
    stored = load_file(GOLDEN / "vit.clip.safetensors")
    rows = stored.pop("token_embedding.rows")
    state = golden_clips["vit"].model.state_dict()
    embedding = state["token_embedding.weight"]
    assert torch.equal(embedding[rows], stored.pop("token_embedding.weight").float())
    others = torch.ones(len(embedding), dtype=torch.bool).index_fill(0, rows, False)
    assert not embedding[others].any()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())
    assert golden_clips["vit"].unknown_tokens([*rows.tolist(), 5, 7]) == {5, 7}


def test_a_complete_checkpoint_knows_all_tokens(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    assert tiny_clip().unknown_tokens(torch.arange(49408)) == set()


def test_tokens_and_preprocessing_are_open_clips(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip()
    texts = ["a photo of a cat.", "naïve café", "word " * 100]
    assert torch.equal(clip.tokenize(texts), open_clip.get_tokenizer("RN50")(texts))
    assert clip.count_tokens("a photo of a cat.") == 6
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert torch.equal(clip.preprocess(image), open_clip.image_transform(32, is_train=False)(image))
    assert clip.preprocess(image.convert("L")).shape == (3, 32, 32)


def test_preprocessing_of_the_json_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_cfg": tiny_config(), "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}))
    clip = FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None))
    white = clip.preprocess(Image.new("RGB", (32, 32), "white"))
    torch.testing.assert_close(white, torch.ones(3, 32, 32))


@pytest.mark.parametrize("backbone", ["rn", "vit"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_half_precision(backbone: str, precision: Any, tolerance: float, golden_clips: dict[str, FrozenCLIP]) -> None:
    files = {"weights": f"{backbone}.clip.safetensors", "model_config": f"golden-{backbone}.json"}
    paths: dict[str, Any] = {key: str(GOLDEN / name) for key, name in files.items()}
    clip = FrozenCLIP.load(ClipConfig(precision=precision, **paths))
    assert clip.text.dtype == getattr(torch, precision)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = clip.encode_image(images)
    assert features.dtype == torch.float32
    assert float((features - golden_clips[backbone].encode_image(images)).abs().max()) < tolerance


def test_frozen(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip()
    holder = nn.ModuleList([clip]).train()
    assert holder.training
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert not clip.encode_image(images).requires_grad


def test_moving_it_moves_the_text_tower(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip().to(torch.float64)
    assert {part.dtype for part in (clip.text.positional_embedding, clip.text.blocks[0].attn.in_proj_weight)} == {
        torch.float64
    }
    assert clip.text.dtype == torch.float64
    assert clip.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


def test_random_weights_are_the_same_each_time_and_draw_from_no_global_generator(reference_json: Path) -> None:
    before = torch.get_rng_state()
    one = FrozenCLIP.load(ClipConfig(model_config=str(reference_json), pretrained=None))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert FrozenCLIP.load(ClipConfig(model_config=str(reference_json), pretrained=None)).fingerprint == one.fingerprint


def test_fingerprint_knows_weights_configuration_and_precision(
    reference: Any, reference_json: Path, tmp_path: Path
) -> None:
    state = reference.state_dict()
    path, changed = tmp_path / "weights.pt", tmp_path / "changed.pt"
    torch.save(state, path)
    torch.save(state | {"visual.proj": state["visual.proj"] + 1e-6}, changed)
    cases: list[tuple[Path, dict[str, Any]]] = [
        (path, {}),
        (path, {}),
        (changed, {}),
        (path, {"quick_gelu": False}),
        (path, {"precision": "bfloat16"}),
    ]
    prints = [
        FrozenCLIP.load(ClipConfig(weights=str(weights), model_config=str(reference_json), **options)).fingerprint
        for weights, options in cases
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
