"""What all trackers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmoe.federation.callbacks import Callback
from fedmoe.io import read_jsonl


class Tracker(Callback):
    """A callback with something to close, also after an error."""

    def close(self) -> None:
        """Let go of files and threads; more than one call does no harm."""


def past_rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl, none where it does not exist."""
    path = folder / "rounds.jsonl"
    return read_jsonl(path) if path.exists() else []
