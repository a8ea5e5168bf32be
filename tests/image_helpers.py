"""What tests of data sets share: small images, and the paths of a split's images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from feature_helpers import paths_of
from PIL import Image


def paint(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value % 256, dtype=np.uint8)).save(path)


def inside(split: Any, folder: Path) -> list[str]:
    """The paths of a split's images, below a folder."""
    return [str(Path(path).relative_to(folder)) for path in paths_of(split)]
