"""How a command of ``experiments`` ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fedmoe.errors import UserError


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command; its exit code: its own, 2 for a mistake in the input, 130 after Ctrl-C."""
    try:
        return command() or 0
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command again goes on.", file=sys.stderr)
        return 130
