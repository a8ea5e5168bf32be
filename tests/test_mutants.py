"""The report on mutants: what counts as killed, which survivors are explained, and when that is good enough."""

from __future__ import annotations

import io
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from rich.console import Console

from experiments.mutants.report import Change, Mutant, read_equivalent, report

ROOT = Path(__file__).parent.parent

DIFF = """--- fedmoe/a.py
+++ fedmoe/a.py
@@ -1,3 +1,3 @@
 def half(x):
-    return x / 2
+    return x * 2
"""


def told(mutants: list[Mutant], equivalent: dict[Change, str]) -> tuple[bool, str]:
    stream = io.StringIO()
    passed = report(mutants, equivalent, Console(file=stream, width=200))
    return passed, stream.getvalue()


def mutants(killed: int, *others: tuple[str, Change]) -> list[Mutant]:
    dead = [Mutant(f"k{i}", "fedmoe/a.py", "killed", Change("f", "x", str(i))) for i in range(killed)]
    return dead + [Mutant(f"o{i}", "fedmoe/b.py", status, change) for i, (status, change) in enumerate(others)]


def test_a_change_is_its_lines_without_file_and_place() -> None:
    assert Change.from_diff("half", DIFF) == Change("half", "return x / 2", "return x * 2")


@pytest.mark.parametrize(
    ("killed", "status", "explained", "passes"),
    [
        (19, "survived", True, True),  # 95 %
        (18, "survived", True, False),  # 94.7 %
        (99, "survived", False, False),
        (99, "no tests", False, False),
        (1, "timeout", False, True),
    ],
)
def test_enough_must_be_killed_and_the_rest_explained(killed: int, status: str, explained: bool, passes: bool) -> None:
    change = Change("g", "return [x]", "return [y]")
    passed, text = told(mutants(killed, (status, change)), {change: "x is y"} if explained else {})
    assert passed == passes
    assert ("UNEXPLAINED" in text) == (not explained and status != "timeout")
    if status != "timeout":
        assert f"fedmoe/b.py, g ({status}): " in text
        assert "- return [x]" in text and "+ return [y]" in text


def test_nothing_tested_is_not_enough() -> None:
    assert told([], {})[0] is False


def test_the_table_counts_by_file_and_in_all() -> None:
    one, two = Change("g", "a", "b"), Change("g", "a", "c")
    _, text = told(mutants(6, ("survived", one), ("survived", two), ("timeout", one), ("killed", one)), {one: "same"})
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in text.splitlines()
        if "│" in line
    }
    assert rows["fedmoe/a.py"] == ["6", "6", "0", "0", "0", "100.0"]
    assert rows["fedmoe/b.py"] == ["4", "2", "1", "2", "1", "50.0"]
    assert rows["all"] == ["10", "8", "1", "2", "1", "80.0"]
    assert "1 unexplained" in text
    assert "Judged equivalent, but killed: g: b" in text


def test_each_equivalent_change_has_its_reason() -> None:
    entries = tomllib.loads((ROOT / "tests/mutants_equivalent.toml").read_text())["equivalent"]
    assert len(read_equivalent(ROOT / "tests/mutants_equivalent.toml")) == len(entries)  # none twice
    assert all(entry["reason"].endswith(".") and entry["before"] != entry["after"] for entry in entries)


def test_targets_exist() -> None:
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "fedmoe").rglob("*.py")]
    for pattern, tests in tomllib.loads((ROOT / "experiments/mutants/targets.toml").read_text())["tests"].items():
        assert any(fnmatch(file, pattern) for file in files), pattern
        assert tests and all((ROOT / test).is_file() for test in tests), tests
