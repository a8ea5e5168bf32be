"""Fixtures that several test files share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from fedmoe.config import ClipConfig
from fedmoe.models.clip import FrozenCLIP

pytest.register_assert_rewrite("cli_helpers", "clip_helpers", "html_helpers", "partition_helpers")


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is ``tmp_path``, in which there is nothing yet."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def embedded_clip() -> FrozenCLIP:
    """The CLIP that comes with the package."""
    return FrozenCLIP.load(ClipConfig(architecture="fedmoe-tiny", pretrained="glyphs"))


@pytest.fixture(scope="session")
def vit_clip() -> FrozenCLIP:
    """The architecture of the embedded CLIP with a VisionTransformer, with random weights."""
    return FrozenCLIP.load(ClipConfig(architecture="fedmoe-tiny-vit", pretrained=None))


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_clips() -> dict[str, FrozenCLIP]:
    """The two tiny CLIPs of the golden values (see tests/golden/README.md): a ModifiedResNet's and a ViT's."""
    return {
        backbone: FrozenCLIP.load(
            ClipConfig(
                weights=str(GOLDEN / f"{backbone}.clip.safetensors"),
                model_config=str(GOLDEN / f"golden-{backbone}.json"),
            )
        )
        for backbone in ("rn", "vit")
    }


def tiny_config(backbone: str = "rn", **changes: Any) -> dict[str, Any]:
    """A small model in open_clip's config form; ``text_<key>`` changes text_cfg, other keys the top level."""
    vision: dict[str, dict[str, Any]]
    vision = {"rn": {"layers": [1, 1, 1, 1], "width": 8}, "vit": {"layers": 2, "width": 64, "patch_size": 16}}
    config: dict[str, Any] = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 32, **vision[backbone]},
        "text_cfg": {"width": 32, "heads": 2, "layers": 3},
    }
    for key, value in changes.items():
        place = config["text_cfg"] if key.startswith("text_") else config
        place[key.removeprefix("text_")] = value
    return config


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Callable[..., FrozenCLIP]:
    """Makes a small CLIP with random weights, spread widely enough that every part of the tower matters."""

    def make(backbone: str = "rn", **changes: Any) -> FrozenCLIP:
        path = tmp_path / f"{backbone}.json"
        path.write_text(json.dumps(tiny_config(backbone, **changes)))
        clip = FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in clip.model.named_parameters():
            if not name.startswith("visual") and name != "logit_scale":
                parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        return clip

    return make


@pytest.fixture
def reference_json(tmp_path: Path) -> Path:
    """The configuration of ``reference`` as a file."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_config("vit", quick_gelu=True)))
    return path


@pytest.fixture(scope="module")
def reference() -> Any:
    """A tiny model built by open_clip itself."""
    torch.manual_seed(0)
    return open_clip.CLIP(**tiny_config("vit", quick_gelu=True)).eval()
