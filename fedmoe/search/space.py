"""The space of a search: the ``parameters`` of a W&B sweep file.

Of W&B's forms these are understood: ``values``, ``value``, and ``min`` with ``max``, whose ``distribution`` is
``uniform``, ``int_uniform``, ``log_uniform_values`` or ``q_uniform`` (with a step ``q``). Without one, two integers
mean ``int_uniform`` and other numbers ``uniform``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedmoe.errors import UserError, did_you_mean
from fedmoe.readers.plain_yaml import PlainLoader
from fedmoe.readers.regular import read_regular

METHODS = ("grid", "random", "bayes")
_MOST_BYTES = 1_000_000


@dataclass(frozen=True)
class Choice:
    """One of several values: plain ones, such as numbers and names of classes."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included.

    Attributes:
        integer: integers alone.
        log: uniform in the logarithm.
        step: multiples of it above ``low`` alone; None: any.
    """

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Space:
    """What is searched: parameters by the names of settings, such as ``optim.prompt_lr``.

    Attributes:
        method: ``grid``, ``random`` or ``bayes``.
    """

    method: str
    parameters: Mapping[str, Choice | Range]

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of the values, the last parameter's changing fastest."""
        values = [parameter.values for parameter in self.parameters.values() if isinstance(parameter, Choice)]
        return [dict(zip(self.parameters, each, strict=True)) for each in itertools.product(*values)]

    def ends(self) -> list[dict[str, Any]]:
        """Settings in which every value of a choice, and both ends of a range, occur."""
        ends = {
            name: parameter.values if isinstance(parameter, Choice) else _ends(parameter)
            for name, parameter in self.parameters.items()
        }
        longest = max(map(len, ends.values()))
        return [{name: values[min(i, len(values) - 1)] for name, values in ends.items()} for i in range(longest)]


def _ends(parameter: Range) -> tuple[float, float]:
    return (int(parameter.low), int(parameter.high)) if parameter.integer else (parameter.low, parameter.high)


def read_space(path: Path) -> Space:
    """The space in a YAML file; of a W&B sweep file, ``method`` and ``parameters`` count, and the rest does not.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        loaded = yaml.load(read_regular(path, _MOST_BYTES).decode("utf-8"), PlainLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    given = loaded.get("parameters") if isinstance(loaded, Mapping) else None
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{path} has no parameters; valid is a mapping of settings, as in a W&B sweep file.")
    method = loaded.get("method", "bayes")
    if method not in METHODS:
        raise UserError(f"{path}: method is {method!r}; valid is one of {', '.join(METHODS)}.")
    space = Space(method, {str(name): _parameter(f"{path}: parameters.{name}", value) for name, value in given.items()})
    for name, parameter in space.parameters.items():
        if method == "grid" and isinstance(parameter, Range):
            raise UserError(f"{path}: parameters.{name} is a range, which no grid has; valid are values.")
    return space


def _parameter(key: str, given: Any) -> Choice | Range:
    if not isinstance(given, Mapping):
        raise UserError(f"{key} is {given!r}; valid is a mapping with values, value, or min and max.")
    if "values" in given or "value" in given:
        values = given["values"] if "values" in given else [given["value"]]
        if not isinstance(values, list) or not values or not all(_is_plain(value) for value in values):
            raise UserError(f"{key}.values is {values!r}; valid is a list of numbers, texts, true, false or null.")
        return Choice(tuple(values))
    low, high = given.get("min"), given.get("max")
    if low is None or high is None or not (_is_number(low) and _is_number(high) and low < high):
        raise UserError(f"{key} has neither values nor numbers min < max; valid is one of the two.")
    integers = isinstance(low, int) and isinstance(high, int)
    name = given.get("distribution", "int_uniform" if integers else "uniform")
    if not isinstance(name, str) or name not in _RANGES:
        near = did_you_mean(str(name), _RANGES) or "."
        raise UserError(f"{key}.distribution is {name!r}; valid is {', '.join(_RANGES)}{near}")
    return _RANGES[name](key, given)


def _uniform(key: str, given: Mapping[str, Any]) -> Range:
    return Range(float(given["min"]), float(given["max"]))


def _int_uniform(key: str, given: Mapping[str, Any]) -> Range:
    for end in ("min", "max"):
        if not isinstance(given[end], int):
            raise UserError(f"{key}.{end} is {given[end]}; valid with int_uniform is an integer.")
    return Range(given["min"], given["max"], integer=True)


def _log_uniform(key: str, given: Mapping[str, Any]) -> Range:
    if given["min"] <= 0:
        raise UserError(f"{key}.min is {given['min']}; valid with log_uniform_values is a number above 0.")
    return Range(float(given["min"]), float(given["max"]), log=True)


def _q_uniform(key: str, given: Mapping[str, Any]) -> Range:
    step = given.get("q", 1)
    if not _is_number(step) or step <= 0:
        raise UserError(f"{key}.q is {step!r}; valid is a number above 0.")
    integer = all(isinstance(value, int) for value in (given["min"], given["max"], step))
    return Range(given["min"], given["max"], integer=integer, step=step)


_RANGES: dict[str, Callable[[str, Mapping[str, Any]], Range]] = {
    "uniform": _uniform,
    "int_uniform": _int_uniform,
    "log_uniform_values": _log_uniform,
    "q_uniform": _q_uniform,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
