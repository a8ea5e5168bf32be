"""EuroSAT, satellite images of land use, in CoOp's layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_layout import CoopLayout, Row, split_folders

RENAMED = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class EuroSAT(CoopLayout):
    """EuroSAT: 10 kinds of land use, in ``<root>/eurosat/2750/<class>/``."""

    name = "eurosat"
    folders = ("eurosat",)
    image_folder = "2750"
    split_file = "split_zhou_EuroSAT.json"
    torchvision_name = "EuroSAT"
    coop_template = "a centered satellite photo of {class}."
    published = PublishedFacts(train=13500, test=8100, classes=10, source="CoOp's split")

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        return split_folders(folder / self.image_folder, self.split_seed, renamed=RENAMED)
