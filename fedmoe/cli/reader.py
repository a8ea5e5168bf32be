"""Goes through the settings of a command in the order in which they apply, and names the first mistake.

jsonargparse decides what is valid, but answers in its own terms and without the line of a file. Here, file, line, key,
class and value are known. Which keys and classes there are follows from the types of the settings alone, and whether a
value fits its type is left to jsonargparse, which also gets what was read, as one object. Two things that it accepts
silently are refused: a key given twice in a YAML file, and null for a setting that cannot be null.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

from fedmoe.cli import values
from fedmoe.cli.values import REQUIRED, Setting, Text, class_base, closest, either, fits, sentence, settings_of, shown
from fedmoe.cli.yaml_files import Key, load_file, loaded
from fedmoe.errors import UserError, did_you_mean

_NOTHING = object()  # the value of an option without one
_SPEC = {"class_path", "init_args"}  # how jsonargparse writes a class with its settings


@dataclass
class _Choice:
    """The class that a key holds and the name it was given by, the base it must have, and its settings."""

    name: str
    owner: type
    base: type
    given: dict[str, Any] = field(default_factory=dict)


class Reader:
    """Reads one command line and the files that it names.

    The methods speak of a setting by ``key``, which holds a class ("" for the command itself), and its ``name`` among
    the settings of that class; the settings of a group have dotted names.

    Args:
        command: its name.
        options: its settings by dotted name.
        positionals: its settings without name, in their order; the last one may be a list, of one or more tokens.
        takes_files: whether it has the option ``--config``.
    """

    def __init__(
        self, command: str, options: Mapping[str, Setting], positionals: Mapping[str, Setting], takes_files: bool
    ) -> None:
        self.command, self.options, self.takes_files = command, options, takes_files
        self.expected = list(positionals.items())
        self.rest: list[str] = []  # of the command line
        self.given: dict[str, Any] = {}  # the command's own settings
        self.chosen: dict[str, _Choice] = {}
        self.lengths: dict[str, int] = {}  # of lists of classes
        self.file: Path | None = None
        self.where = ""  # file and line, as the sentence begins
        self.in_python = False  # whether what is read are settings of a Python program
        self.notes: list[str] = []

    def read(self, args: Sequence[str], settings: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The settings that were given, nested as in a file; None where help or the settings are to be printed.

        ``settings`` come after the arguments; what is said about them has no dashes, as it has none about a file.

        ``notes`` then has one line for each class whose settings were dropped.

        Raises:
            UserError: the first mistake.
        """
        self.rest = list(args)
        while self.rest:
            token = self.rest.pop(0)
            if token.partition("=")[0] in ("-h", "--help"):
                return None
            if _is_option(token):
                self._option(*token.partition("="))
                if token.partition("=")[0].endswith(".help"):
                    return None
            else:
                self._positional(token)
        self.in_python = settings is not None
        self._mapping("", "", settings or {})
        for name, setting in self.expected:
            if name not in self.given:
                raise sentence(f"The command {self.command} needs {name} ({setting.help}); none is given.")
        for key, choice in self.chosen.items():
            for name, setting in settings_of(choice.owner).items():
                if setting.default is REQUIRED and name not in choice.given:
                    needed = values.valid_in_words(setting.hint)
                    raise sentence(f"{key}.{name} is not set; {choice.owner.__name__} needs {needed}.")
        return None if any(arg.partition("=")[0] == "--print_config" for arg in args) else self._nested("")

    def _nested(self, key: str) -> dict[str, Any]:
        """The settings that were given for a key, with classes as jsonargparse writes them."""
        nested: dict[str, Any] = {}
        for name, value in self._given(key).items():
            full, (*groups, last), inner = _full(key, name), name.split("."), nested
            for group in groups:
                inner = inner.setdefault(group, {})
            if full in self.lengths:
                inner[last] = [self._class_with_settings(f"{full}[{i}]") for i in range(self.lengths[full])]
            elif full in self.chosen:
                inner[last] = self._class_with_settings(full)
            else:
                inner[last] = values.plain_copy(value)
        return nested

    def _class_with_settings(self, key: str) -> dict[str, Any]:
        return {"class_path": self.chosen[key].name, "init_args": self._nested(key)}

    def _given(self, key: str) -> dict[str, Any]:
        return self.chosen[key].given if key else self.given

    def _option(self, option: str, equals: str, text: str) -> None:
        if option == "--print_config":
            return
        value: Any = Text(text)
        if not equals:
            value = Text(self.rest.pop(0)) if self.rest and not _is_option(self.rest[0]) else _NOTHING
        if option == "--config" and self.takes_files:
            self._config(value)
        elif option.startswith("--"):
            self._setting("", option[2:], value)
        else:
            raise sentence(f"{option} is not a known option", _suggest(self._near(option[1:]), "--"))

    def _positional(self, token: str) -> None:
        if not self.expected:
            name, equals, text = token.partition("=")
            near = self._near(name) if equals else []
            end = _suggest([f"{known}={text}" for known in near], "--")
            raise sentence(f"{token!r} is not expected; settings are written --key=value", end)
        name, setting = self.expected[0]
        is_list = get_origin(setting.hint) is list
        hint = get_args(setting.hint)[0] if is_list else setting.hint
        if not fits(hint, token):
            raise self._wrong(name, token, hint)
        if is_list:
            self.given.setdefault(name, []).append(token)
        else:
            self.given[name] = token
            self.expected.pop(0)

    def _config(self, value: Any) -> None:
        if value is _NOTHING or not value:
            raise sentence("--config needs a value; valid is a YAML file.")
        inline = loaded(value)  # jsonargparse accepts settings in place of a file too
        if isinstance(inline, Mapping):
            self._mapping("", "", inline)
        else:
            self._read_file(Path(value).expanduser(), "", "")

    def _read_file(self, path: Path, key: str, name: str) -> None:
        before, self.file = (self.file, self.where), path
        self._mapping(key, name, load_file(path))
        self.file, self.where = before

    def _mapping(self, key: str, name: str, settings: Mapping[Any, Any]) -> None:
        """Settings below ``name``, each with its line."""
        for inner, value in settings.items():
            self._at(inner)
            if not isinstance(inner, str):
                raise sentence(f"{self.file or '--config'} has the key {shown(inner)}; valid is the name of a setting.")
            self._setting(key, f"{name}.{inner}" if name else inner, value)

    def _at(self, key: Any) -> None:
        if self.file is not None and isinstance(key, Key):
            self.where = f"{self.file}, line {key.line}: "

    def _setting(self, key: str, name: str, value: Any) -> None:
        """One setting; the name may lead on to a setting of the class that it holds."""
        append, name = name.endswith("+"), name.removesuffix("+")
        settings, parts = self._settings(key), name.split(".")
        head = next((h for n in range(len(parts), 0, -1) if (h := ".".join(parts[:n])) in settings), None)
        if head is None and name and _below(name, settings):
            self._group(key, name, value)
            return
        full, rest = _full(key, head or ""), name[len(head or "") + 1 :]
        base, is_list = class_base(settings[head].hint) if head else (None, False)
        if head is None or (rest and base is None):
            raise self._unknown(key, name)
        hint = settings[head].hint
        if value is _NOTHING and rest in ("", "class_path"):
            raise sentence(f"--{_full(key, name)} needs a value; valid is {values.valid_in_words(hint)}.")
        if base is None:
            if not fits(hint, value):
                raise self._wrong(full, value, hint)
        elif rest == "help":
            if value is not _NOTHING:
                self._choose(full, base, value)
        elif rest:
            if is_list and not self.lengths.get(full):
                raise self._mistake(f"{full}.{rest} belongs to no class; {full} must be given before it")
            holder = f"{full}[{self.lengths[full] - 1}]" if is_list else full
            self._class(holder, base, {rest.removeprefix("init_args."): value})
        elif (value := loaded(value)) is None and fits(hint, None):
            self._forget(full)
        elif is_list and (append or isinstance(value, list)):
            self._list(full, base, value if isinstance(value, list) else [value], append)
        elif is_list:
            raise self._wrong(full, value, hint)
        else:
            self._class(full, base, value)
        if not rest or head not in self._given(key):
            self._given(key)[head] = value

    def _settings(self, key: str) -> Mapping[str, Setting]:
        return settings_of(self.chosen[key].owner) if key else self.options

    def _group(self, key: str, name: str, value: Any) -> None:
        value = loaded(value)
        path = (self.file.parent if self.file else Path()) / value if isinstance(value, str) else None
        if isinstance(value, Mapping):
            self._mapping(key, name, value)
        elif path is not None and path.is_file():
            self._read_file(path, key, name)
        else:
            is_what = "has no value" if value is _NOTHING else f"is {shown(value)}"
            valid = either(_below(name, self._settings(key)))
            raise self._mistake(f"{_full(key, name)} {is_what}; valid is a mapping of its settings: {valid}")

    def _list(self, key: str, base: type, items: list[Any], append: bool) -> None:
        if not append and len(items) != self.lengths.get(key):  # lists of one length are merged item by item
            self._forget(key)
        start, where = self.lengths.get(key, 0) if append else 0, self.where
        for i, item in enumerate(items, start):
            self.where = where  # items that are plain names have no line of their own
            self._class(f"{key}[{i}]", base, item)
        self.lengths[key] = start + len(items)

    def _class(self, key: str, base: type, value: Any) -> None:
        """A class by its name, or a mapping of class_path and init_args, or of arguments alone."""
        if not isinstance(value, Mapping):
            self._choose(key, base, value)
            return
        settings: Any = value
        if "class_path" in value:
            self._at(next(name for name in value if name == "class_path"))
            self._choose(key, base, value["class_path"])
            for name in value.keys() - _SPEC:
                self._at(name)
                near = did_you_mean(name, ["init_args"]) or f"; did you mean '{key}.init_args.{name}'?"
                raise self._mistake(f"{key}.{name} is not known beside class_path; valid is init_args", near)
        if value.keys() & _SPEC:
            settings = loaded(value.get("init_args", {}))
        if not isinstance(settings, Mapping):
            raise self._mistake(f"{key}.init_args is {shown(settings)}; valid is a mapping of settings")
        if key not in self.chosen:
            raise self._mistake(f"{key} has no class_path; valid is {values.valid_in_words(base)}")
        self._mapping(key, "", settings)

    def _choose(self, key: str, base: type, name: Any) -> None:
        """Take the class of this name for the key, and note which settings of the former one it does not have."""
        owner = values.find_class(base, name)
        if owner is None:
            raise self._wrong(key, name, base, ", which is not found" if "." in str(name) else "")
        if not values.can_be_built(owner, base):
            raise self._wrong(key, name, base, f", which is no {base.__name__} to build")
        old = self.chosen.get(key, _Choice(name, owner, base))
        if old.owner is not owner:
            self._forget(key)
        settings = settings_of(owner)
        kept = {n: v for n, v in old.given.items() if n in settings and fits(settings[n].hint, v)}
        self.chosen[key] = _Choice(str(name), owner, base, kept)
        if dropped := ", ".join(f"{n}={v}" for n, v in old.given.items() if n not in kept):
            lost = f"the settings of {old.owner.__name__} ({dropped}) no longer apply"
            self.notes.append(f"{key} is {owner.__name__} now; {lost}.")

    def _forget(self, key: str) -> None:
        """The classes chosen for the key and below it."""
        self.chosen = {k: v for k, v in self.chosen.items() if k != key and not k.startswith((f"{key}.", f"{key}["))}
        self.lengths.pop(key, None)

    def _mistake(self, text: str, near: str = "") -> UserError:
        return sentence(self.where + text, near)

    def _wrong(self, key: str, value: Any, hint: Any, why: str = "") -> UserError:
        words = values.valid_words(hint)
        near = did_you_mean(value, words) if isinstance(value, str) and value not in words else ""
        return self._mistake(f"{key} is {shown(value)}{why}; valid is {values.valid_in_words(hint, value)}", near)

    def _unknown(self, key: str, name: str) -> UserError:
        dashes = "" if self.file or self.in_python or "[" in key else "--"
        choice = self.chosen.get(key)
        what = f"setting of {choice.owner.__name__}" if choice else f"known {'option' if dashes else 'setting'}"
        text = f"{dashes}{_full(key, name)} is not a {what}"
        others = [cls for cls in values.known_subclasses(choice.base) if name in settings_of(cls)] if choice else []
        if self.file and name == "config":
            return self._mistake("config belongs on the command line; files do not include each other")
        for token, following in pairwise([*self.rest, ""]):
            option, _, path = token.partition("=")
            path = path or following
            if choice and option == f"--{key}" and _has(choice.base, path, name):
                return self._mistake(f"{text}; {option}={path} must stand before it")
        if others:
            names = either(cls.__name__ for cls in others)
            return self._mistake(f"{text}; {names} has it and must be chosen first")
        siblings = dict.fromkeys(n.partition(".")[0] for n in _below(name.rpartition(".")[0], self._settings(key)))
        valid = f"; valid is {either(siblings)}" if siblings else "; there is none"
        near = _suggest(self._near(_full(key, name)), dashes)
        return self._mistake(text if near else text + valid, near)

    def _near(self, name: str) -> list[str]:
        """The known names nearest to an unknown one."""
        names = [*self.options, *(f"{key}.{n}" for key in self.chosen for n in self._settings(key))]
        names += {known.rpartition(".")[0] for known in names} - {"", *names}
        parent, _, leaf = name.rpartition(".")
        leaves = {known.rpartition(".")[2]: known for known in reversed(names)}
        beside = {known.rpartition(".")[2]: known for known in names if known.rpartition(".")[0] == parent}
        among = beside if parent and beside else {known: known for known in names if known != parent}
        if leaf in leaves:
            return [leaves[leaf]]
        if found := [known for known in among.values() if leaf in known.rpartition(".")[2].split("_")]:
            return found  # lr: prompt_lr and gating_lr
        near = closest(leaf, beside) or closest(name, {} if among is beside else among) or closest(leaf, leaves)
        return [near] if near else []


def _has(base: type, path: str, name: str) -> bool:
    """Whether the class that a short name or a path stands for has the setting; not where there is no such class."""
    with contextlib.suppress(UserError):
        owner = values.find_class(base, path)
        return values.can_be_built(owner, base) and name in settings_of(owner)
    return False


def _full(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _below(name: str, settings: Mapping[str, Setting]) -> list[str]:
    """Names of the settings in a group, without the group's; all of them for ""."""
    start = f"{name}." if name else ""
    return [known.removeprefix(start) for known in settings if known.startswith(start)]


def _is_option(token: str) -> bool:
    """As argparse sees it: a dash begins an option, but not a negative number."""
    return token.startswith("-") and not re.fullmatch(r"-|-\d+|-\d*\.\d+", token)


def _suggest(near: Sequence[str], dashes: str) -> str:
    return f"; did you mean {either(repr(dashes + known) for known in near)}?" if near else ""
