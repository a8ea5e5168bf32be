"""Mistakes on the command line or in a YAML file: each is answered by one sentence.

jsonargparse decides what is valid, but says so in its own terms. So ``_Reader`` first goes through the settings in the
order in which they apply and stops at the first wrong one: there it knows file, line, key, class and value. Keys,
classes and types come from the parser's own arguments, and whether a value fits its type is asked of jsonargparse, so
the two cannot disagree. What only jsonargparse refuses is flattened to one line. Two things that it takes silently are
refused here: a key given twice in a YAML file, and null for a setting that cannot be null.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint  # the action of a typed argument; has no public name

from fedmoe.cli.values import (
    Text,
    arguments_of,
    class_base,
    closest,
    default_class,
    either,
    find_class,
    fits,
    hint_of,
    is_option,
    known_subclasses,
    sentence,
    shown,
    valid_in_words,
    valid_words,
)
from fedmoe.cli.yaml_files import Key, load_file, loaded
from fedmoe.errors import UserError, did_you_mean

_NOTHING = object()  # the value of an option without one
_SPEC = {"class_path", "init_args"}  # how jsonargparse writes a class with its settings


class SentenceParser(ArgumentParser):
    """A parser that raises ``UserError`` where jsonargparse prints its usage and exits.

    Options are never abbreviated. Where a later setting chooses another class, so that settings of the former one no
    longer apply, one line on stderr says so.

    Attributes:
        preset: arguments that stand before the user's. Default classes belong here: jsonargparse would carry the
            settings of a default in the parser over to the class that the user chooses.
    """

    preset: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, **kwargs: Any
    ) -> Namespace:
        """As jsonargparse's, after every setting was read here.

        Raises:
            UserError: the first setting that is wrong.
        """
        if not self.exit_on_error:  # made by jsonargparse for a class; its caller handles errors
            return super().parse_args(args, namespace, **kwargs)
        args = [*self.preset, *(sys.argv[1:] if args is None else args)]
        notes = _Reader(self).read(args)
        parsed = super().parse_args(args, namespace, **kwargs)
        for note in notes:
            print(note, file=sys.stderr)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What jsonargparse refuses though the reader did not: its own words, in one line."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise sentence(message) from ex

    def instantiate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        """As jsonargparse's; a class whose constructor refuses its settings raises ``UserError``."""
        if not self.exit_on_error:
            return super().instantiate(namespace, *args, **kwargs)

        def build(cls: type, *cls_args: Any, **settings: Any) -> Any:
            try:
                return cls(*cls_args, **settings)
            except (TypeError, ValueError) as error:
                given = ", ".join(f"{name}={shown(value)}" for name, value in settings.items())
                raise sentence(
                    f"{_key_of(cls, namespace)} cannot be built: {cls.__name__}({given}) says: {error}"
                ) from error

        with user_error():
            return super().instantiate(namespace, *args, instantiators=[(build, object, True)], **kwargs)


@contextmanager
def user_error() -> Iterator[None]:
    """Raise the ``UserError`` that lies behind another exception; what has none behind it passes."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or cause is error:
            raise
        raise cause from cause.__cause__


@cache
def _class_arguments(owner: type) -> Mapping[str, ActionTypeHint]:
    parser = SentenceParser(exit_on_error=False)
    parser.add_class_arguments(owner)
    return arguments_of(parser)


@dataclass(frozen=True)
class _Scope:
    """The typed arguments of a parser, or of the class that a key holds, by name."""

    actions: Mapping[str, ActionTypeHint]
    prefix: str = ""
    owner: type | None = None

    @classmethod
    def of_class(cls, key: str, owner: type) -> _Scope:
        return cls(_class_arguments(owner), f"{key}.", owner)

    def within(self, name: str) -> list[str]:
        """Names below ``name``, without it; all of them below ""."""
        start = f"{name}." if name else ""
        return [known.removeprefix(start) for known in self.actions if known.startswith(start)]


@dataclass
class _Choice:
    """The class that a key holds, the base it must have, and those of its settings that were given."""

    owner: type
    base: type
    given: dict[str, Any] = field(default_factory=dict)


class _Reader:
    """Goes through the arguments of a command line and the files they name, up to the first mistake."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser
        self.top = _Scope(arguments_of(parser))
        self.chosen: dict[str, _Choice] = {}
        self.lengths: dict[str, int] = {}  # of lists of classes
        self.file: Path | None = None
        self.where = ""  # file and line, as the sentence begins
        self.notes: list[str] = []

    def read(self, args: list[str]) -> list[str]:
        """Raise ``UserError`` at the first mistake; else one line for each class whose settings were dropped."""
        if any(arg == "-h" or arg.partition("=")[0].endswith("help") for arg in args):
            return []
        commands = self.parser._subcommands_action
        if commands is not None:
            self._command(args[0] if args else "", list(commands.choices))
            return []
        self._command_line(args)
        for key, choice in self.chosen.items():
            for name, action in _Scope.of_class(key, choice.owner).actions.items():
                if action.required and name not in choice.given:
                    raise sentence(
                        f"{key}.{name} is not set; {choice.owner.__name__} needs {valid_in_words(hint_of(action))}."
                    )
        return self.notes

    def _command(self, first: str, commands: list[str]) -> None:
        if not first:
            raise sentence(f"No command is given; valid is {either(commands)}.")
        if first.startswith("-"):
            raise sentence(f"{first} stands before the command; the command comes first: {either(commands)}.")
        if first not in commands:
            raise sentence(f"{first!r} is not a command; valid is {either(commands)}", did_you_mean(first, commands))

    def _command_line(self, args: list[str]) -> None:
        expected = [action for action in self.parser._actions if not action.option_strings]
        rest = list(args)
        while rest:
            token = rest.pop(0)
            option, equals, text = token.partition("=")
            if not is_option(token):
                if not expected:
                    near = self._near(self.top, option) if equals else ""
                    raise sentence(
                        f"{token!r} is not expected; settings are written --key=value",
                        f"; did you mean '--{near}={text}'?" if near else "",
                    )
                positional = expected.pop(0)
                if isinstance(positional, ActionTypeHint) and not fits(hint_of(positional), Text(token)):
                    raise self._wrong(positional.dest, token, hint_of(positional))
                continue
            action = self.parser._option_string_actions.get(option)
            if option == self.parser._print_config or (action is not None and action.nargs == 0):
                continue
            value: Any = Text(text)
            if not equals:
                value = Text(rest.pop(0)) if rest and not is_option(rest[0]) else _NOTHING
            if isinstance(action, ActionConfigFile):
                self._config(value)
            elif option.startswith("--"):
                self._setting(self.top, option[2:], value)
            else:
                near = self._near(self.top, option[1:])
                raise sentence(f"{option} is not a known option", f"; did you mean '--{near}'?" if near else "")
        if expected:
            what = f"{expected[0].dest} ({expected[0].help})" if expected[0].help else expected[0].dest
            raise sentence(f"The command {self.parser.prog.split()[-1]} needs {what}; none is given.")

    def _config(self, value: Any) -> None:
        if value is _NOTHING or not value:
            raise sentence("--config needs a value; valid is a YAML file.")
        inline = loaded(value)  # jsonargparse takes settings in place of a file too
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
        """One setting by its name in the scope; the name may have dots."""
        append, name = name.endswith("+"), name.removesuffix("+")
        if name in scope.actions:
            self._value(scope.prefix + name, scope.actions[name], value, append)
            if scope.owner is not None:
                self.chosen[scope.prefix[:-1]].given[name] = value
        elif name and scope.within(name):
            self._group(scope, name, value)
        else:
            parts = name.split(".")
            heads = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
            head = next((h for h in heads if h in scope.actions and class_base(hint_of(scope.actions[h]))[0]), None)
            if head is None:
                raise self._unknown(scope, name)
            self._argument(scope.prefix + head, scope.actions[head], name[len(head) + 1 :], value)

    def _group(self, scope: _Scope, name: str, value: Any) -> None:
        value, key = loaded(value), scope.prefix + name
        path = (self.file.parent if self.file else Path()) / value if isinstance(value, str) else None
        if isinstance(value, Mapping):
            self._mapping(scope, name, value)
        elif path is not None and path.is_file():
            self._read_file(path, scope, name)
        else:
            is_what = "has no value" if value is _NOTHING else f"is {shown(value)}"
            raise self._mistake(f"{key} {is_what}; valid is a mapping of its settings: {either(scope.within(name))}")

    def _value(self, key: str, action: ActionTypeHint, value: Any, append: bool) -> None:
        hint = hint_of(action)
        base, is_list = class_base(hint)
        if value is _NOTHING:
            raise sentence(f"--{key} needs a value; valid is {valid_in_words(hint)}.")
        if base is None:
            if not fits(hint, value):
                raise self._wrong(key, value, hint)
            return
        value = loaded(value)
        if value is None and fits(hint, None):
            self._forget(key)
        elif not is_list:
            self._class(key, base, default_class(action), value)
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
            raise self._wrong(key, value, hint)

    def _forget(self, key: str) -> None:
        """The classes chosen for the key and below it."""
        self.chosen = {k: v for k, v in self.chosen.items() if k != key and not k.startswith((f"{key}.", f"{key}["))}
        self.lengths.pop(key, None)

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
            settings = value.get("init_args", {})
        if not isinstance(settings, Mapping):
            raise self._mistake(f"{key}.init_args is {shown(settings)}; valid is a mapping of settings")
        self._mapping(self._scope(key, base, default), "", settings)

    def _choose(self, key: str, base: type, default: type | None, name: Any) -> None:
        """Take the class of this name for the key, and note which settings of the former one it does not have."""
        owner = find_class(base, name)
        if owner is None:
            raise self._wrong(key, name, base, ", which is not found" if "." in str(name) else "")
        if not (inspect.isclass(owner) and issubclass(owner, base)) or inspect.isabstract(owner):
            raise self._wrong(key, name, base, f", which is no {base.__name__} to build")
        old = self.chosen.get(key) or _Choice(default or owner, base)
        if old.owner is owner:
            self.chosen[key] = old
            return
        self._forget(key)
        actions = _Scope.of_class(key, owner).actions
        kept = {n: v for n, v in old.given.items() if n in actions and fits(hint_of(actions[n]), v)}
        self.chosen[key] = _Choice(owner, base, kept)
        dropped = ", ".join(f"{n}={v}" for n, v in old.given.items() if n not in kept)
        if dropped:
            lost = f"the settings of {old.owner.__name__} ({dropped}) no longer apply"
            self.notes.append(str(sentence(f"{key} is {owner.__name__} now; {lost}.")))

    def _scope(self, key: str, base: type, default: type | None) -> _Scope:
        """The arguments of the class that the key holds."""
        if key not in self.chosen:
            if default is None and inspect.isabstract(base):
                raise self._mistake(f"{key} has no class_path; valid is {valid_in_words(base)}")
            self.chosen[key] = _Choice(default or base, base)
        return _Scope.of_class(key, self.chosen[key].owner)

    def _argument(self, key: str, action: ActionTypeHint, name: str, value: Any) -> None:
        """One argument of the class that the key holds; of a list, of its last class."""
        base, is_list = class_base(hint_of(action))
        assert base is not None
        if is_list:
            if not self.lengths.get(key):
                raise self._mistake(f"{key}.{name} belongs to no class; {key} must be given before it")
            key = f"{key}[{self.lengths[key] - 1}]"
        default = None if is_list else default_class(action)
        if name == "class_path":
            self._choose(key, base, default, value)
        else:
            self._setting(self._scope(key, base, default), name.removeprefix("init_args."), value)

    def _mistake(self, text: str, near: str = "") -> UserError:
        return sentence(self.where + text, near)

    def _wrong(self, key: str, value: Any, hint: Any, why: str = "") -> UserError:
        words = valid_words(hint)
        near = did_you_mean(value, words) if isinstance(value, str) and value not in words else ""
        return self._mistake(f"{key} is {shown(value)}{why}; valid is {valid_in_words(hint, value)}", near)

    def _unknown(self, scope: _Scope, name: str) -> UserError:
        dashes = "" if self.file or "[" in scope.prefix else "--"
        near = self._near(scope, name)
        siblings = list(dict.fromkeys(known.partition(".")[0] for known in scope.within(name.rpartition(".")[0])))
        valid = f"; valid is {either(siblings)}" if siblings else "; there is none"
        if scope.owner is not None:
            text = f"is not a setting of {scope.owner.__name__}"
            base = self.chosen[scope.prefix[:-1]].base
            others = [cls.__name__ for cls in known_subclasses(base) if name in _Scope.of_class("", cls).actions]
            if others:
                near, valid = "", f"; {either(others)} has it and must be chosen first"
        elif self.file and name == "config":
            text, near, valid = "belongs on the command line", "", "; files do not include each other"
        else:
            text = f"is not a known {'setting' if self.file else 'option'}"
        end = f"; did you mean '{dashes}{scope.prefix}{near}'?" if near else f"{valid}."
        return self._mistake(f"{dashes}{scope.prefix}{name} {text}", end)

    def _near(self, scope: _Scope, name: str) -> str:
        """The known name nearest to an unknown one, or ""."""
        names = list(scope.actions)
        for key, action in scope.actions.items():
            base, is_list = class_base(hint_of(action))
            choice = self.chosen.get(scope.prefix + key)
            owner = choice.owner if choice else default_class(action)
            if base is not None and owner is not None and not is_list:
                names += [f"{key}.{argument}" for argument in _Scope.of_class("", owner).actions]
        names += {known.rpartition(".")[0] for known in names} - {"", *names}
        parent, _, leaf = name.rpartition(".")
        leaves = {known.rpartition(".")[2]: known for known in reversed(names)}
        beside = {known.rpartition(".")[2]: known for known in names if known.rpartition(".")[0] == parent}
        whole = {known: known for known in names} if not (parent and beside) else {}
        return leaves.get(leaf) or closest(leaf, beside) or closest(name, whole) or closest(leaf, leaves)


def _key_of(cls: type, namespace: Namespace) -> str:
    """The key whose value is of this class, such as ``partition`` or ``methods[1]``."""
    for key, value in vars(namespace).items():
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            path = item.get("class_path") if isinstance(item, Namespace) else None
            if isinstance(path, str) and path.rpartition(".")[2] == cls.__name__:
                return f"{key}[{i}]" if isinstance(value, list) else key
    return "A setting"
