"""Model configurations from JSON files in open_clip's format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedmoe.errors import UserError

_KINDS: dict[str, Callable[[Any], bool]] = {
    "embed_dim": lambda value: type(value) is int and value >= 1,
    "vision_cfg": lambda value: isinstance(value, dict),
    "text_cfg": lambda value: isinstance(value, dict),
}


def _three(value: Any, least: float) -> bool:
    numbers = isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
    return numbers and all(math.isfinite(v) and v > least for v in value)


# Values that open_clip would replace by its defaults, or fail on with the first image.
_PREPROCESSING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mode": (lambda value: value == "RGB", "RGB"),
    "mean": (lambda value: _three(value, -math.inf), "a list of three numbers"),
    "std": (lambda value: _three(value, 0), "a list of three numbers above 0"),
    "interpolation": (lambda value: value in ("bicubic", "bilinear"), "bicubic or bilinear"),
    "resize_mode": (lambda value: value in ("shortest", "longest", "squash"), "shortest, longest or squash"),
    "fill_color": (lambda value: type(value) is int and 0 <= value <= 255, "an integer of 0 to 255"),
}


def read_model_config(key: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture that a JSON file describes, and its settings of preprocessing.

    ``key`` is the setting that names the file. Whether a model can be built from it is left to open_clip.

    Raises:
        UserError: the file cannot be read, is not such a configuration, or would fetch a part from the network.
    """
    where = f"{key}: the file {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}).") from error
    config = content.get("model_cfg", content) if isinstance(content, dict) else {}
    for name, fits in _KINDS.items():
        if not isinstance(config, dict) or not fits(config.get(name)):
            raise UserError(f"{where} has no {name!r} that can be used; valid is open_clip's model-config format.")
    image_model = config["vision_cfg"].get("timm_model_name")
    if image_model is not None and (not isinstance(image_model, str) or ":" in image_model):
        raise UserError(
            f"{where} has the timm_model_name {image_model!r}; valid is the name of one of timm's own models."
        )
    overlay = content.get("preprocess_cfg") or {}
    _require_preprocessing(overlay, where)
    return config, overlay


def _require_preprocessing(overlay: Any, where: str) -> None:
    if not isinstance(overlay, Mapping):
        raise UserError(f"{where} has a 'preprocess_cfg' that is no object; valid is open_clip's model-config format.")
    for name, (fits, valid) in _PREPROCESSING.items():
        value = overlay.get(name)
        if value is not None and not fits(value):
            raise UserError(f"{where} has preprocess_cfg.{name} = {str(value)[:60]!r}; valid is {valid}.")
