"""What a method gains over its controls: itself without the part that is said to gain, or with noise in its place.

A control's label begins with that of its method and a comma, as in "pFedMoAP, noise as experts".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.benchmark.leaderboard import Entry, compare, p_text
from fedmoe.report.statistics import Paired
from fedmoe.report.tables import NONE

COLUMNS = ("method", "control", "method − control", "95 % interval", "p, Holm", "clients")


@dataclass(frozen=True, eq=False)
class Gain:
    """A method against one of its controls."""

    method: Entry
    control: Entry
    test: Paired | None  # of the first score, over clients; None where they have none in common
    p: float | None  # corrected for the method's controls


def gains(entries: Sequence[Entry]) -> list[Gain]:
    """Each method against each of its controls, over the clients that both have, mean over seeds."""
    found: list[Gain] = []
    methods = {entry.label: entry for entry in entries if not entry.control}
    for label, method in methods.items():
        own = [entry for entry in entries if entry.control and entry.label.partition(",")[0] == label]
        tests = compare(method, own, list(method.cells))
        found += [Gain(method, control, *test) for control, test in zip(own, tests, strict=True)]
    return found


def rows(entries: Sequence[Entry]) -> list[list[str]]:
    """A table's rows, with ``COLUMNS``."""
    return [
        [
            gain.method.label,
            gain.control.label,
            *_numbers(gain.test),
            p_text(gain.p),
            str(gain.test.n if gain.test else 0),
        ]
        for gain in gains(entries)
    ]


def _numbers(test: Paired | None) -> tuple[str, str]:
    if test is None:
        return NONE, NONE
    interval = NONE if test.interval is None else f"{test.interval[0]:+.2f} to {test.interval[1]:+.2f}"
    return f"{test.difference:+.2f}", interval
