"""SUN397, photographs of scenes, in CoOp's layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_images import read_lines
from fedmoe.data.sets.coop_layout import CoopLayout, Row, hold_out
from fedmoe.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False, kw_only=True)
class SUN397(CoopLayout):
    """SUN397: 397 scenes, in ``<root>/sun397/SUN397/<letter>/<scene>/``.

    Without a split file, ``ClassName.txt``, ``Training_01.txt`` and ``Testing_01.txt`` are needed: the data set's first
    split, of which 20 % of each class's training images become validation images.
    """

    name = "sun397"
    folders = ("sun397",)
    image_folder = "SUN397"
    split_file = "split_zhou_SUN397.json"
    published = PublishedFacts(train=15880, test=19850, classes=397, source="CoOp's split")

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        names = [
            _inside(*line, folder / "ClassName.txt") for line in read_lines(folder / "ClassName.txt", "the scenes")
        ]
        labels = {name: label for label, name in enumerate(names)}
        train, test = (_read_images(folder / f"{part}_01.txt", labels) for part in ("Training", "Testing"))
        return hold_out(train, test, self.split_seed, str(folder / "Training_01.txt"))


def scene_name(path: str) -> str:
    """A scene as CoOp writes it: ``"b/bakery/shop"`` becomes ``"shop bakery"``."""
    return " ".join(path.split("/")[1:][::-1])


def _inside(number: int, line: str, path: Path) -> str:
    """The path of a line, without the "/" that it begins with."""
    if not line.startswith("/") or line.count("/") < 2:
        raise UserError(f"{path}, line {number}, is {line[:80]!r}; valid is a path such as '/a/abbey'.")
    return line[1:]


def _read_images(path: Path, labels: dict[str, int]) -> list[Row]:
    rows: list[Row] = []
    for number, line in read_lines(path, "which images belong to this part of the data"):
        image = _inside(number, line, path)
        scene = image.rpartition("/")[0]
        if scene not in labels:
            raise UserError(
                f"{path}, line {number}, names the scene {scene[:80]!r}, which ClassName.txt does not list"
                f"{did_you_mean(scene, labels) or '.'}"
            )
        rows.append((image, labels[scene], scene_name(scene)))
    return rows
