"""JSON, JSON Lines and YAML files whose every value is checked on access.

What cannot be used is a UserError that names file, line and key. NaN and infinity are refused: JSON has none.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fedmoe.errors import UserError, did_you_mean
from fedmoe.readers.plain_yaml import PlainLoader

_DAMAGE = (ValueError, RecursionError)  # of a text that is no JSON, or nested too deeply
_KINDS = {float: "a number", int: "an integer of at most 64 bits", str: "a string", list: "a list", dict: "an object"}
T = TypeVar("T")


class Record:
    """Typed access to one JSON object; ``where`` is the file and line for the message of an error.

    Every method raises UserError for a missing key or a value of another type. An integer is taken for a number.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            kind = "nothing" if values is None else _KINDS.get(type(values), type(values).__name__)
            raise UserError(f"{where} holds {kind}; valid is an object with keys.")
        self.values, self.where = values, where

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """The value of a key that has to be there but may be null."""
        if key not in self.values:
            raise UserError(f"{self.where} has no key {key!r}{did_you_mean(key, map(str, self.values)) or '.'}")
        value = self.values[key]
        return None if value is None else self._typed(key, value, kind)

    def get(self, key: str, kind: type[T]) -> T:
        """The value of a key that has to be there and may not be null."""
        value = self.maybe(key, kind)
        return self._typed(key, None, kind) if value is None else value

    def record(self, key: str) -> Record:
        """The object under ``key``."""
        return Record(self.get(key, dict), f"{self.where}, key {key!r},")

    def items(self, key: str, kind: type[T]) -> tuple[T, ...]:
        """The list under ``key``, each item checked."""
        return tuple(self._typed(key, value, kind) for value in self.get(key, list))

    def numbers(self, kind: type[Any]) -> Any:
        """The dataclass ``kind``, whose fields are all numbers, from the keys of the same names."""
        return kind(**{f.name: self.get(f.name, float) for f in fields(kind)})

    def _typed(self, key: str, value: Any, kind: type[T]) -> T:
        if kind is float and type(value) is int and abs(value) < 2**1000:  # larger ones are no float
            value = float(value)
        infinite = isinstance(value, float) and not math.isfinite(value)  # 1e999 is read as infinity
        endless = type(value) is int and not -(2**63) <= value < 2**63
        if type(value) is not kind or infinite or endless:
            found, valid = json.dumps(value, default=str)[:60], _KINDS.get(kind, kind.__name__)
            raise UserError(f"{self.where} has {found} under key {key!r}; valid is {valid}.")
        return value


def read_json(path: Path) -> Record:
    """The one object in a JSON file; UserError if the file is missing, unreadable or damaged."""
    try:
        return Record(_parse(_read_bytes(path)), str(path))
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged or cut, it is not valid JSON: {error}.") from None


def read_jsonl(path: Path, notes: list[str]) -> list[Record]:
    """The objects of a JSON Lines file; UserError if it is missing, unreadable or damaged.

    A last line without line end was cut short by an interruption: it is left out, and ``notes`` gets a line about it.
    """
    lines = _read_bytes(path).split(b"\n")
    if lines.pop():
        notes.append(f"the last line of {path.name} is cut and left out")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record(_parse(line), f"{path}, line {number},"))
        except _DAMAGE as error:
            raise UserError(f"{path} is damaged, its line {number} is not valid JSON: {error}.") from None
    return records


def read_yaml(path: Path) -> Record:
    """The one mapping in a YAML file of plain values; UserError if the file is missing, unreadable or damaged."""
    try:
        return Record(yaml.load(_read_bytes(path).decode("utf-8"), PlainLoader), str(path))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged, it is not valid YAML: {' '.join(str(error).split())}.") from None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(data: bytes) -> Any:
    # Decoded here, because json.loads guesses another encoding from zero bytes.
    return json.loads(data.decode("utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")
