"""What all trackers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmoe.federation.callbacks import Callback
from fedmoe.runs.records import read_rounds


class Tracker(Callback):
    """A callback with something to close, also after an error."""

    def close(self) -> None:
        """Let go of files and threads; more than one call does no harm."""


def past_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds in rounds.jsonl as JSON, none where it does not exist."""
    return [record.to_json() for record in read_rounds(folder)] if (folder / "rounds.jsonl").exists() else []
