"""The wide embedded CLIP: features four times as wide as the gate, stored as float16, read exactly."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from experiments.embedded_clip import check, pretrain
from fedmoe.config import ClipConfig
from fedmoe.data.sets.digits import Digits
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import template_features

CHECKPOINT = Path(__file__).resolve().parents[1] / "fedmoe" / "assets" / "fedmoe-wide-glyphs.safetensors"


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return FrozenCLIP.load(ClipConfig(architecture="fedmoe-wide", pretrained="glyphs"))


def test_it_is_small_and_four_times_as_wide_as_the_gate(clip):
    assert CHECKPOINT.stat().st_size < 10_000_000
    assert clip.feature_dim == 512 == 4 * PFedMoAP().gating_dim
    assert clip.token_width == 128
    assert clip.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 512)


def test_the_model_holds_exactly_what_is_stored(clip):
    """Float16 numbers are float32 numbers, so nothing is rounded on reading."""
    stored, held = load_file(CHECKPOINT), clip.model.state_dict()
    rows = stored.pop("token_embedding.rows")
    assert torch.equal(held["token_embedding.weight"][rows], stored.pop("token_embedding.weight").float())
    assert all(torch.equal(held[name], tensor.to(held[name].dtype)) for name, tensor in stored.items())
    kinds = {tensor.dtype for tensor in stored.values() if tensor.ndim > 1}
    assert kinds == {torch.float16}
    assert all(tensor.dtype == torch.float32 for tensor in held.values() if tensor.is_floating_point())


def test_only_matrices_are_stored_as_float16():
    tensors = {
        "matrix": torch.tensor([[1.0, 1 + 2**-12]]),  # float16 has ten bits behind the point
        "vector": torch.tensor([1 + 2**-12, 1e-7]),
        "number": torch.tensor(4.6),
        "rows": torch.tensor([3, 70000]),
    }
    found = pretrain.half(tensors)
    assert found["matrix"].dtype == torch.float16 and found["matrix"].tolist() == [[1.0, 1.0]]
    assert all(torch.equal(found[name], tensors[name]) for name in ("vector", "number", "rows"))


def test_it_knows_every_caption_token_and_no_other(clip):
    rows = pretrain.token_rows(open_clip.SimpleTokenizer(context_length=77))
    assert not clip.unknown_tokens(rows)
    assert clip.unknown_tokens(clip.tokenize(["a photo of an elephant"]))


def test_zero_shot_on_digits_leaves_room_for_prompts(clip):
    features = check.digit_features(clip, Digits())
    texts = template_features(clip, Digits().class_names, "a photo of the digit {class}.")
    images, labels = features.all
    assert len(labels) == 1797
    assert 70 < check.accuracy(images, texts, labels) < 85
    assert check.probe_accuracy(features) > 95
