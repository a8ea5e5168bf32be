"""How much a command says: ``--log-level`` and ``--quiet``, of every command and anywhere on the line."""

from __future__ import annotations

from collections.abc import Sequence

from fedmoe.cli.values import either, sentence, shown
from fedmoe.display import LEVELS
from fedmoe.errors import did_you_mean

OPTION, QUIET = "--log-level", "--quiet"


def take_level(args: Sequence[str]) -> tuple[str, list[str]]:
    """The level that the line asks for (the last one counts; ``info`` where it does not say), and the line without it.

    Raises:
        UserError: it is none of ``LEVELS``.
    """
    level, rest, given = "info", [], list(args)
    while given:
        arg = given.pop(0)
        option, equals, value = arg.partition("=")
        if arg == QUIET:
            level = "warning"
        elif option == OPTION:
            level = value if equals else given.pop(0) if given else ""
            if level not in LEVELS:
                near = did_you_mean(level, LEVELS) if level else ""
                raise sentence(f"{OPTION} is {shown(level)}; valid is {either(LEVELS)}", near)
        else:
            rest.append(arg)
    return level, rest
