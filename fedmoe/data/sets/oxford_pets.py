"""OxfordPets (table 1 of the paper)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_layout import CoopLayout, Row, hold_out
from fedmoe.errors import UserError
from fedmoe.io import read_regular


@dataclass(frozen=True, eq=False, kw_only=True)
class OxfordPets(CoopLayout):
    """OxfordPets: 37 breeds, in ``<root>/oxford_pets/images/``.

    Without a split file, ``annotations/trainval.txt`` and ``test.txt`` are needed. By CoOp's rules the test images are
    those of test.txt, and 20 % of each class in trainval.txt are validation images.
    """

    name = "oxford_pets"
    folders = ("oxford_pets", "oxford-iiit-pet")
    image_folder = "images"
    split_file = "split_zhou_OxfordPets.json"
    torchvision_name = "OxfordIIITPet"
    coop_template = "a photo of a {class}, a type of pet."
    published = PublishedFacts(train=2944, test=3669, classes=37)

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        lists = {part: read_annotations(folder / "annotations" / f"{part}.txt") for part in ("trainval", "test")}
        where = str(folder / "annotations" / "trainval.txt")
        return hold_out(lists["trainval"], lists["test"], self.split_seed, where)


def read_annotations(path: Path) -> list[Row]:
    """The images of a list of the data set: lines ``<Class>_<number> <label from 1> <species> <breed of species>``.

    Raises:
        UserError: the file is missing or a line is not of this kind.
    """
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}), which tells the classes of the "
            "images where there is no split file; valid is the file of the data set's annotations, or a split file."
        ) from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split()
        breed, _, image = fields[0].rpartition("_")
        if len(fields) != 4 or not breed or not image or not re.fullmatch("0*[1-9][0-9]{0,8}", fields[1]):
            raise UserError(
                f"{path}, line {number}, is {line[:80]!r}; valid is an image name such as Abyssinian_100, the class "
                "from 1, the species and the breed."
            )
        rows.append((f"{fields[0]}.jpg", int(fields[1]) - 1, breed.lower()))
    return rows
