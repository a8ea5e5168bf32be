"""A local weights file in place of the tag that a manifest names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmoe.errors import UserError

_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


def clip_settings(clip: Mapping[str, Any], given: Path) -> dict[str, Any]:
    """Settings of ``clip`` under which a run reads its weights from ``given``: a file, or a folder with one for each
    architecture.

    They are taken for those of the manifest's tag. OpenAI's are trained with QuickGELU, which only their own archives
    say.

    Args:
        clip: the run's settings of ``clip``: architecture and pretrained.

    Raises:
        UserError: there is no such file, several fit, or the run has a CLIP of its own.
    """
    architecture, tag = str(clip.get("architecture")), clip.get("pretrained")
    if architecture == "fedmoe-tiny":
        raise UserError(
            f"--weights is {given}, but this preset has the CLIP that comes with the package; leave it out."
        )
    found: dict[str, Any] = {"weights": str(_file(architecture, given.expanduser().resolve()))}
    return {**found, "quick_gelu": True} if tag == "openai" else found


def _file(architecture: str, given: Path) -> Path:
    if given.is_file():
        return given
    if not given.is_dir():
        raise UserError(f"--weights is {given}, which does not exist; valid is a weights file, or a folder of them.")
    files = sorted(path for path in given.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    # RN50.pt, RN50-quickgelu.safetensors, not RN50x4.pt
    named = [path for path in files if re.match(rf"{re.escape(architecture)}(?![a-z0-9])", path.name, re.IGNORECASE)]
    if len(named) == 1:
        return named[0]
    listed = ", ".join(path.name for path in named or files) or "none"
    raise UserError(
        f"--weights is {given}, which holds {len(named)} weights files of {architecture} (of {listed}); valid is a "
        f"folder with one, named {architecture}.pt or similar ({', '.join(_SUFFIXES)})."
    )
