"""UCF101, the middle frames of videos of actions, in CoOp's layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_images import read_lines
from fedmoe.data.sets.coop_layout import CoopLayout, Row, hold_out
from fedmoe.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False, kw_only=True)
class UCF101(CoopLayout):
    """UCF101: 101 actions, one frame of each video, in ``<root>/ucf101/UCF-101-midframes/<Class_Name>/``.

    Without a split file, ``ucfTrainTestlist/classInd.txt``, ``trainlist01.txt`` and ``testlist01.txt`` are needed: the
    data set's first split, of which 20 % of each class's training videos become validation images.
    """

    name = "ucf101"
    folders = ("ucf101",)
    image_folder = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    coop_template = "a photo of a person doing {class}."
    published = PublishedFacts(train=7639, test=3783, classes=101, source="CoOp's split")

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        lists = folder / "ucfTrainTestlist"
        labels = _read_labels(lists / "classInd.txt")
        train, test = (_read_videos(lists / f"{part}list01.txt", labels) for part in ("train", "test"))
        return hold_out(train, test, self.split_seed, str(lists / "trainlist01.txt"))


def action_name(action: str) -> str:
    """An action as CoOp writes it: ``"ApplyEyeMakeup"`` becomes ``"Apply_Eye_Makeup"``."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def _read_labels(path: Path) -> dict[str, int]:
    """The label from 0 of each action, from lines ``<label from 1> <Action>``."""
    labels = {}
    for number, line in read_lines(path, "the labels of the actions"):
        match = re.fullmatch("0*([1-9][0-9]{0,5}) ([A-Z][A-Za-z]*)", line)
        if not match:
            raise UserError(f"{path}, line {number}, is {line[:80]!r}; valid is a line such as '1 ApplyEyeMakeup'.")
        labels[match[2]] = int(match[1]) - 1
    return labels


def _read_videos(path: Path, labels: dict[str, int]) -> list[Row]:
    """The frame of each video of a list, from lines ``<Action>/<video>.avi``, which may end in the label."""
    rows: list[Row] = []
    for number, line in read_lines(path, "which videos belong to this part of the data"):
        match = re.fullmatch(r"(\w+)/([^/\\ ]+)\.avi( [0-9]+)?", line)
        if not match:
            raise UserError(
                f"{path}, line {number}, is {line[:80]!r}; valid is a line such as 'Archery/v_Archery_g01_c01.avi'."
            )
        if match[1] not in labels:
            raise UserError(
                f"{path}, line {number}, names the action {match[1][:80]!r}, which classInd.txt does not list"
                f"{did_you_mean(match[1], labels) or '.'}"
            )
        name = action_name(match[1])
        rows.append((f"{name}/{match[2]}.jpg", labels[match[1]], name))
    return rows
