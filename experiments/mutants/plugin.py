"""A pytest plugin for the runs that mutmut makes: each file's mutants meet that file's own tests, the fastest first."""

from __future__ import annotations

import gc

import pytest
from mutmut.mutation.trampoline import get_mutant_under_test
from mutmut.state import state

OWN_TESTS: dict[str, list[str]] = {}
"""Mutated file -> test files; filled before mutmut starts and inherited by its processes, which are forks."""


def pytest_configure() -> None:
    """Make a process forked for a mutant start fast; this also runs in the one that it is forked from.

    The program imports open_clip when it is first needed, which each process would do again. pytest calls the garbage
    collector at every end, which would walk through all that was inherited, and copy its memory.
    """
    import open_clip  # noqa: F401

    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most mutants die in milliseconds. In the run that finds out which test calls what, no duration is known yet."""
    durations = state().duration_by_test
    items.sort(key=lambda item: durations.get(item.nodeid, 0.0))


def pytest_sessionfinish() -> None:
    """After that run: forget the tests that call a function, but are another file's."""
    if get_mutant_under_test() != "stats":
        return
    for function, tests in state().tests_by_mangled_function_name.items():
        file = function.rpartition(".")[0].replace(".", "/") + ".py"
        tests.intersection_update({test for test in tests if test.split("::")[0] in OWN_TESTS.get(file, ())})
