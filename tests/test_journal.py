"""A journal is a dict that knows what was written to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedmoe.server.journal import Journal

KEYS = st.integers(0, 5)
WRITES = st.lists(st.tuples(st.sampled_from(["set", "delete", "update", "pop"]), KEYS, st.integers()))


def write(entries: Journal[int, int] | dict[int, int], how: str, key: int, value: int) -> None:
    if how == "set":
        entries[key] = value
    elif how == "update":
        entries.update({key: value, key + 1: value})
    elif how == "pop":
        entries.pop(key, None)
    elif key in entries:
        del entries[key]


@given(st.dictionaries(KEYS, st.integers()), WRITES, WRITES)
def test_it_is_a_dict_and_names_what_has_changed(
    start: dict[int, int], first: list[tuple[str, int, int]], then: list[tuple[str, int, int]]
) -> None:
    plain, journal = dict(start), Journal(start)
    for step in first:
        write(plain, *step)
        write(journal, *step)
    before, mark = dict(plain), journal.mark
    for step in then:
        write(plain, *step)
        write(journal, *step)
    assert (dict(journal), list(journal), len(journal)) == (plain, list(plain), len(plain))
    assert list(journal.items()) == list(plain.items())
    differs = {
        key for key in {*before, *plain} if before.get(key) != plain.get(key) or (key in before) != (key in plain)
    }
    asked = {key + more for how, key, _ in then for more in ((0, 1) if how == "update" else (0,))}
    assert differs <= journal.since(mark) <= asked
    assert journal.since(journal.mark) == set()
