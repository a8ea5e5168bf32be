"""The base of all trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmoe.federation.callbacks import Callback
from fedmoe.runs.records import read_rounds


class Tracker(Callback):
    """A callback that has to be closed, also after an error."""

    def close(self) -> None:
        """Release files and threads; may be called more than once."""


def past_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds in rounds.jsonl as JSON; none if it does not exist."""
    return [record.to_json() for record in read_rounds(folder)] if (folder / "rounds.jsonl").exists() else []
