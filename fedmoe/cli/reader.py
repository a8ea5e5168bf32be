"""Goes through the settings of a command in the order in which they apply, and names the first mistake.

jsonargparse decides what is valid, but answers in its own terms and without the line of a file. Here, file, line, key,
class and value are known. Which keys and classes there are follows from the types of the settings alone, and whether a
value fits its type is left to jsonargparse, so the two cannot disagree. Two things that jsonargparse accepts silently
are refused: a key given twice in a YAML file, and null for a setting that cannot be null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmoe.cli.values import (
    REQUIRED,
    Setting,
    Text,
    can_be_built,
    class_base,
    closest,
    either,
    find_class,
    fits,
    known_subclasses,
    sentence,
    settings_of,
    shown,
    valid_in_words,
    valid_words,
)
from fedmoe.cli.yaml_files import Key, load_file, loaded
from fedmoe.errors import UserError, did_you_mean

_NOTHING = object()  # the value of an option without one
_SPEC = {"class_path", "init_args"}  # how jsonargparse writes a class with its settings


@dataclass
class _Choice:
    """The class that a key holds, the base it must have, and those of its settings that were given."""

    owner: type
    base: type
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scope:
    """The settings of the command, or of the class that ``key`` holds."""

    settings: Mapping[str, Setting]
    key: str = ""
    owner: type | None = None

    def full(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def below(self, name: str) -> list[str]:
        """Names of the settings in a group, without the group's; all of them for ""."""
        start = f"{name}." if name else ""
        return [known.removeprefix(start) for known in self.settings if known.startswith(start)]


class Reader:
    """Reads one command line and the files that it names.

    Args:
        command: its name.
        options: its settings by dotted name.
        positionals: type and help of each by name.
    """

    def __init__(
        self, command: str, options: Mapping[str, Setting], positionals: Mapping[str, tuple[Any, str]]
    ) -> None:
        self.command, self.top = command, _Scope(options)
        self.expected = list(positionals.items())
        self.rest: list[str] = []  # of the command line
        self.chosen: dict[str, _Choice] = {}
        self.lengths: dict[str, int] = {}  # of lists of classes
        self.file: Path | None = None
        self.where = ""  # file and line, as the sentence begins
        self.notes: list[str] = []

    def read(self, args: Sequence[str]) -> list[str]:
        """One line for each class whose settings were dropped.

        Raises:
            UserError: the first mistake.
        """
        self.rest = list(args)
        while self.rest:
            token = self.rest.pop(0)
            if _is_option(token):
                self._option(*token.partition("="))
            else:
                self._positional(token)
        for name, (_, about) in self.expected[:1]:
            raise sentence(f"The command {self.command} needs {name} ({about}); none is given.")
        for key, choice in self.chosen.items():
            for name, setting in settings_of(choice.owner).items():
                if setting.default is REQUIRED and name not in choice.given:
                    needed = valid_in_words(setting.hint)
                    raise sentence(f"{key}.{name} is not set; {choice.owner.__name__} needs {needed}.")
        return self.notes

    def _option(self, option: str, equals: str, text: str) -> None:
        if option == "--print_config":
            return
        value: Any = Text(text)
        if not equals:
            value = Text(self.rest.pop(0)) if self.rest and not _is_option(self.rest[0]) else _NOTHING
        if option == "--config" and "config" not in self.top.settings:
            self._config(value)
        elif option.startswith("--"):
            self._setting(self.top, option[2:], value)
        else:
            raise sentence(f"{option} is not a known option", _suggest(self._near(self.top, option[1:]), "--"))

    def _positional(self, token: str) -> None:
        if not self.expected:
            name, equals, text = token.partition("=")
            near = self._near(self.top, name) if equals else []
            end = _suggest([f"{known}={text}" for known in near], "--")
            raise sentence(f"{token!r} is not expected; settings are written --key=value", end)
        name, (hint, _) = self.expected.pop(0)
        if not fits(hint, Text(token)):
            raise self._wrong(name, token, hint)

    def _config(self, value: Any) -> None:
        if value is _NOTHING or not value:
            raise sentence("--config needs a value; valid is a YAML file.")
        inline = loaded(value)  # jsonargparse accepts settings in place of a file too
        if isinstance(inline, Mapping):
            self._mapping(self.top, "", inline)
        else:
            self._read_file(Path(value).expanduser(), self.top, "")

    def _read_file(self, path: Path, scope: _Scope, name: str) -> None:
        before, self.file = (self.file, self.where), path
        self._mapping(scope, name, load_file(path))
        self.file, self.where = before

    def _mapping(self, scope: _Scope, name: str, settings: Mapping[Any, Any]) -> None:
        """Settings below ``name``, each with its line."""
        for key, value in settings.items():
            self._at(key)
            if not isinstance(key, str):
                raise sentence(f"{self.file or '--config'} has the key {shown(key)}; valid is the name of a setting.")
            self._setting(scope, f"{name}.{key}" if name else key, value)

    def _at(self, key: Any) -> None:
        if self.file is not None and isinstance(key, Key):
            self.where = f"{self.file}, line {key.line}: "

    def _setting(self, scope: _Scope, name: str, value: Any) -> None:
        """One setting by its name in the scope; the name may lead into a class's own settings."""
        append, name = name.endswith("+"), name.removesuffix("+")
        parts = name.split(".")
        heads = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        head = next((head for head in heads if head in scope.settings), None)
        if head is None:
            if not (name and scope.below(name)):
                raise self._unknown(scope, name)
            self._group(scope, name, value)
            return
        key, hint, rest = scope.full(head), scope.settings[head].hint, name[len(head) + 1 :]
        base, is_list = class_base(hint)
        if rest and base is None:
            raise self._unknown(scope, name)
        if value is _NOTHING and rest in ("", "class_path"):
            raise sentence(f"--{scope.full(name)} needs a value; valid is {valid_in_words(hint)}.")
        if base is None:
            if not fits(hint, value):
                raise self._wrong(key, value, hint)
        elif rest:
            self._below(key, base, is_list, scope.settings[head], rest, value)
        else:
            self._class_or_list(key, scope.settings[head], loaded(value), append)
        if scope.owner is not None and not rest:
            self.chosen[scope.key].given[head] = value

    def _group(self, scope: _Scope, name: str, value: Any) -> None:
        value, key = loaded(value), scope.full(name)
        path = (self.file.parent if self.file else Path()) / value if isinstance(value, str) else None
        if isinstance(value, Mapping):
            self._mapping(scope, name, value)
        elif path is not None and path.is_file():
            self._read_file(path, scope, name)
        else:
            is_what = "has no value" if value is _NOTHING else f"is {shown(value)}"
            raise self._mistake(f"{key} {is_what}; valid is a mapping of its settings: {either(scope.below(name))}")

    def _below(self, key: str, base: type, is_list: bool, setting: Setting, rest: str, value: Any) -> None:
        """A setting of the class that the key holds; of a list, of its last class."""
        if is_list:
            if not self.lengths.get(key):
                raise self._mistake(f"{key}.{rest} belongs to no class; {key} must be given before it")
            key = f"{key}[{self.lengths[key] - 1}]"
        self._class(key, base, None if is_list else _default(setting), {rest.removeprefix("init_args."): value})

    def _class_or_list(self, key: str, setting: Setting, value: Any, append: bool) -> None:
        base, is_list = class_base(setting.hint)
        assert base is not None
        if value is None and fits(setting.hint, None):
            self._forget(key)
        elif not is_list:
            self._class(key, base, _default(setting), value)
        elif isinstance(value, list) or append:
            items = value if isinstance(value, list) else [value]
            if not append and len(items) != self.lengths.get(key):  # lists of one length are merged item by item
                self._forget(key)
            start, where = self.lengths.get(key, 0) if append else 0, self.where
            for i, item in enumerate(items, start):
                self.where = where  # items that are plain names have no line of their own
                self._class(f"{key}[{i}]", base, None, item)
            self.lengths[key] = start + len(items)
        else:
            raise self._wrong(key, value, setting.hint)

    def _class(self, key: str, base: type, default: type | None, value: Any) -> None:
        """A class by its name, or a mapping of class_path and init_args, or of arguments alone."""
        if not isinstance(value, Mapping):
            self._choose(key, base, default, value)
            return
        settings: Any = value
        if "class_path" in value:
            self._at(next(name for name in value if name == "class_path"))
            self._choose(key, base, default, value["class_path"])
            for name in value.keys() - _SPEC:
                self._at(name)
                near = did_you_mean(name, ["init_args"]) or f"; did you mean '{key}.init_args.{name}'?"
                raise self._mistake(f"{key}.{name} is not known beside class_path; valid is init_args", near)
        if value.keys() & _SPEC:
            settings = loaded(value.get("init_args", {}))
        if not isinstance(settings, Mapping):
            raise self._mistake(f"{key}.init_args is {shown(settings)}; valid is a mapping of settings")
        if key not in self.chosen:
            if default is None:
                raise self._mistake(f"{key} has no class_path; valid is {valid_in_words(base)}")
            self.chosen[key] = _Choice(default, base)
        owner = self.chosen[key].owner
        self._mapping(_Scope(settings_of(owner), key, owner), "", settings)

    def _choose(self, key: str, base: type, default: type | None, name: Any) -> None:
        """Take the class of this name for the key, and note which settings of the former one it does not have."""
        owner = find_class(base, name)
        if owner is None:
            raise self._wrong(key, name, base, ", which is not found" if "." in str(name) else "")
        if not can_be_built(owner, base):
            raise self._wrong(key, name, base, f", which is no {base.__name__} to build")
        old = self.chosen.get(key) or _Choice(default or owner, base)
        if old.owner is owner:
            self.chosen[key] = old
            return
        self._forget(key)
        settings = settings_of(owner)
        kept = {n: v for n, v in old.given.items() if n in settings and fits(settings[n].hint, v)}
        self.chosen[key] = _Choice(owner, base, kept)
        dropped = ", ".join(f"{n}={v}" for n, v in old.given.items() if n not in kept)
        if dropped:
            lost = f"the settings of {old.owner.__name__} ({dropped}) no longer apply"
            self.notes.append(f"{key} is {owner.__name__} now; {lost}.")

    def _forget(self, key: str) -> None:
        """The classes chosen for the key and below it."""
        self.chosen = {k: v for k, v in self.chosen.items() if k != key and not k.startswith((f"{key}.", f"{key}["))}
        self.lengths.pop(key, None)

    def _mistake(self, text: str, near: str = "") -> UserError:
        return sentence(self.where + text, near)

    def _wrong(self, key: str, value: Any, hint: Any, why: str = "") -> UserError:
        words = valid_words(hint)
        near = did_you_mean(value, words) if isinstance(value, str) and value not in words else ""
        return self._mistake(f"{key} is {shown(value)}{why}; valid is {valid_in_words(hint, value)}", near)

    def _unknown(self, scope: _Scope, name: str) -> UserError:
        on_line = not self.file and "[" not in scope.key
        dashes = "--" if on_line else ""
        near = [scope.full(known) for known in self._near(scope, name)]
        siblings = list(dict.fromkeys(known.partition(".")[0] for known in scope.below(name.rpartition(".")[0])))
        end = f"; valid is {either(siblings)}." if siblings else "; there is none."
        if scope.owner is not None:
            text = f"is not a setting of {scope.owner.__name__}"
            others = [cls for cls in known_subclasses(self.chosen[scope.key].base) if name in settings_of(cls)]
            if others:
                near, end = [], f"; {either(cls.__name__ for cls in others)} has it and must be chosen first."
                later = [f"--{scope.key}={cls.__name__}" for cls in others]
                if found := [token for token in self.rest if token in later]:
                    end = f"; {found[0]} must stand before it."
        elif self.file and name == "config":
            text, near, end = "belongs on the command line", [], "; files do not include each other."
        else:
            text = f"is not a known {'setting' if self.file else 'option'}"
        return self._mistake(f"{dashes}{scope.full(name)} {text}", _suggest(near, dashes) or end)

    def _near(self, scope: _Scope, name: str) -> list[str]:
        """The known names nearest to an unknown one."""
        names = list(scope.settings)
        for key, setting in scope.settings.items():
            base, is_list = class_base(setting.hint)
            choice = self.chosen.get(scope.full(key))
            owner = choice.owner if choice else _default(setting)
            if base is not None and owner is not None and not is_list:
                names += [f"{key}.{argument}" for argument in settings_of(owner)]
        names += {known.rpartition(".")[0] for known in names} - {"", *names}
        parent, _, leaf = name.rpartition(".")
        leaves = {known.rpartition(".")[2]: known for known in reversed(names)}
        beside = {known.rpartition(".")[2]: known for known in names if known.rpartition(".")[0] == parent}
        whole = {known: known for known in names} if not (parent and beside) else {}
        if leaf in leaves:
            return [leaves[leaf]]
        among = beside.values() if parent and beside else names
        if found := [known for known in among if leaf in known.rpartition(".")[2].split("_")]:
            return found  # lr: prompt_lr and gating_lr
        near = closest(leaf, beside) or closest(name, whole) or closest(leaf, leaves)
        return [near] if near else []


def _default(setting: Setting) -> type | None:
    """The class that a setting holds by default."""
    base, _ = class_base(setting.hint)
    return type(setting.default) if base is not None and isinstance(setting.default, base) else None


def _is_option(token: str) -> bool:
    """As argparse sees it: a dash begins an option, but not a negative number."""
    return token.startswith("-") and not re.fullmatch(r"-|-\d+|-\d*\.\d+", token)


def _suggest(near: Sequence[str], dashes: str) -> str:
    return f"; did you mean {either(repr(dashes + known) for known in near)}?" if near else ""
