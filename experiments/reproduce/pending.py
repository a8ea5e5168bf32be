"""What fedmoe does not have yet of what a row needs, and what there are too few clients for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin

from experiments.reproduce.fields import merged
from experiments.reproduce.manifest import ROOT, Manifest, Row
from fedmoe.cli.yaml_files import load_file

_CLASSES = ("method", "data", "partition")  # their settings depend on the class


def as_arguments(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested settings as ``--key=value``; ``class_path`` is the value of its key, ``init_args`` is passed through."""
    if "class_path" in settings:
        yield f"--{prefix.rstrip('.')}={settings['class_path']}"
    for key, value in settings.items():
        if key == "init_args":
            yield from as_arguments(value, prefix)
        elif isinstance(value, Mapping):
            yield from as_arguments(value, f"{prefix}{key}.")
        elif key != "class_path":
            yield f"--{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def method_of(row: Row) -> str:
    """The name of the row's method class; "" while a file of the row does not exist."""
    if not all((ROOT / path).is_file() for path in row.configs):
        return ""
    settings = merged(from_files(row.configs), row.settings)
    return str(settings.get("method", {}).get("class_path", "")).rpartition(".")[2]


def pending(row: Row) -> str:
    """What fedmoe does not have yet of what a row needs; "" where it has everything."""
    missing = [path for path in row.configs if not (ROOT / path).is_file()]
    if missing:
        return f"{missing[0]} does not exist yet"
    settings = merged(from_files(row.configs), row.settings)
    method = settings.get("method", {})
    name, methods = str(method.get("class_path", "")).rpartition(".")[2], _methods()
    if name not in methods:
        return f"the method {name} does not exist yet"
    known = inspect.signature(methods[name].__init__, eval_str=True).parameters  # type: ignore[misc]
    for key, value in method.get("init_args", {}).items():
        if key not in known:
            return f"{name} has no setting {key} yet"
        hint = known[key].annotation
        if get_origin(hint) is Literal and value not in get_args(hint):
            return f"{name} has no {key} {value} yet"
    keys = known_settings()
    for argument in as_arguments({key: value for key, value in settings.items() if key not in _CLASSES}):
        key = argument[2:].partition("=")[0]
        if key not in keys:
            return f"the setting {key} does not exist yet"
    return ""


def lower_experts(settings: dict[str, Any], files: Sequence[str], manifest: Manifest, row: Row) -> tuple[str, str]:
    """Why a cell is left out, or what was changed in ``settings``, where there are fewer other clients than experts."""
    whole = merged(from_files(files), settings)
    federation = whole.get("federation", {})
    clients = federation.get("clients")
    wanted = whole.get("method", {}).get("init_args", {}).get("num_experts")
    if not isinstance(wanted, int) or not isinstance(clients, int):
        return "", ""
    clients -= federation.get("late_clients", 0)  # which are nobody's experts
    if wanted < clients:
        return "", ""
    if _compares_experts(manifest):
        return f"needs more than {clients} clients", ""
    settings["method"] = merged(settings.get("method", {}), {"init_args": {"num_experts": clients - 1}})
    return "", f"{row.label}: {clients - 1} non-local experts in place of {wanted}, as there are {clients} clients."


def _compares_experts(manifest: Manifest) -> bool:
    """Whether the number of experts is what the table or figure is about."""
    rows = sum("num_experts" in row.settings.get("method", {}).get("init_args", {}) for row in manifest.rows)
    return rows > 1 or (manifest.axis is not None and manifest.axis.setting.endswith("num_experts"))


def from_files(paths: Sequence[str]) -> dict[str, Any]:
    """The settings in configuration files, the later ones over the earlier."""
    settings: dict[str, Any] = {}
    for path in paths:
        settings = merged(settings, load_file(ROOT / path))
    return settings


@cache
def parser() -> Any:
    """The parser of fit."""
    from fedmoe.cli import experiment_parser

    return experiment_parser()


@cache
def known_settings() -> set[str]:
    """The dotted keys of fit's settings, without those of classes."""
    return set(parser().options)


@cache
def _methods() -> dict[str, type]:
    from fedmoe import methods

    return {name: found for name in methods.__all__ if inspect.isclass(found := getattr(methods, name))}
