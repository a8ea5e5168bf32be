"""``data check``: whether a data set is complete on disk, and of the size that the paper gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmoe.data.base import DataSet, Split, check_dataset
from fedmoe.data.sets.image_files import IMAGE_FORMATS
from fedmoe.errors import some

_CLASSES = 20  # class names shown


@dataclass(frozen=True)
class CheckReport:
    """What was found, as text, and one sentence for each problem."""

    text: str
    problems: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 where the data set is as it should be, 1 where there are problems."""
        return 1 if self.problems else 0


def check(dataset: DataSet, headers: bool = False) -> CheckReport:
    """Compare a data set with what it should be: class names, domains, sizes as published, and all files.

    The whole data set is looked at, without the limits ``shots`` and ``subset``; the text says where they apply.

    Args:
        headers: also read every image's header, which takes longer: damaged files are named.

    Raises:
        UserError: the data set cannot be read at all.
    """
    check_dataset(dataset, training=not dataset.target_only)
    raw = dataset._raw
    parts = (("train", raw.train), ("test", raw.test))
    lines = [
        f"{dataset.name}: {len(raw.train)} training and {len(raw.test)} test examples, {len(raw.class_names)} classes"
        + (f", {len(raw.domain_names)} domains" if raw.domain_names else ""),
        f"Classes: {some(raw.class_names, _CLASSES)}",
    ]
    problems = _compare_sizes(dataset, lines)
    lines += _per_domain(raw.domain_names, parts)
    part, split = parts[dataset.target_only]
    problems += _empty_classes(raw.class_names, split, "training" if part == "train" else part)
    problems += _check_files(parts, headers, lines)
    if len(dataset.train) != len(raw.train) or len(dataset.test) != len(raw.test):
        lines.append(
            f"With data.shots and data.subset as set: {len(dataset.train)} training and {len(dataset.test)} test "
            f"examples, {len(dataset.class_names)} classes"
        )
    lines += [f"Problem: {problem}" for problem in problems] or ["No problem found."]
    return CheckReport("\n".join(lines), tuple(problems))


def _compare_sizes(dataset: DataSet, lines: list[str]) -> list[str]:
    facts, raw = dataset.published, dataset._raw
    if facts is None:
        lines.append("Sizes: the paper does not use this data set, so there is nothing to compare with")
        return []
    found = (len(raw.train), len(raw.test), len(raw.class_names))
    expected = (facts.train, facts.test, facts.classes)
    if found == expected:
        lines.append(f"Sizes: as in {facts.source}")
        return []
    nouns = ("training examples", "test examples", "classes")
    differing = [f"{f} {noun}, not {e}" for f, e, noun in zip(found, expected, nouns, strict=True) if f != e]
    whole = " (together they are as many; the data are split otherwise)" if sum(found) == sum(expected) else ""
    return [f"the sizes differ from {facts.source}: {'; '.join(differing)}{whole}."]


def _per_domain(names: Sequence[str], parts: Sequence[tuple[str, Split]]) -> list[str]:
    """A line for each domain with its sizes."""
    if not names:
        return []
    counts = [
        np.zeros(len(names), dtype=int) if split.domains is None else np.bincount(split.domains, minlength=len(names))
        for _, split in parts
    ]
    width = max(len(name) for name in names)
    return [f"  {name:<{width}}  {counts[0][i]:>7} train {counts[1][i]:>7} test" for i, name in enumerate(names)]


def _empty_classes(names: Sequence[str], split: Split, part: str) -> list[str]:
    counts = np.bincount(split.labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    return [f"{len(empty)} of {len(names)} classes have no {part} example: {some(empty)}."] if empty else []


def _check_files(parts: Sequence[tuple[str, Split]], headers: bool, lines: list[str]) -> list[str]:
    """Look for every image file; with ``headers`` also open it."""
    if all(split.paths is None for _, split in parts):
        lines.append("Files: the images do not lie in files of their own")
        return _check_headers(parts, lines) if headers else []
    problems = []
    paths = [path for _, split in parts for path in split.paths or ()]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        problems.append(f"{len(missing)} of {len(paths)} image files are missing: {some(missing)}.")
    else:
        lines.append(f"Files: all {len(paths)} are there")
    both = set(parts[0][1].paths or ()).intersection(parts[1][1].paths or ())
    if both:
        problems.append(f"{len(both)} files are training and test images at once: {some(sorted(both))}.")
    return problems + (_check_headers(parts, lines) if headers else [])


def _check_headers(parts: Sequence[tuple[str, Split]], lines: list[str]) -> list[str]:
    """Open every image that is there; the header alone where it lies in a file of its own."""
    from PIL import Image

    damaged, checked = [], 0
    for part, split in parts:
        for i in range(len(split)):
            path = None if split.paths is None else split.paths[i]
            if path is not None and not os.path.isfile(path):
                continue  # missing, and named already
            checked += 1
            try:
                if path is None:
                    split.image(i)
                else:
                    Image.open(path, formats=IMAGE_FORMATS).close()
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what PIL raises on bad headers
                damaged.append(path or f"{part} example {i}")
    if damaged:
        return [f"{len(damaged)} of {checked} images cannot be read: {some(damaged)}."]
    lines.append(f"Headers: all {checked} images can be read")
    return []
