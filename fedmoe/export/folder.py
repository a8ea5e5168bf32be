"""The files of an exported client, and how they are read back.

``client.json``: an ``ExportedClient``. ``client.safetensors``: ``head/<name>``, what ``head.Head`` predicts with;
``state/parameters/<name>`` and ``state/experts/<name>``, what the client keeps; ``pool/<name>``, its last uploads that
the server hands to others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.errors import UserError
from fedmoe.export.head import FORMAT
from fedmoe.readers.regular import MIB, read_regular
from fedmoe.runs.records import Integer, Record, read_document

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.models.clip import FrozenCLIP

TELLS, TENSORS = "client.json", "client.safetensors"
_MOST_BYTES = 4096 * MIB


class ExportedClient(Record):
    """The contents of client.json."""

    format: Integer
    fedmoe: str  # the version that wrote it
    method: str  # its class, with its module
    label: str
    data: str  # the data set's name
    client: Integer
    round: Integer  # of the checkpoint that it comes from
    rounds_seen: Integer  # in how many rounds it has trained, up to
    version: Integer  # this one; 0 for none
    gated: bool  # whether its gate took part there
    expert_ids: list[Integer]  # whose prompts were its experts there
    experts: list[str]  # what the head's weights belong to
    head: dict[str, Any]
    class_names: list[str]
    classes_sha256: str
    clip: dict[str, Any]
    sha256: str  # of client.safetensors


def classes_hash(class_names: Sequence[str]) -> str:
    """SHA-256 of the class names in their order."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def about_clip(clip: FrozenCLIP) -> dict[str, Any]:
    """The CLIP whose image features the head takes; ``fingerprint`` is that of architecture, precision and weights."""
    return {
        "name": clip.name,
        "fingerprint": clip.fingerprint,
        "feature_dim": clip.feature_dim,
        "image_size": clip.image_size,
        "preprocess": " ".join(repr(clip.preprocess).split()).split(" at 0x")[0],
    }


def read_export(folder: Path) -> tuple[ExportedClient, dict[str, Tensor]]:
    """An exported client and its tensors.

    Raises:
        UserError: the folder is not one that ``export`` has made, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not (folder / TELLS).is_file():
        raise UserError(f"{folder} has no {TELLS}; valid is a folder that export has made.")
    told = read_document(folder / TELLS, ExportedClient)
    if told.format != FORMAT:
        raise UserError(f"{folder / TELLS} has the format {told.format}; this version of fedmoe reads format {FORMAT}.")
    data = read_regular(folder / TENSORS, _MOST_BYTES)
    if hashlib.sha256(data).hexdigest() != told.sha256:
        raise UserError(f"{folder / TENSORS} is not the file that {TELLS} belongs to; valid is a folder as exported.")
    try:
        return told, load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{folder / TENSORS} is damaged: {error}.") from error
