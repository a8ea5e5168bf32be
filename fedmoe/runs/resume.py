"""Going on with a run folder: what may have changed since, and what of it can be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fedmoe.errors import UserError
from fedmoe.federation.orchestrator import Federation
from fedmoe.io import read_jsonl, write_text_atomic
from fedmoe.protocol.records import RoundContext
from fedmoe.runs.checkpoint import FederationState, StateStore

# What may differ between a run folder's settings and those of the command that resumes it: nothing that changes a bit
# of the result up to the round where the run stopped.
_MAY_CHANGE = ("federation.rounds", "output.", "features.", "tracking.", "runtime.accelerator")


def resume(
    folder: Path, store: StateStore, earlier: str, config: str, federation: Federation
) -> FederationState | None:
    """The checkpoint in ``folder``; its logs are cut back to the round of the checkpoint.

    Raises:
        UserError: a setting of the ``earlier`` command, that must not change, has another value in ``config``; or the
            checkpoint or a log is damaged.
    """
    old, new = _flat(yaml.safe_load(earlier)), _flat(yaml.safe_load(config))
    for key in sorted(old.keys() | new.keys()):
        planned = new.get("optim.schedule") == "cosine_federation" or new.get("privacy.mechanism") == "dpsgd"
        fixed = planned and key == "federation.rounds"  # what came before depends on it
        if old.get(key) != new.get(key) and (fixed or not key.startswith(_MAY_CHANGE)):
            raise UserError(
                f"{folder} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}; choose another "
                "output.name, or start anew with --output.overwrite=true."
            )
    state = store.load()
    if state is not None:
        require_fit(state, federation, folder)
    last = -1 if state is None else state.round
    logs = [folder / name for name in ("rounds.jsonl", "clients.jsonl", "failures.jsonl")]
    kept = {path: _until(path, last) for path in logs if path.exists()}  # all are read before one is written
    for path, lines in kept.items():
        write_text_atomic(path, "".join(lines))
    return state


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


def require_fit(state: FederationState, federation: Federation, folder: Path) -> None:
    """Refuse a checkpoint that is of another federation than the settings beside it.

    Raises:
        UserError: the number of clients, the shape of a prompt or what clients keep for themselves is another one.
    """
    fresh = federation.state
    found = (len(state.clients), list(state.initial.shape))
    expected = (len(fresh.clients), list(fresh.initial.shape))
    if found != expected:
        raise UserError(
            f"{folder / 'state'} is of {found[0]} clients with prompts of shape {found[1]}, but config.yaml says "
            f"{expected[0]} clients and {expected[1]}; valid is the folder as fit has left it."
        )
    # All clients keep the same kind of thing, so that one of them tells for all.
    kept = next((i for i, client in enumerate(state.clients) if client.personal), None)
    if kept is None:
        return
    method, module, context = federation.method, federation.module, RoundContext(state.round, (), federation.seed)
    downlink = method.deploy(state.server, state.clients[kept], kept, context)
    loadout = method.inference(state.server, state.clients[kept], downlink)
    try:
        module.load(kept, replace(loadout, experts=None), federation.seed)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{folder / 'state'} does not fit the method of config.yaml ({reason}); valid is the folder as fit has "
            "left it."
        ) from error


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
