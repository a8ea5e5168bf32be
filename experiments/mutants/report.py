"""What became of the mutants: the table, the survivors as diffs, and whether that is good enough. Needs no mutmut."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

WANTED = 0.95  # share of the mutants that must be killed


@dataclass(frozen=True)
class Change:
    """One change of one function, without its place in a file, so that it outlives a move of the function.

    ``function`` is ``name`` or ``Class.name``; ``before`` and ``after`` are the changed lines without indentation.
    """

    function: str
    before: str
    after: str

    @classmethod
    def from_diff(cls, function: str, diff: str) -> Change:
        """From a unified diff."""
        lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
        before, after = ("\n".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in ("-", "+"))
        return cls(function, before, after)


@dataclass(frozen=True)
class Mutant:
    """A mutant that was tested; name and status are mutmut's (killed, timeout, survived, no tests, ...)."""

    name: str
    file: str
    status: str
    change: Change

    @property
    def killed(self) -> bool:
        return self.status in ("killed", "timeout")


def read_equivalent(path: Path) -> dict[Change, str]:
    """The changes that were judged equivalent, each with its reason."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", [])
    return {Change(entry["function"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def report(mutants: Sequence[Mutant], equivalent: dict[Change, str], console: Console) -> bool:
    """Print the survivors and the table; whether enough mutants are killed and every survivor is explained."""
    survivors = [mutant for mutant in mutants if not mutant.killed]
    for mutant in survivors:
        reason = equivalent.get(mutant.change, "UNEXPLAINED")
        console.print(Text(f"{mutant.file}, {mutant.change.function} ({mutant.status}): {reason}"), soft_wrap=True)
        for sign, lines, style in (("-", mutant.change.before, "red"), ("+", mutant.change.after, "green")):
            for line in lines.splitlines():
                console.print(Text(f"    {sign} {line}", style), soft_wrap=True)
    killed = {mutant.change for mutant in mutants if mutant.killed}
    for change in killed & equivalent.keys():
        console.print(Text(f"Judged equivalent, but killed: {change.function}: {change.after}"), soft_wrap=True)
    unexplained = sum(mutant.change not in equivalent for mutant in survivors)
    share = sum(mutant.killed for mutant in mutants) / max(len(mutants), 1)
    console.print(_table(mutants, equivalent))
    console.print(f"{share:.1%} killed (wanted: {WANTED:.0%}); {unexplained} unexplained survivors")
    return bool(mutants) and share >= WANTED and not unexplained


def _table(mutants: Sequence[Mutant], equivalent: dict[Change, str]) -> Table:
    table = Table()
    table.add_column("file", no_wrap=True)
    for column in ("mutants", "killed", "timed out", "survived", "equivalent", "killed, %"):
        table.add_column(column, justify="right")
    for row in _rows(mutants, equivalent):
        table.add_row(*row)
    return table


def _rows(mutants: Sequence[Mutant], equivalent: dict[Change, str]) -> Iterator[list[str]]:
    """A row for each file, and one for all."""
    for file in [*sorted({mutant.file for mutant in mutants}), None]:
        own = [mutant for mutant in mutants if file in (mutant.file, None)]
        timeouts = sum(mutant.status == "timeout" for mutant in own)
        killed = sum(mutant.killed for mutant in own)
        explained = sum(not mutant.killed and mutant.change in equivalent for mutant in own)
        share = f"{100 * killed / len(own):.1f}" if own else "-"
        counts = (len(own), killed, timeouts, len(own) - killed, explained)
        yield [file or "all", *map(str, counts), share]
