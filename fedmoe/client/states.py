"""Where clients keep their own states."""

from __future__ import annotations

from typing import Protocol

from fedmoe.protocol.records import ClientState

_KEPT = 2  # versions of a client's state: that of the current round, and the previous one, which counts until it ends


class ClientStates(Protocol):
    """Each client's own states, by the round that produced them. The server names the one to use."""

    def get(self, client_id: int, version: int) -> ClientState:
        """The state after a round; version 0 is that of a client that has never trained.

        Raises:
            LookupError: the state is no longer there.
        """

    def put(self, client_id: int, version: int, state: ClientState) -> None:
        """Store a new state next to the one currently in use."""


class MemoryStates:
    """States in this process's memory."""

    def __init__(self) -> None:
        self._states: dict[int, dict[int, ClientState]] = {}

    def get(self, client_id: int, version: int) -> ClientState:
        return self._states[client_id][version] if version else ClientState()

    def put(self, client_id: int, version: int, state: ClientState) -> None:
        own = self._states.setdefault(client_id, {})
        own.pop(version, None)
        own[version] = state
        while len(own) > _KEPT:
            del own[next(iter(own))]
