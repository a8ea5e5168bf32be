"""What a shell offers at TAB: commands, settings, and the settings of the classes that the line and its files choose.

argcomplete speaks with the shell and reads the line; what there is to offer follows from the same tables as everything
else about settings, so that no parser of jsonargparse's has to be built, and nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any, TextIO, get_args, get_origin

from fedmoe.cli import levels, shipped
from fedmoe.cli.process import program
from fedmoe.cli.reader import Reader
from fedmoe.cli.settings import COMMANDS, build_parser
from fedmoe.cli.values import Setting, class_base, settings_of, valid_words
from fedmoe.display import LEVELS
from fedmoe.errors import UserError


def completion_script(shell: str) -> str:
    """What a shell has to evaluate in order to complete the script ``fedmoe``.

    Raises:
        UserError: argcomplete is not installed.
    """
    if importlib.util.find_spec("argcomplete") is None:
        raise UserError("completion needs argcomplete; install it with pip install 'fedmoe[completion]'.")
    import argcomplete

    return argcomplete.shellcode(["fedmoe"], shell=shell)


def complete(stream: TextIO | None = None) -> int:
    """Answer the shell, which has put the line into the environment; the exit code.

    Args:
        stream: where to write to; None: where argcomplete's script reads.
    """
    import argcomplete
    from argcomplete.lexers import split_line

    *_, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    code: list[int] = [0]
    argcomplete.CompletionFinder()(  # words: those before the one at the cursor, and how the program was called
        _parser(words[int(os.environ["_ARGCOMPLETE"]) :]),
        always_complete_options="long",
        exit_method=code.append,
        output_stream=stream,
    )
    return code[-1]


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """argparse's parser of the line; only the command that the words name has its settings."""
    parser = argparse.ArgumentParser(prog=program(), allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    with contextlib.suppress(UserError):
        _, words = levels.take_level(words)
    named = words[0] if words else ""
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.about, allow_abbrev=False)
        if name == named:
            _add_settings(one, name, words[1:])
    commands.add_parser("reproduce")
    return parser


def _add_settings(parser: argparse.ArgumentParser, command: str, words: Sequence[str]) -> None:
    known = build_parser(command)
    reader = Reader(command, known.options, known.positionals, bool(known.preset))
    with contextlib.suppress(UserError):  # so far the line may hold mistakes, and lack what it needs
        reader.read([*known.preset, *(shipped.resolved(words) if known.preset else words)])
    if known.preset:
        files: Any = parser.add_argument("--config", action="append", help="YAML file of settings")
        files.completer = _configurations
        parser.add_argument("--print_config", action="store_true")
    options: dict[str, Setting] = dict(known.options)
    for key, choice in reader.chosen.items():
        if "[" not in key:
            options |= {f"{key}.{name}": setting for name, setting in settings_of(choice.owner).items()}
    for name, setting in options.items():
        _add(parser, f"--{name}", setting, {"action": "append"})
        if class_base(setting.hint)[0] is not None:
            _add(parser, f"--{name}.help", setting, {"nargs": "?"})
    for name, setting in known.positionals.items():
        _add(parser, name, setting, {"nargs": "+"} if get_origin(setting.hint) is list else {})
    parser.add_argument(levels.QUIET, action="store_true")
    parser.add_argument(levels.OPTION, choices=LEVELS)


def _add(parser: argparse.ArgumentParser, name: str, setting: Setting, how: Mapping[str, Any]) -> None:
    hint = setting.hint
    base, is_list = class_base(hint)
    words = valid_words(get_args(hint)[0] if get_origin(hint) is list and base is None else hint)
    if is_list and base is not None:
        words = [*words, *valid_words(base)]
    argument: Any = parser.add_argument(name, help=setting.help.replace("%", "%%"), **how)
    if words:
        argument.completer = lambda prefix, **_: words


def _configurations(prefix: str, **_: Any) -> list[str]:
    from argcomplete.completers import FilesCompleter

    shipped_names = [shipped.PREFIX + name for name in shipped.names()]
    return [*shipped_names, *FilesCompleter(("yaml", "yml"))(prefix)]
