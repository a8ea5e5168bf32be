"""Types of settings in words: which classes and values an argument takes, and what is nearest to a wrong one."""

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
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint  # the action of a typed argument; has no public name

from fedmoe.errors import UserError

# Bytes of file names that are not UTF-8 are told by 0xDC80 to 0xDCFF (PEP 383), and may be named.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class Text(str):
    """A value as it stands on the command line."""


def arguments_of(parser: ArgumentParser) -> dict[str, ActionTypeHint]:
    return {a.dest: a for a in parser._actions if isinstance(a, ActionTypeHint) and a.option_strings}


def hint_of(action: ActionTypeHint) -> Any:
    return action._typehint


def default_class(action: ActionTypeHint) -> Any:
    """The class an argument holds by default, or None."""
    return pydoc.locate(action.default["class_path"]) if isinstance(action.default, Mapping | Namespace) else None


def members_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def class_base(hint: Any) -> tuple[type | None, bool]:
    """The base of the classes a hint stands for, and whether for a list of them; no base for plain values."""
    base, *others = [member for member in members_of(hint) if member is not type(None)] or [None]
    is_list = get_origin(base) in (list, Sequence)
    base = get_args(base)[0] if is_list else base
    is_class = not others and inspect.isclass(base) and ActionTypeHint.is_subclass_typehint(base)
    return (base, is_list) if is_class else (None, False)


def known_subclasses(base: type) -> list[type]:
    """The classes a short name may stand for: all below ``base`` that can be built and are not private."""
    found: list[type] = []
    cls: type
    for cls in base.__subclasses__():
        if not (inspect.isabstract(cls) or cls.__name__.startswith("_") or "<locals>" in cls.__qualname__):
            found.append(cls)
        found += known_subclasses(cls)
    return found


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


def fits(hint: Any, value: Any) -> bool:
    """Whether jsonargparse takes the value for an argument of this type, and a machine can.

    jsonargparse lets null pass for any type, we do not.
    """
    if value is None:
        return any(member in (type(None), Any) for member in members_of(hint))
    if type(value) is hint:
        return _usable(value)
    probe = ArgumentParser(exit_on_error=False)
    probe.add_argument("--value", type=hint)
    try:
        if isinstance(value, Text):
            taken = probe.parse_args([f"--value={value}"])
        else:
            taken = probe.parse_object({"value": copy.deepcopy(value)})
    except Exception:
        return False
    return _usable(taken.value)


def _usable(value: Any) -> bool:
    """Whether a machine can: numbers are finite, integers of 64 bits, and texts could stand in a file and name one."""
    if isinstance(value, list | tuple):
        return all(map(_usable, value))
    if isinstance(value, str):
        return "\0" not in value and not _LONE_SURROGATE.search(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not isinstance(value, float) or math.isfinite(value)


def valid_words(hint: Any) -> list[str]:
    """The words that are valid for a hint: choices, class names, true, false and null."""
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
    """What is valid for a hint, in words, given the value that is not."""
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
        if is_list:
            parts.append(f"a list of {', '.join(words)}")
        elif get_origin(member) is tuple:
            parts.append(f"a list of {len(get_args(member))} numbers")
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


def is_option(token: str) -> bool:
    """As argparse sees it: a dash begins an option, but not a negative number."""
    return token.startswith("-") and not re.fullmatch(r"-|-\d+|-\d*\.\d+", token)


def sentence(text: str, near: str = "") -> UserError:
    """The text as one line; ``near`` ends it, else a full stop does."""
    text = " ".join(text.split())
    return UserError(text + near if near else text if text.endswith(".") else f"{text}.")
