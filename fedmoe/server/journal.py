"""A mapping that can say which of its keys have changed."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Journal(MutableMapping[Key, Value]):
    """A dict that remembers what is written to it, so that whoever keeps something beside it (rows of a matrix, files)
    need not look at every entry to find those that have changed. Each change takes 8 bytes of memory.

    Args:
        entries: what is in it at first.
    """

    def __init__(self, entries: Mapping[Key, Value] | Iterable[tuple[Key, Value]] = ()) -> None:
        self._entries = dict(entries)
        self._changed: list[Key] = []

    @property
    def mark(self) -> int:
        """The present place in the journal."""
        return len(self._changed)

    def since(self, mark: int) -> set[Key]:
        """The keys that were set or deleted since a mark."""
        return set(self._changed[mark:])

    def __getitem__(self, key: Key) -> Value:
        return self._entries[key]

    def __setitem__(self, key: Key, value: Value) -> None:
        self._changed.append(key)
        self._entries[key] = value

    def __delitem__(self, key: Key) -> None:
        self._changed.append(key)
        del self._entries[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    # The dict's own views, which are faster than those that MutableMapping would make of the above.
    def keys(self) -> KeysView[Key]:
        return self._entries.keys()

    def values(self) -> ValuesView[Value]:
        return self._entries.values()

    def items(self) -> ItemsView[Key, Value]:
        return self._entries.items()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._entries!r})"
