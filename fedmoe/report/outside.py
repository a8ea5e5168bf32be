"""Text and paths that come from a run folder, made fit for where they go. A run folder may have been received from
anyone: its labels, names and reasons are text, never markup or a command, and its links lead nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fedmoe.errors import UserError, printable

# The ASCII punctuation that CommonMark, or GitHub's tables, could read as markup, wherever it stands in a line. Not
# periods and the like, which mean something only at the start of a line.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<|~&$@]|!(?=\[)|(?<=[a-zA-Z]):(?=//))")
_LINK = re.compile(r"\b(www)\.", re.IGNORECASE)
_LINE_START = re.compile(r"^(\d*)([#+=>-]|(?<=\d)[.)](?=\s|$))")
_LATEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}"}
_LATEX |= {">": "\\textgreater{}", "|": "\\textbar{}"}
_LATEX |= {"±": "$\\pm$", "−": "$-$", "λ": "$\\lambda$", "ε": "$\\epsilon$"}
_LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def one_line(text: str) -> str:
    """The text in one printable line."""
    return printable(" ".join(text.split()))


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too: no emphasis, link, picture, HTML or formula."""
    line = _LINK.sub(r"\1\\.", _MARKDOWN.sub(r"\\\1", one_line(text)))
    return _LINE_START.sub(r"\1\\\2", line)


def latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def csv_cell(value: object) -> object:
    """A cell that a spreadsheet does not calculate: text that would be a formula gets an apostrophe in front. Numbers
    stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.lstrip(" ")[:1] in tuple("=+-@\t\r＝＋－＠") and not _is_number(value) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text) is not None


def require_own(folder: Path, target: Path) -> Path:
    """``target``, if no part of its path below ``folder`` is a symbolic link; elsewhere links are the user's own.

    Raises:
        UserError: there is a link, through which a file outside of the folder would be replaced.
    """
    whole = Path(os.path.abspath(target))
    above = next((p for p in whole.parents if p.exists() and folder.exists() and p.samefile(folder)), None)
    for part in (whole, *whole.parents) if above is not None else ():
        if part == above:
            break
        if part.is_symlink():
            raise UserError(f"{part} is a symbolic link; valid is a folder or file of the run's own.")
    return target
