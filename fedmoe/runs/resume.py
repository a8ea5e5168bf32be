"""Resuming a run: which settings may have changed, and which lines of its logs can be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmoe.config import flatten
from fedmoe.errors import UserError
from fedmoe.io import read_jsonl, write_text_atomic

# What may differ between a run folder's settings and those of the command that resumes it: only what does not change
# the result up to the round where the run stopped.
_MAY_CHANGE = (
    *("federation.rounds", "output.", "features.", "tracking."),
    *("runtime.accelerator", "runtime.text_cache_mib", "runtime.client_states", "engine."),
    "runtime.score_cache_mib",
)


def require_same_settings(folder: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse to resume a run with settings that would change its result.

    Args:
        earlier: the settings of the command that started the run.
        settings: those of the current command.

    Raises:
        UserError: a setting that must not change has another value.
    """
    old, new = flatten(earlier), flatten(settings)
    for key in sorted(old.keys() | new.keys()):
        planned = new.get("optim.schedule") == "cosine_federation" or new.get("privacy.mechanism") == "dpsgd"
        fixed = planned and key == "federation.rounds"  # earlier rounds depend on it
        if old.get(key) != new.get(key) and (fixed or not key.startswith(_MAY_CHANGE)):
            raise UserError(
                f"{folder} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}; choose another "
                "output.name, or start over with --output.overwrite=true."
            )


def cut_logs(folder: Path, last: int) -> None:
    """Remove the log lines of rounds after ``last``, which have no checkpoint.

    Raises:
        UserError: a log is damaged.
    """
    logs = [folder / name for name in ("rounds.jsonl", "clients.jsonl", "failures.jsonl")]
    kept = {path: _until(path, last) for path in logs if path.exists()}  # all are read before any is written
    for path, lines in kept.items():
        write_text_atomic(path, "".join(lines))


def _until(path: Path, last: int) -> list[str]:
    """The lines of a log up to a round.

    Raises:
        UserError: the log is damaged.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, start=1):
        if type(record.get("round")) is not int:
            raise UserError(f"{path}, line {number}, has the round {record.get('round')!r}; valid is an integer.")
    return [json.dumps(record) + "\n" for record in records if record["round"] <= last]
