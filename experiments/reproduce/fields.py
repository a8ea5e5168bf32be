"""A YAML file's keys, each read once and checked; and nested settings laid over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe.cli.yaml_files import load_file
from fedmoe.errors import UserError, did_you_mean

Settings = Mapping[str, Any]


def merged(first: Settings, second: Settings) -> dict[str, Any]:
    """Nested settings with those of ``second`` over those of ``first``; another class drops the former's settings."""
    result = dict(first)
    switched = "class_path" in second and first.get("class_path", second["class_path"]) != second["class_path"]
    if switched:
        result.pop("init_args", None)
    for key, value in second.items():
        old = result.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "init_args" in value:
            old = {"class_path": old}  # a class that was named alone
        result[str(key)] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


class Fields:
    """A mapping of the file, whose keys are checked off as they are read."""

    def __init__(self, values: Mapping[Any, Any], where: str) -> None:
        self.values, self.where, self.read = values, where, set[str]()

    def raw(self, key: str) -> Any:
        self.read.add(key)
        return self.values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise UserError(f"{self.where}{key} is {value!r}; valid is a text.")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw(key) or []
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{self.where}{key} is {value!r}; valid is a list of texts.")
        return tuple(value)

    def integer(self, key: str, default: int) -> int:
        value = self.raw(key)
        if value is None:
            return default
        if type(value) is not int or value < 1:
            raise UserError(f"{self.where}{key} is {value!r}; valid is an integer of at least 1.")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.raw(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise UserError(f"{self.where}{key} is {value!r}; valid is a mapping.")
        return _plain(value)

    def within(self, key: str, *more: str) -> Fields:
        values: Any = self.values
        for part in (key, *more):
            self.read.add(key)
            values = values.get(part)
            if not isinstance(values, Mapping):
                raise UserError(f"{self.where}{'.'.join((key, *more))} is {values!r}; valid is a mapping.")
        return Fields(values, f"{self.where}{'.'.join((key, *more))}.")

    def done(self, optional: Sequence[str] = ()) -> None:
        """Refuse a key that nothing has read; ``optional`` ones are valid all the same."""
        valid = sorted(self.read | set(optional))
        for key in self.values:
            if key not in valid:
                near = did_you_mean(str(key), valid) or "."
                raise UserError(f"{self.where}{key} is not known; valid is {', '.join(valid)}{near}")


def _plain(value: Any) -> Any:
    """The value with plain texts as keys: the reader's know their line."""
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, str) else key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def read_fields(path: Path) -> Fields:
    """The keys of a YAML file, to be checked off."""
    return Fields(load_file(path), f"{path}: ")
