"""Ways to damage a copy of a finished run: its files, records and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN, STATE = Path("runs/run"), Path("runs/run/state")
NEWEST, BEFORE = STATE / "round-00002", STATE / "round-00001"
Change = Callable[..., Any]
BRACKETS = b"[" * 100_000


@dataclass(frozen=True)
class Damage:
    """What is done to a copy of a finished run, the commands that must refuse it, and what they must say."""

    name: str
    change: Change
    words: tuple[str, ...]
    commands: tuple[str, ...]


def writes(path: Path, content: bytes | str) -> Change:
    return lambda: path.write_bytes(content.encode() if isinstance(content, str) else content)


def edits(path: Path, old: str, new: str) -> Change:
    def edit() -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def cuts(path: Path, share: float) -> Change:
    def cut() -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return cut


def flips(path: Path, share: float) -> Change:
    def flip() -> None:
        whole = bytearray(path.read_bytes())
        whole[int(share * len(whole))] ^= 4
        path.write_bytes(whole)

    return flip


def json_of(path: Path, change: Callable[[Any], Any]) -> Change:
    """A JSON file, changed in place or to what ``change`` returns."""

    def edit() -> None:
        value = json.loads(path.read_text())
        changed = change(value)
        path.write_text(json.dumps(value if changed is None else changed))

    return edit


def line_of(path: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> Change:
    """One record of a JSONL file, changed in place."""

    def edit() -> None:
        lines = path.read_text().splitlines()
        record = json.loads(lines[number])
        change(record)
        lines[number] = json.dumps(record)
        path.write_text("\n".join(lines) + "\n")

    return edit


def both(change: Callable[..., Change], suffix: str) -> Change:
    """The same to both rounds that are kept."""
    return lambda: [change(stem.with_suffix(suffix))() for stem in (NEWEST, BEFORE)]


ALL = ("evaluate", "report", "page", "fit", "resume")
READERS = ("evaluate", "fit", "resume")  # of the state
REPORTS = ("report", "page")
