"""Food101 (table 1 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_layout import CoopLayout, Row, split_folders


@dataclass(frozen=True, eq=False, kw_only=True)
class Food101(CoopLayout):
    """Food101: 101 dishes, in ``<root>/food-101/images/<class>/``."""

    name = "food101"
    folders = ("food-101",)
    image_folder = "images"
    split_file = "split_zhou_Food101.json"
    torchvision_name = "Food101"
    coop_template = "a photo of {class}, a type of food."
    published = PublishedFacts(train=50500, test=30300, classes=101)

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        return split_folders(folder / self.image_folder, self.split_seed)
