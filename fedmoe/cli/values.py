"""The settings of a class, and their types in words: what is valid, and which valid value is nearest to a wrong one."""

from __future__ import annotations

import copy
import difflib
import inspect
import json
import math
import pydoc
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from fedmoe.errors import UserError

# Bytes of file names that are not UTF-8 are represented by 0xDC80 to 0xDCFF (PEP 383), and are valid in a path.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_PLURAL = {int: "integers", float: "numbers", str: "texts"}
REQUIRED = inspect.Parameter.empty


class Text(str):
    """A value as it stands on the command line."""


def plain_copy(value: Any) -> Any:
    """A copy that jsonargparse may write to, and may give to a YAML reader that knows no kind of text but ``str``."""
    return str(value) if isinstance(value, str) else copy.deepcopy(value)


class Setting(NamedTuple):
    """Type, default and help of a setting; the default is ``REQUIRED`` where the setting has none."""

    hint: Any
    default: Any = REQUIRED
    help: str = ""


@cache
def settings_of(owner: type) -> Mapping[str, Setting]:
    """The arguments of a class's constructor by name; those of a group within have dotted names.

    What a constructor takes as ``**kwargs`` is looked up in the class's bases.
    """
    found: dict[str, Setting] = {}
    for cls in inspect.getmro(owner)[:-1]:  # the last one is object
        if "__init__" not in vars(cls):
            continue
        try:
            constructor = cls.__init__  # type: ignore[misc]
            hints = get_type_hints(cls if "__dataclass_fields__" in vars(cls) else constructor)
            # Resolved here, for jsonargparse would run the module's TYPE_CHECKING block to do so, which imports torch.
            constructor.__annotations__ |= {k: hints[k] for k in constructor.__annotations__ if k in hints}
        except NameError:  # types that exist only for the type checker
            hints = {}
        parameters = list(inspect.signature(cls).parameters.values())
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, Setting(hints.get(p.name, Any), p.default))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return with_groups(found)


def with_groups(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings, with those of a group in place of the group."""
    flat: dict[str, Setting] = {}
    for name, setting in settings.items():
        inner = settings_of(setting.hint) if is_group(setting.hint) else None
        flat |= {name: setting} if inner is None else {f"{name}.{key}": inner[key] for key in inner}
    return flat


def is_group(hint: Any) -> bool:
    """Whether a type stands for a group of settings rather than for a choice of classes."""
    return inspect.isclass(hint) and is_dataclass(hint) and not inspect.isabstract(hint) and not known_subclasses(hint)


def members_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def class_base(hint: Any) -> tuple[type | None, bool]:
    """The base of the classes that a type stands for, and whether for a list of them; no base for plain values."""
    base, *others = [member for member in members_of(hint) if member is not type(None)] or [None]
    is_list = get_origin(base) in (list, Sequence)
    base = get_args(base)[0] if is_list else base
    is_plain = (
        not inspect.isclass(base)
        or base.__module__ in ("builtins", "typing")
        or issubclass(base, PurePath)
        or is_group(base)
    )
    return (None, False) if others or is_plain else (base, is_list)


def known_subclasses(base: type) -> list[type]:
    """The classes a short name may stand for: all below ``base`` that can be built and are not private."""
    found: list[type] = []
    cls: type
    for cls in base.__subclasses__():
        if not (inspect.isabstract(cls) or cls.__name__.startswith("_") or "<locals>" in cls.__qualname__):
            found.append(cls)
        found += known_subclasses(cls)
    return list(dict.fromkeys(found))  # a class with two such bases is met twice


def find_class(base: type, name: Any) -> Any:
    """What a short name or a path stands for, None where nothing is found; it may be of a wrong kind."""
    known = {cls.__name__: cls for cls in known_subclasses(base)}
    if not isinstance(name, str) or name in known or "." not in name:
        return known.get(str(name))
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        return pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        if isinstance(error.value, ImportError):
            raise sentence(f"{name} cannot be imported: {error.value}") from error
        raise


def can_be_built(cls: Any, base: type) -> bool:
    """Whether this is one of the classes that ``base`` stands for; a base that has subclasses is none itself."""
    below = inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls)
    return below and (cls is not base or not known_subclasses(base))


@cache
def _probe(hint: Any) -> ArgumentParser:
    probe = ArgumentParser(exit_on_error=False)
    probe.add_argument("--value", type=hint)
    return probe


def fits(hint: Any, value: Any) -> bool:
    """Whether jsonargparse accepts the value for an argument of this type, and a machine can represent it.

    jsonargparse accepts null for any type; here it must be part of the type.
    """
    if value is None:
        return any(member in (type(None), Any) for member in members_of(hint))
    if type(value) is hint:
        return _usable(value)
    try:
        taken = _probe(hint).parse_object({"value": plain_copy(value)})
    except Exception:
        return False
    return _usable(taken.value)


def _usable(value: Any) -> bool:
    """Whether numbers are finite, integers have at most 64 bits, and texts could stand in a file and name one."""
    if isinstance(value, list | tuple):
        return all(map(_usable, value))
    if isinstance(value, str):
        return "\0" not in value and not _LONE_SURROGATE.search(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not isinstance(value, float) or math.isfinite(value)


def valid_words(hint: Any) -> list[str]:
    """The words that are valid for a type: choices, class names, true, false and null."""
    words: list[str] = []
    for member in members_of(hint):
        if member is type(None):
            words.append("null")
        elif member is bool:
            words += ["true", "false"]
        elif get_origin(member) is Literal:
            words += map(str, get_args(member))
        elif (base := class_base(member)[0]) is not None:
            words += [cls.__name__ for cls in known_subclasses(base)]
    return words


def valid_in_words(hint: Any, value: Any = "") -> str:
    """What is valid for a type, in words, given a value that is not."""
    number = _as_float(value)
    plain = "text" if _usable(value) else "text without NUL and lone surrogates"
    kinds = {
        int: "an integer" if -(2**63) <= number < 2**63 else "an integer of at most 64 bits",
        float: "a number" if math.isfinite(number) else "a finite number",
        str: plain if isinstance(value, str | None) else "text in quotes",
    }
    parts: list[str] = []
    for member in members_of(hint):
        words, (base, is_list) = valid_words(member), class_base(member)
        items = get_args(member)
        if is_list:
            parts.append(f"a list of {', '.join(words)}")
        elif get_origin(member) in (list, tuple):
            count = "" if Ellipsis in items or get_origin(member) is list else f"{len(items)} "
            parts.append(f"a list of {count}{_PLURAL.get(items[0], 'values')}")
        elif base is not None:
            parts += [*words, f"the path of another {base.__name__}"]
        else:
            parts += words or [str(kinds.get(member) or getattr(member, "__name__", "a value"))]
    return either(parts)


def _as_float(value: Any) -> float:
    """The number that a value is or spells; 0 for what is none."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return 0.0


def either(words: Iterable[str]) -> str:
    words = list(words)
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)


def closest(word: str, choices: Mapping[str, str]) -> str:
    """What the choice nearest to the word stands for, or ""."""
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return choices[found[0]] if found else ""


def shown(value: Any) -> str:
    try:
        text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def sentence(text: str, near: str = "") -> UserError:
    """The text as one line; ``near`` ends it, else a full stop does."""
    text = " ".join(text.split())
    return UserError(text + near if near else text if text.endswith(".") else f"{text}.")
