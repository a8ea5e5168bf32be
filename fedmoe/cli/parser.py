"""The parser of one command: jsonargparse's, whose answer to every mistake is one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from fedmoe.cli.reader import Reader
from fedmoe.cli.values import REQUIRED, Setting, sentence, settings_of, shown
from fedmoe.errors import UserError, printable

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the settings' docstrings are their help


class CommandParser:
    """Declares the options of a command and parses them.

    Every setting is first read by ``Reader``, which stops at the first mistake; jsonargparse's parser, which takes
    longer to build, is built when there is none, and for help. Options are never abbreviated. Where a later setting
    chooses another class, so that settings of the former one no longer apply, one line on stderr says so.

    Args:
        name: of the command, as it is typed.
        preset: arguments that precede the user's. Default classes belong here: jsonargparse would carry the settings
            of a default in the parser over to the class that the user chooses.
    """

    def __init__(self, name: str, description: str, preset: Sequence[str] = ()) -> None:
        self.name, self.preset = name, preset
        self.options: dict[str, Setting] = {}
        self.positionals: dict[str, tuple[Any, str]] = {}  # type and help by name
        self._calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._description = description

    def option(self, name: str, hint: Any, help: str, default: Any = REQUIRED) -> None:
        self.options[name] = Setting(hint, default)
        given = {} if default is REQUIRED else {"default": default}
        self._calls.append(("add_argument", (f"--{name}",), {"type": hint, "help": help, **given}))

    def group(self, name: str, cls: type) -> None:
        """The fields of a dataclass as options below ``name``."""
        self.options |= {f"{name}.{key}": setting for key, setting in settings_of(cls).items()}
        self._calls.append(("add_class_arguments", (cls, name), {}))

    def positional(self, name: str, hint: Any, help: str) -> None:
        self.positionals[name] = (hint, help)
        self._calls.append(("add_argument", (name,), {"type": hint, "help": help}))

    def config(self) -> None:
        """The option for files of settings, and the one that prints the result."""
        help = "YAML file of settings; several may follow each other"
        self._calls.append(("add_argument", ("--config",), {"action": "config", "help": help}))

    @cached_property
    def jsonargparse(self) -> ArgumentParser:
        parser = ArgumentParser(
            prog=f"python -m fedmoe.cli {self.name}".strip(),
            description=self._description,
            exit_on_error=False,
            allow_abbrev=False,
        )
        for method, args, kwargs in self._calls:
            getattr(parser, method)(*args, **kwargs)
        return parser

    def parse_args(self, args: Sequence[str]) -> Namespace:
        """The settings that the arguments make.

        Raises:
            UserError: the first setting that is wrong.
        """
        args = [*self.preset, *args]
        asks_for_help = any(
            arg == "-h" or (arg.startswith("--") and arg.partition("=")[0].endswith("help")) for arg in args
        )
        notes = [] if asks_for_help else Reader(self.name, self.options, self.positionals).read(args)
        try:
            parsed = self.jsonargparse.parse_args(args)
        except ArgumentError as error:  # what the reader let pass: in jsonargparse's words
            raise sentence(str(error)) from error
        for note in notes:
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

    def dump(self, settings: Namespace) -> str:
        """The settings as YAML, defaults included."""
        return self.jsonargparse.dump(settings, skip_unset=False)  # null is a setting, too


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
