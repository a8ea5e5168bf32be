"""Settings given as objects, as a file would hold them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import Any

from fedmoe.attacks import Attack
from fedmoe.cli.values import find_class
from fedmoe.data import DataSet, Partition
from fedmoe.defences import Aggregation, Screening, Serving
from fedmoe.errors import UserError
from fedmoe.methods import Method

_BASES: tuple[type, ...] = (Method, DataSet, Partition, Attack, Aggregation, Screening, Serving)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as nested plain values; two underscores in a name stand for a dot.

    Raises:
        UserError: a value can stand in no file.
    """
    return {name.replace("__", "."): _plain(name, value) for name, value in settings.items()}


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", inner) for i, inner in enumerate(value)]
    if inspect.isclass(value) and issubclass(value, _BASES):
        return _path(value)
    if isinstance(value, _BASES):
        return {"class_path": _path(type(value)), "init_args": _arguments(name, value)}
    if is_dataclass(value) and not inspect.isclass(value):
        return {field.name: _plain(f"{name}.{field.name}", getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "item"):  # a number of NumPy's or torch's
        return _plain(name, value.item())
    raise UserError(
        f"{name} is of the type {type(value).__name__}, which no config.yaml can hold; valid is a plain value."
    )


def _path(cls: type) -> str:
    """The short name of a class where it leads to it, else its path."""
    base = next(base for base in _BASES if issubclass(cls, base))
    if find_class(base, cls.__name__) is cls:
        return cls.__name__
    if "<locals>" in cls.__qualname__:
        raise UserError(f"{cls.__qualname__} is defined in a function, where config.yaml cannot name it.")
    return f"{cls.__module__}.{cls.__qualname__}"


def _arguments(name: str, built: Any) -> dict[str, Any]:
    """What an object was built with, which it keeps under the names of the constructor's arguments."""
    found = {}
    for parameter in inspect.signature(type(built)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(built, parameter.name):
            raise UserError(
                f"{name} is a {type(built).__name__} that does not say what {parameter.name} it was built with; valid "
                f"is one with self.{parameter.name}, or {{'class_path': ..., 'init_args': ...}} in its place."
            )
        found[parameter.name] = _plain(f"{name}.{parameter.name}", getattr(built, parameter.name))
    return found
