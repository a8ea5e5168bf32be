"""Random input for readers: edits of a file's bytes, JSON with another part, and checks of many draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmoe.errors import UserError


def drawn(few: int, many: int) -> Any:
    """The number of examples: few, and many in a slow test."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def fuzz(count: int, check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Try the check on ``count`` draws, the same ones each time."""
    quiet = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    quiet(given(*strategies)(check))()


def is_sentence(error: UserError) -> None:
    text = str(error)
    assert text.isprintable() and text[-1] in ".?", text


Edit = tuple[str, float, bytes]


def edits() -> st.SearchStrategy[list[Edit]]:
    """Cuts, flips, insertions and replacements, each at a share of the file's length."""
    places = st.floats(0, 1, exclude_max=True)
    texts = st.one_of(
        st.binary(min_size=1, max_size=9), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"-1", b"1e999", b"null"])
    )
    return st.lists(
        st.tuples(st.sampled_from(["cut", "flip", "insert", "replace", "drop"]), places, texts), min_size=1, max_size=3
    )


def edited(whole: bytes, changes: list[Edit]) -> bytes:
    for how, share, text in changes:
        place = int(share * len(whole))
        if how == "cut":
            whole = whole[:place]
        elif how == "drop":
            whole = whole[:place] + whole[place + len(text) :]
        elif how == "insert":
            whole = whole[:place] + text + whole[place:]
        elif how == "flip":
            whole = (
                whole[:place]
                + bytes(a ^ b for a, b in zip(whole[place:], text, strict=False))
                + whole[place + len(text) :]
            )
        else:
            whole = whole[:place] + text + whole[place + len(text) :]
    return whole


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from([10**30, 0, 2**63, 10**400]),
        st.sampled_from(["../x", "/etc/passwd", "\ud800", "\0", "banded", "round", "0"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


def places_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_of(item, (*path, key))


def with_value(value: Any, share: float, new: Any) -> Any:
    """A copy of JSON in which one part, by its share of all parts, is another value, or is missing for ``...``."""
    value = json.loads(json.dumps(value))
    places = list(places_of(value))
    *above, last = places[int(share * len(places))] or (None,)
    if last is None:
        return {} if new is ... else new
    holder = value
    for key in above:
        holder = holder[key]
    if new is ...:
        del holder[last]
    else:
        holder[last] = new
    return value


SHARE = st.floats(0, 1, exclude_max=True)
PART = st.one_of(JSON, st.just(...))
