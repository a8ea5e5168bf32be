"""What ImageNet, its variants and Tiny-ImageNet share: classes in folders that WordNet ids ("n01440764") name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmoe.data.base import Split
from fedmoe.data.sets.coop_images import read_lines
from fedmoe.data.sets.image_files import file_split, images_in, subfolders
from fedmoe.errors import UserError, did_you_mean

WNID = re.compile("n[0-9]{8}")


def read_names(path: Path, most: int | None = None) -> dict[str, str]:
    """The name of each WordNet id in the file's order, from lines ``<id> <name>``.

    Raises:
        UserError: the file is missing, a line is of another kind, or an id is listed twice.
    """
    names: dict[str, str] = {}
    for number, line in read_lines(path, "the classes' names"):
        fields = line.split(maxsplit=1)
        if len(fields) != 2 or not WNID.fullmatch(fields[0]):
            raise UserError(f"{path}, line {number}, is {line[:80]!r}; valid is a line such as 'n01440764 tench'.")
        if fields[0] in names:
            raise UserError(f"{path}, line {number}, lists {fields[0]} a second time; valid is one line for each id.")
        names[fields[0]] = fields[1]
    if most is not None and len(names) != most:
        raise UserError(f"{path} lists {len(names)} classes; valid are all {most} of ImageNet, in the order of labels.")
    return names


def wnid_folders(images: Path) -> list[str]:
    """The sorted WordNet ids that folders in ``images`` are named by; everything else there is ignored.

    Raises:
        UserError: there is none.
    """
    found = [name for name in subfolders(images) if WNID.fullmatch(name)] if images.is_dir() else []
    if not found:
        raise UserError(
            f"The folder {images} has no folder named by a WordNet id; valid are folders such as n01440764."
        )
    return found


def named(wnids: Sequence[str], names: Mapping[str, str], where: Path) -> tuple[str, ...]:
    """The names of some WordNet ids.

    Raises:
        UserError: one has no name in the file ``where``.
    """
    for wnid in wnids:
        if wnid not in names:
            raise UserError(f"{where} has no name for the folder {wnid!r}{did_you_mean(wnid, names) or '.'}")
    return tuple(names[wnid] for wnid in wnids)


def folder_split(folders: Sequence[Path]) -> Split:
    """All images of some folders; the label is the folder's place.

    Raises:
        UserError: a folder has no image.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = images_in(folder)
        if not found:
            raise UserError(
                f"The folder {folder} is missing or has no image; valid is a folder of images for each class."
            )
        paths += found
        labels += [label] * len(found)
    return file_split(paths, labels)
