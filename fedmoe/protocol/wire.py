"""Records as bytes: what a server and a client on two machines would send each other.

A message is in the safetensors format: tensors by their path in the record (``downlink/parameters/prompt``), everything
else as JSON in the metadata. Reading a message executes nothing. What must stay on its side is not written: whose
prompts the experts are, and an exception object.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from fedmoe.protocol.records import Downlink, Failed, Scored, ScoreJob, SumJob, Summand, Trained, TrainJob, Update

_STAYS = {(Downlink, "expert_ids"), (Failed, "error")}
_NESTED = {"downlink": Downlink, "update": Update}  # fields that hold a record
Record = TypeVar("Record", TrainJob, ScoreJob, SumJob, Trained, Failed, Scored, Summand)


def to_bytes(record: TrainJob | ScoreJob | SumJob | Trained | Failed | Scored | Summand) -> bytes:
    """The record as one message."""
    from safetensors.torch import save

    tensors: dict[str, Any] = {}

    def plain(value: Any, path: str) -> Any:
        if is_dataclass(value):
            sent = [f.name for f in fields(value) if (type(value), f.name) not in _STAYS]
            return {name: plain(getattr(value, name), f"{path}{name}/") for name in sent}
        if isinstance(value, dict) and any(hasattr(item, "numpy") for item in value.values()):
            tensors.update({f"{path}{name}": item.clone().contiguous() for name, item in value.items()})
            return {}
        return value

    rest = plain(record, "")
    return bytes(save(tensors, {"record": json.dumps(rest, allow_nan=False)}))


def from_bytes(kind: type[Record], message: bytes) -> Record:
    """The record that a message holds.

    Raises:
        ValueError: the message is not a record of this kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(message[:8], "little")
        header = json.loads(message[8 : 8 + length])
        tensors, rest = load(message), json.loads(header["__metadata__"]["record"])
        return _build(kind, rest, tensors, "")
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"the message is no {kind.__name__}: {error}") from error


def _build(kind: Any, rest: dict[str, Any], tensors: dict[str, Any], path: str) -> Any:
    values = {}
    for name, value in rest.items():
        here = f"{path}{name}/"
        inside = {key.removeprefix(here): tensor for key, tensor in tensors.items() if key.startswith(here)}
        values[name] = _build(_NESTED[name], value, tensors, here) if name in _NESTED else (inside or value)
    return kind(**values)
