"""Spatial image features: golden values of both towers, the towers that have none, and the way through the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, tiny_config
from feature_helpers import Photos
from safetensors.torch import load_file

from fedmoe.cli import main
from fedmoe.config import ClipConfig, FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data import IID
from fedmoe.errors import UserError
from fedmoe.features.client_data import FeatureBatches, prepare
from fedmoe.features.encoders import clip_encoder, extract_dataset, plain_inputs, spatial_encoder
from fedmoe.features.views import ViewInputs
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.spatial import SpatialEncoder
from fedmoe.seeds import torch_generator

ROOT = Path(__file__).parents[1]
Make = Callable[..., FrozenCLIP]


@pytest.mark.parametrize("case", ["rn_partial", "rn_balanced", "vit_partial"])
def test_features_are_the_releases(golden_clips: dict[str, FrozenCLIP], case: str) -> None:
    golden = load_file(GOLDEN / f"fedotp_{case}.safetensors")
    encoder = SpatialEncoder(golden_clips[case.partition("_")[0]])
    features = encoder(golden["images"])
    expected = golden["spatial_features"].transpose(0, 1)  # [b, M, d]
    assert features.shape[1:] == expected.shape[1:] == encoder.shape
    assert features.dtype == torch.float32
    assert float((features - expected).abs().max() / expected.abs().max()) < 2e-6
    assert torch.allclose(features.norm(dim=-1), torch.ones(()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("backbone", "image", "patch", "places"), [("rn", 64, None, 4), ("vit", 48, 16, 9)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_precision_gives_a_unit_vector_for_each_place(
    tmp_path: Path, backbone: str, image: int, patch: int | None, places: int, precision: Any
) -> None:
    config = tiny_config(backbone)
    config["vision_cfg"] |= {"image_size": image, "patch_size": patch}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    clip = FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None, precision=precision))
    encoder = SpatialEncoder(clip)
    images = torch.randn(3, 3, image, image, generator=torch_generator(0))
    features = encoder(images.requires_grad_())
    assert encoder.shape == (places, 48)
    assert features.shape == (3, places, 48)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.allclose(features.norm(dim=-1), torch.ones(()), rtol=0, atol=1e-6)
    plain = SpatialEncoder(FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None)))(images)
    assert torch.allclose(features, plain, rtol=0, atol=0.0 if precision == "float32" else 0.03)


@pytest.mark.parametrize(
    ("vision", "found"),
    [
        ({"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "token"}, "is a TimmModel, of"),
        ({"attentional_pool": True, "attn_pooler_queries": 4}, "VisionTransformer that pools its tokens before its"),
        ({"final_ln_after_pool": True, "pool_type": "avg"}, "VisionTransformer that pools its tokens before its"),
    ],
)
def test_other_towers_are_refused_in_one_sentence(tmp_path: Path, vision: dict, found: str) -> None:
    config = tiny_config("vit")
    config["vision_cfg"] |= vision
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    clip = FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None))
    with pytest.raises(UserError, match=rf"{found}.*valid is a clip\.architecture with a ModifiedResNet"):
        spatial_encoder(clip)


@pytest.fixture
def vit(tiny_clip: Make) -> FrozenCLIP:
    """Four places, d = 48."""
    return tiny_clip("vit")


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path / "cache"), batch_size=5, chunk=4)


def test_both_kinds_of_features_have_their_own_cache(vit: FrozenCLIP, photos: Photos, config: FeatureConfig) -> None:
    pooled = extract_dataset(photos, vit, config)
    spatial = extract_dataset(photos, vit, config, encoder=spatial_encoder(vit))
    for one, other, split in zip(pooled, spatial, (photos.train, photos.test), strict=True):
        assert one.values.shape == (len(split), 48)
        assert other.values.shape == (len(split), 4, 48)
        assert other.encoded == len(split)
        assert one.file != other.file
        inputs = plain_inputs(photos, vit)
        images = torch.stack([inputs(split.image(i), i) for i in range(len(split))])
        assert torch.allclose(other.values, SpatialEncoder(vit)(images), rtol=0, atol=1e-6)
    again = extract_dataset(photos, vit, config, encoder=spatial_encoder(vit))
    assert [part.encoded for part in again] == [0, 0]
    assert all(torch.equal(a.values, b.values) for a, b in zip(spatial, again, strict=True))


@pytest.mark.parametrize("kind", ["none", "cached", "online"])
def test_clients_train_and_test_on_places(vit: FrozenCLIP, photos: Photos, config: FeatureConfig, kind: Any) -> None:
    """Batches [b, M, d], whatever the views, in the order and with the labels of those of pooled features."""
    views, encoder = ViewsConfig(kind, count=3), spatial_encoder(vit)
    federation = FederationConfig(clients=2)
    data = prepare(photos, IID(), vit, federation, config, 0, views=views, encoder=encoder)
    pooled = prepare(photos, IID(), vit, federation, replace(config, cache_dir=config.cache_dir + "2"), 0, views=views)
    assert data.feature_dim == 48
    for client_id in range(2):
        client = data.client(client_id)
        assert client.test_features.shape == (len(client.test_labels), 4, 48)
        batches = list(FeatureBatches(client.test_features, client.test_labels, 2))
        assert torch.equal(torch.cat([features for features, _ in batches]), client.test_features)
        found = list(client.training_batches(4, torch_generator(3)))
        others = list(pooled.client(client_id).training_batches(4, torch_generator(3)))
        for (features, labels), (other, other_labels) in zip(found, others, strict=True):
            assert features.shape == (len(other), 4, 48)
            assert torch.equal(labels, other_labels)


def test_cached_views_of_places_are_the_encoded_views(vit: FrozenCLIP, photos: Photos, config: FeatureConfig) -> None:
    views = ViewsConfig("cached", count=3)
    train, _ = extract_dataset(photos, vit, config, views, encoder=spatial_encoder(vit))
    assert train.values.shape == (12, 3, 4, 48)
    inputs = ViewInputs(plain_inputs(photos, vit), views)
    for i in range(12):
        expected = SpatialEncoder(vit)(inputs(photos.train.image(i), i))  # [V, M, d]
        assert torch.allclose(train.values[i], expected, rtol=0, atol=1e-6)


def test_the_command_fills_what_the_method_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedded, method = ROOT / "configs/embedded.yaml", ROOT / "configs/methods/fedotp.yaml"
    cache = f"--features.cache_dir={tmp_path}"
    fill = ["features", "fill", f"--config={embedded}", cache]
    assert main([*fill, f"--config={method}"]) == 0
    shown = capsys.readouterr().out
    assert "train: [1258 x 1 x 128], 1,258 images" in shown
    assert "test: [539 x 1 x 128], 539 images" in shown
    assert main([*fill, "--methods=[PromptFL, FedOTP, FedProx]"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("train:") == 2
    assert "train: [1258 x 128], 1,258 images" in shown
    assert "train: [1258 x 1 x 128], from the cache" in shown
    assert main(["features", "list", f"--config={embedded}", cache]) == 0
    assert "spatial" in capsys.readouterr().out


def test_encoders_of_one_clip_differ_by_name_alone(vit: FrozenCLIP) -> None:
    pooled, spatial = clip_encoder(vit), spatial_encoder(vit)
    assert (pooled.name, pooled.shape) == ("global", (48,))
    assert (spatial.name, spatial.shape) == ("spatial", (4, 48))
    assert (pooled.identity, pooled.device) == (spatial.identity, spatial.device)
