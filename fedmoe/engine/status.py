"""Who is connected to a SuperLink."""

from __future__ import annotations

import datetime
import json
import time
from typing import Any

from fedmoe.config import EngineConfig
from fedmoe.engine.deployment import SuperLinkLine
from fedmoe.engine.line import HELLO, Order, from_json
from fedmoe.errors import UserError, printable


def register(config: EngineConfig) -> int:
    """Make the keys in engine.keys known to the SuperLink; how many there are. Errors as below."""
    return _line(config).register()


def _line(config: EngineConfig) -> SuperLinkLine:
    if config.kind != "flower":
        raise UserError(f"engine.kind is {config.kind!r}, which connects to nobody; valid is flower.")
    return SuperLinkLine(config)


def status(config: EngineConfig, patience: float = 20.0) -> list[str]:
    """A line for each node: its client, its state, when it was last seen, the version of fedmoe that it says.

    Raises:
        UserError: engine.kind is not flower, or the SuperLink cannot be reached.
    """
    line = _line(config)
    line.open()
    try:
        asked = {line.send(node, Order(HELLO, "status")): node for node in line.nodes()}
        told: dict[int, str] = {}
        end = time.monotonic() + patience
        while len(told) < len(asked) and time.monotonic() < end:
            for name, answer in line.receive([name for name, node in asked.items() if node not in told]):
                said = answer if isinstance(answer, str) else _says(answer.body)
                told[asked[name]] = said
        rows = []
        for node, info in sorted(line.info().items(), key=lambda item: (line.owner(item[0]) or 0, item[0])):
            owner = line.owner(node)
            who = f"client {owner}" if owner is not None else "unknown key"
            seen = datetime.datetime.fromtimestamp(info.online_until - info.heartbeat_interval)
            since = f"last seen about {seen:%Y-%m-%d %H:%M:%S}"
            rows.append(f"node {node}: {who}, {info.status or 'online'}, {since}, {told.get(node, 'no answer yet')}")
        return rows or ["no node is connected"]
    finally:
        line.close()


def _says(body: bytes) -> str:
    try:
        value: Any = from_json(body)
        clients = ", ".join(str(int(entry["client"])) for entry in value["clients"])
        return printable(f"says it is client {clients} with fedmoe {value['identity']['fedmoe']}"[:200])
    except (ValueError, LookupError, TypeError, json.JSONDecodeError):
        return "sent no hello"
