"""Which activation a CLIP has, QuickGELU or GELU: what weights file, configuration and option say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_helpers import OPENAI, save_archive
from conftest import tiny_config
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from fedmoe.config import ClipConfig
from fedmoe.errors import UserError
from fedmoe.models.clip import FrozenCLIP


def openai_archive(architecture: str, path: Path, **others: Tensor) -> Path:
    """An archive of an architecture of open_clip's, all zeros, each tensor a view of a single number: some KB."""
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(architecture))
    save_archive(
        {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in model.state_dict().items()} | others, path
    )
    return path


def activations(module: nn.Module) -> set[type]:
    return {type(part) for part in module.modules() if isinstance(part, QuickGELU | nn.GELU)}


def test_rn50_with_openais_archive_has_quick_gelu(tmp_path: Path) -> None:
    path = openai_archive("RN50", tmp_path / "RN50.pt", **OPENAI)
    clip = FrozenCLIP.load(ClipConfig(architecture="RN50", weights=str(path)))
    assert activations(clip.model) == {QuickGELU}  # the ResNet tower has ReLU alone
    assert clip.text.quick_gelu
    # open_clip by itself would take GELU for this name.
    assert activations(open_clip.create_model("RN50", pretrained=None)) == {nn.GELU}


def test_vit_b_32_takes_the_activation_from_the_file_or_asks(tmp_path: Path) -> None:
    clip = FrozenCLIP.load(
        ClipConfig(architecture="ViT-B-32", weights=str(openai_archive("ViT-B-32", tmp_path / "a.pt", **OPENAI)))
    )
    assert activations(clip.model.visual) == activations(clip.model.transformer) == {QuickGELU}
    # Its published weights were trained with either, and this file does not say.
    unnamed = str(openai_archive("ViT-B-32", tmp_path / "b.pt"))
    with pytest.raises(UserError, match=r"b.pt does not say .* ViT-B-32 .* clip.quick_gelu"):
        FrozenCLIP.load(ClipConfig(architecture="ViT-B-32", weights=unnamed))


@pytest.mark.parametrize(
    ("in_json", "openai", "option", "expected"),
    [
        (None, False, None, nn.GELU),
        (True, False, None, QuickGELU),
        (None, True, None, QuickGELU),
        (False, True, None, nn.GELU),
        (True, True, False, nn.GELU),
        (None, False, True, QuickGELU),
    ],
)
def test_which_activation(
    in_json: bool | None, openai: bool, option: bool | None, expected: type, reference: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(tiny_config("vit", **({} if in_json is None else {"quick_gelu": in_json}))))
    torch.save(reference.state_dict() | (OPENAI if openai else {}), tmp_path / "weights.pt")
    clip = FrozenCLIP.load(ClipConfig(weights=str(tmp_path / "weights.pt"), model_config=str(path), quick_gelu=option))
    assert activations(clip.model.visual) == activations(clip.model.transformer) == {expected}
