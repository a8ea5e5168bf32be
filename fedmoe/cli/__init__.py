"""The command line: ``python -m fedmoe.cli fit | search | audit | evaluate | predict | export | import | report |
compare | partition | features | data``.

Importing the package imports nothing else, so that ``__main__`` can prepare for signals first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmoe.cli.commands import main
    from fedmoe.cli.settings import build_parser, experiment_parser

__all__ = ["build_parser", "experiment_parser", "main"]


def __getattr__(name: str) -> Any:
    if name == "main":
        from fedmoe.cli.commands import main

        return main
    if name in __all__:
        from fedmoe.cli import settings

        return getattr(settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
