"""The fleet of each kind of engine."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from fedmoe.client.work import ClientWork
from fedmoe.config import EngineConfig
from fedmoe.errors import UserError
from fedmoe.federation.fleet import Fleet, LocalFleet
from fedmoe.io import read_regular, write_json_atomic


def _in_process(work: ClientWork, config: EngineConfig) -> Fleet:
    return LocalFleet(work)


def _simulated(work: ClientWork, config: EngineConfig) -> Fleet:
    from fedmoe.engine.flower import require_flower

    require_flower(config.kind)
    from fedmoe.engine.simulation import SimulatedFleet

    return SimulatedFleet(work, config)


def _deployed(work: ClientWork, config: EngineConfig) -> Fleet:
    from fedmoe.engine.flower import require_flower

    require_flower(config.kind)
    from fedmoe.engine.deployment import SuperLinkLine
    from fedmoe.engine.remote import RemoteFleet

    return RemoteFleet(work, SuperLinkLine(config), config)


_KINDS: Mapping[str, Callable[[ClientWork, EngineConfig], Fleet]] = {
    "in_process": _in_process,
    "flower_simulation": _simulated,
    "flower": _deployed,
}


def build_fleet(work: ClientWork, config: EngineConfig) -> Fleet:
    """The fleet that the settings ask for; nothing is started before its ``open``.

    Raises:
        UserError: what it needs is not installed, or a setting needs clients that are not apart.
    """
    if config.kind != "in_process" and work.config.share_momentum:
        raise UserError(
            f"federation.share_momentum is true, but engine.kind is {config.kind!r}: clients that are apart share no "
            "optimizer; valid is in_process, or federation.share_momentum = false."
        )
    together = work.runtime.cohort_batch
    if config.kind != "in_process" and together > 1:
        raise UserError(
            f"runtime.cohort_batch is {together}, but engine.kind is {config.kind!r}: clients that are apart share no "
            "text pass; valid is in_process, or runtime.cohort_batch = 1."
        )
    if config.kind == "flower" and work.config.evaluate_others:
        raise UserError(
            "federation.evaluate_others is true, but engine.kind is 'flower': a site has no test images of other "
            "clients; valid is in_process or flower_simulation, or federation.evaluate_others = false."
        )
    if config.kind == "flower" and work.adversary is not None:
        raise UserError(
            f"attack is {type(work.adversary.attack).__name__}, but engine.kind is 'flower': attacks are simulated, "
            "and no real site is told to attack; valid is in_process or flower_simulation, or attack = null."
        )
    return _KINDS[config.kind](work, config)


def run_name(folder: Path, fresh: bool) -> str:
    """The name under which clients keep their states of the run in this folder; a new one for a ``fresh`` run.

    Raises:
        UserError: the file that holds it is damaged.
    """
    path = folder / "engine.json"
    if fresh or not path.exists():
        return secrets.token_hex(8)
    try:
        name = json.loads(read_regular(path, 10_000))["run"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); valid is what fit has written.") from error
    if not isinstance(name, str) or not name.isalnum():
        raise UserError(f"{path} names the run {name!r}; valid is what fit has written.")
    return name


def keep_run_name(folder: Path, name: str) -> None:
    """Write the name where ``run_name`` finds it."""
    write_json_atomic(folder / "engine.json", {"run": name})
