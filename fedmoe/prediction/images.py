"""Predicting the classes of image files with one client of a run.

Shape letters: b images, C classes, K experts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedmoe.data.base import DataSet
from fedmoe.data.sets.image_files import IMAGE_FORMATS, IMAGE_SUFFIXES, file_split
from fedmoe.errors import UserError
from fedmoe.features.encoders import plain_inputs
from fedmoe.features.extraction import Damage, ImageReader
from fedmoe.prediction.client import RestoredClient

_BATCH = 64  # images encoded at once


@dataclass(frozen=True)
class Prediction:
    """What a client says about one image.

    Attributes:
        image: the file.
        classes: names and probabilities, the most probable first.
        experts: what the gate weighed and with which weight, mean over classes and heads; they sum to one. Empty
            without experts.
    """

    image: str
    classes: tuple[tuple[str, float], ...]
    experts: tuple[tuple[str, float], ...] = ()


def find_images(given: Sequence[str]) -> list[str]:
    """The files among ``given``, and all image files in and below its folders, hidden ones left out, in sorted order.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    found: list[str] = []
    for path in given:
        if os.path.isdir(path):
            inside = _images_below(path)
            if not inside:
                endings = ", ".join(IMAGE_SUFFIXES)
                raise UserError(f"{path} holds no image; valid is a folder with files that end in {endings}.")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; valid is an image, or a folder of images.")
    return found


def _images_below(folder: str) -> list[str]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kept = (name for name in sorted(names) if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES))
        found += [str(Path(place) / name) for name in kept]
    return found


@torch.no_grad()
def predict(client: RestoredClient, dataset: DataSet, images: Sequence[str], top: int = 5) -> list[Prediction]:
    """The ``top`` most probable classes of each image, and the weights of the client's experts.

    Images are opened and preprocessed as those of the run's data set.

    Raises:
        UserError: an image cannot be read, or ``top`` is below 1.
    """
    if top < 1:
        raise UserError(f"top is {top}; valid is an integer of at least 1.")
    module = client.module
    split = file_split(images, [0] * len(images))
    reader = ImageReader(split, plain_inputs(dataset, module.clip), "images")
    found: list[Prediction] = []
    for start in range(0, len(images), _BATCH):
        inputs = torch.stack([_input(reader, i) for i in range(start, min(start + _BATCH, len(images)))])
        features = module.features(inputs.to(module.device))
        shares = module(features).float().softmax(dim=-1).cpu()  # [b, C]
        best, labels = shares.topk(min(top, shares.shape[1]), dim=-1)
        for i in range(len(features)):
            named = zip(labels[i].tolist(), best[i].tolist(), strict=True)
            classes = tuple((module.prompts.class_names[label], share) for label, share in named)
            weights: tuple[tuple[str, float], ...] = ()
            if client.experts:
                attention = module.method.analyse(module, features[i : i + 1])["attention"]  # [K + 1]
                weights = tuple(zip(client.experts, attention.tolist(), strict=True))
            found.append(Prediction(images[start + i], classes, weights))
    return found


def _input(reader: ImageReader, index: int) -> torch.Tensor:
    read: np.ndarray | Damage = reader[index][1]
    if isinstance(read, Damage):
        known = read.reason.startswith("cannot identify")  # Pillow goes on with the file's address in memory
        reason = f"it is none of {', '.join(IMAGE_FORMATS)}" if known else read.reason
        raise UserError(f"The image {reader.label(index)} cannot be read: {reason}.")
    return torch.from_numpy(read)
