"""The parser of one command: jsonargparse's, whose answer to every mistake is one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from fedmoe.cli import shipped
from fedmoe.cli.process import program
from fedmoe.cli.reader import Reader
from fedmoe.cli.values import REQUIRED, Setting, is_group, sentence, shown, with_groups
from fedmoe.errors import UserError, printable

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the settings' docstrings are their help


class CommandParser:
    """Parses the arguments of a command.

    ``Reader`` reads every setting, and stops at the first mistake; jsonargparse's parser, which takes longer to build,
    is built when there is none, for what was read, and for help. Options are never abbreviated. Where a later setting
    chooses another class, so that settings of the former one no longer apply, one line on stderr says so.

    Args:
        name: of the command, as it is typed.
        about: its help.
        options: its settings by name; those of a group have the group's name before theirs.
        positionals: its settings without name, in their order.
        preset: arguments that precede the user's, for a command that takes files of settings. Default classes belong
            here: jsonargparse would carry the settings of a default in the parser over to the class that the user
            chooses.
    """

    def __init__(
        self,
        name: str,
        about: str,
        options: Mapping[str, Setting],
        positionals: Mapping[str, Setting],
        preset: Sequence[str] = (),
    ) -> None:
        self.name, self.about, self.preset = name, about, preset
        self.declared, self.positionals = options, positionals
        self.options = with_groups(options)

    @cached_property
    def jsonargparse(self) -> ArgumentParser:
        prog = f"{program()} {self.name}".strip()
        parser = ArgumentParser(prog=prog, description=self.about, exit_on_error=False, allow_abbrev=False)
        if self.preset:
            files = (
                "YAML file of settings, or one that `configs` lists (fedmoe:quickstart); several may follow each other"
            )
            parser.add_argument("--config", action="config", help=files)
        for name, setting in self.positionals.items():
            if get_origin(setting.hint) is list:
                parser.add_argument(name, type=get_args(setting.hint)[0], nargs="+", help=setting.help)
            else:
                parser.add_argument(name, type=setting.hint, help=setting.help)
        for name, setting in self.declared.items():
            if is_group(setting.hint):
                parser.add_class_arguments(setting.hint, name)
            else:
                default = {} if setting.default is REQUIRED else {"default": setting.default}
                parser.add_argument(f"--{name}", type=setting.hint, help=setting.help, **default)
        return parser

    def parse_args(self, args: Sequence[str], settings: Mapping[str, Any] | None = None) -> Namespace:
        """The settings that the arguments make, and after them ``settings``, nested as in a file.

        Raises:
            UserError: the first setting that is wrong.
        """
        args = [*self.preset, *(shipped.resolved(args) if self.preset else args)]
        reader = Reader(self.name, self.options, self.positionals, bool(self.preset))
        read = reader.read(args, settings)
        try:
            parsed = self.jsonargparse.parse_args(args) if read is None else self.jsonargparse.parse_object(read)
        except ArgumentError as error:  # what the reader let pass: in jsonargparse's words
            raise sentence(str(error)) from error
        for value in vars(parsed).values():
            if isinstance(value, Namespace) and "class_path" in value and "init_args" not in value:
                value.init_args = Namespace()  # of a class without settings, so that it is written alike everywhere
        for note in reader.notes:
            print(printable(note), file=sys.stderr)
        return parsed

    def instantiate(self, settings: Namespace) -> Namespace:
        """The settings as objects.

        Raises:
            UserError: a class refuses its settings.
        """

        def build(cls: type, *args: Any, **given: Any) -> Any:
            try:
                return cls(*args, **given)
            except (TypeError, ValueError) as error:
                values = ", ".join(f"{name}={shown(value)}" for name, value in given.items())
                raise sentence(
                    f"{_key_of(cls, settings)} cannot be built: {cls.__name__}({values}) says: {error}"
                ) from error

        with _user_error():
            return self.jsonargparse.instantiate(settings, instantiators=[(build, object, True)])

    def plain(self, settings: Namespace) -> dict[str, Any]:
        """The settings as nested plain values, defaults included."""
        return json.loads(self.jsonargparse.dump(settings, format="json", skip_unset=False))  # null is a setting, too


@contextmanager
def _user_error() -> Iterator[None]:
    """Raise the ``UserError`` that another exception wraps; one that wraps none passes."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or cause is error:
            raise
        raise cause from cause.__cause__


def _key_of(cls: type, settings: Namespace) -> str:
    """The key whose value is of this class, such as ``partition`` or ``methods[1]``."""
    for key, value in vars(settings).items():
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            path = item.get("class_path") if isinstance(item, Namespace) else None
            if isinstance(path, str) and path.rpartition(".")[2] == cls.__name__:
                return f"{key}[{i}]" if isinstance(value, list) else key
    return "A setting"
