"""FGVC Aircraft, in the layout that CoOp uses, which is the data set's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts, RawData
from fedmoe.data.sets.coop_images import CoopImages, read_lines
from fedmoe.data.sets.coop_layout import Row, raw_data
from fedmoe.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False, kw_only=True)
class FGVCAircraft(CoopImages):
    """FGVC Aircraft: 100 variants, in ``<root>/fgvc_aircraft/images/``.

    ``variants.txt`` names the classes, and ``images_variant_train.txt``, ``..._val.txt`` and ``..._test.txt`` list the
    images of each part.
    """

    name = "fgvc_aircraft"
    folders = ("fgvc_aircraft", "fgvc-aircraft-2013b/data")
    image_folder = "images"
    torchvision_name = "FGVCAircraft"
    coop_template = "a photo of a {class}, a type of aircraft."
    published = PublishedFacts(train=3334, test=3333, classes=100, source="the data set's own split")

    def _read(self) -> RawData:
        folder = self._folder
        variants = [name for _, name in read_lines(folder / "variants.txt", "the classes")]
        labels = {name: label for label, name in enumerate(variants)}
        table = {part: _read_images(folder / f"images_variant_{part}.txt", labels) for part in ("train", "val", "test")}
        return raw_data(table, folder / self.image_folder, f"The split of {folder}")


def _read_images(path: Path, labels: dict[str, int]) -> list[Row]:
    """The images of a list, from lines ``<number> <variant>``."""
    rows: list[Row] = []
    for number, line in read_lines(path, "which images belong to this part of the data"):
        image, _, variant = line.partition(" ")
        if variant not in labels:
            raise UserError(
                f"{path}, line {number}, is {line[:80]!r}, without a variant that variants.txt lists"
                f"{did_you_mean(variant, labels) or '; valid is a number and a variant.'}"
            )
        rows.append((f"{image}.jpg", labels[variant], variant))
    return rows
