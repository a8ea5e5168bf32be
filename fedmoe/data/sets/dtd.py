"""DTD, the describable textures (table 1 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_layout import CoopLayout, Row, split_folders


@dataclass(frozen=True, eq=False, kw_only=True)
class DTD(CoopLayout):
    """DTD: 47 textures, in ``<root>/dtd/images/<class>/``."""

    name = "dtd"
    folders = ("dtd", "dtd/dtd")
    image_folder = "images"
    split_file = "split_zhou_DescribableTextures.json"
    torchvision_name = "DTD"
    coop_template = "{class} texture."
    published = PublishedFacts(train=2820, test=1692, classes=47)

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        return split_folders(folder / self.image_folder, self.split_seed)
