"""The one exception for a user's mistake, and the words that help to correct it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LONGEST_WORD = 300  # characters; longer words are cut in a message


class UserError(Exception):
    """Input that cannot be used.

    The message is one sentence that names the file or key, the value found, what is valid and, where there is one,
    the nearest valid choice. The command line prints it without a stack trace and exits with code 2.

    Parts of a message come from files, which may hold anything: the message is reduced to one printable line, and
    words that nobody would read to the end are cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(_cut(word) for word in message.split())))


def require(ok: bool, key: str, value: object, valid: str) -> None:
    """Refuse a setting.

    Raises:
        UserError: it is not ``ok``.
    """
    if not ok:
        raise UserError(f"{key} is {value!r}; valid is {valid}.")


def _cut(word: str) -> str:
    return word if len(word) <= _LONGEST_WORD else f"{word[: _LONGEST_WORD - 3]}..."


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, or cannot show, written as an escape sequence.

    Line breaks stay. Whatever comes from outside passes through here before it is printed.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def some(items: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first ``most`` items, and how many more there are: ``"a, b and 3 more"``."""
    return separator.join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``value``, or ``""`` where none is near."""
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""
