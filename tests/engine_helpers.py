"""A federation whose clients are elsewhere: real ones on the embedded CLIP and data, with a queue as their line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from federation_helpers import Log, build_federation
from test_line import CONFIG, METHODS, data_of

from fedmoe.client.disk import DiskStates
from fedmoe.client.work import ClientWork
from fedmoe.config import EngineConfig, FeatureConfig
from fedmoe.engine.line import Answer, Order
from fedmoe.engine.remote import RemoteFleet
from fedmoe.engine.site import Site
from fedmoe.federation.orchestrator import Federation
from fedmoe.models.clip import FrozenCLIP

ENGINE = EngineConfig(timeout=0.05, connect=0.2)
Change = Callable[[int, Order, Answer], "Answer | str | None"]


def _disk(folder: Path, run: str) -> DiskStates:
    return DiskStates(folder / run)


class Sites:
    """A line to one site for each client, with a disk each; ``change`` harms answers, None loses them."""

    def __init__(self, work: ClientWork, folder: Path, change: Change | None = None) -> None:
        self.sites = {i: self._site(work, i, folder / str(i)) for i in range(work.config.clients)}
        self.change = change or (lambda node, order, answer: answer)
        self.present = set(self.sites)
        self.bound: dict[int, int] = {}
        self.orders: list[Order] = []
        self.answers: list[Answer] = []
        self._waiting: dict[str, tuple[int, Order]] = {}

    @staticmethod
    def _site(work: ClientWork, client_id: int, folder: Path) -> Site:
        return Site(work, [client_id], partial(_disk, folder), withholds=work.config.secure_aggregation)

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def traffic(self) -> tuple[int, int] | None:
        return None

    def nodes(self) -> Collection[int]:
        return self.present

    def owner(self, node: int) -> int | None:
        return self.bound.get(node)

    def send(self, node: int, order: Order) -> str:
        self.orders.append(order)
        name = str(len(self.orders))
        self._waiting[name] = (node, order)
        return name

    def receive(self, names: Collection[str]) -> Sequence[tuple[str, Answer | str]]:
        found: list[tuple[str, Answer | str]] = []
        for name in [name for name in names if name in self._waiting]:
            node, order = self._waiting.pop(name)
            answer = self.change(node, order, self.sites[node].answer(order))
            if answer is not None:
                found.append((name, answer))
                if isinstance(answer, Answer):
                    self.answers.append(answer)
        return found


class Parts:
    """A federation of sites, and its parts."""

    def __init__(
        self,
        clip: FrozenCLIP,
        cache: FeatureConfig,
        folder: Path,
        name: str,
        change: Change | None = None,
        **kwargs: Any,
    ) -> None:
        self.lines: list[Sites] = []

        def fleet(work: ClientWork) -> RemoteFleet:
            self.lines.append(Sites(work, folder, change))
            return RemoteFleet(work, self.lines[-1], ENGINE)

        method = METHODS[name]()
        config = kwargs.pop("config", CONFIG)
        self.federation: Federation
        self.log: Log
        self.federation, self.log = build_federation(
            clip, data_of(clip, method, cache), method, config, fleet=fleet, **kwargs
        )
        self.line = self.lines[-1]
        assert isinstance(self.federation.fleet, RemoteFleet)
        self.fleet = self.federation.fleet

    def run(self, run: str = "run") -> None:
        self.told = self.fleet.open(run)
        self.federation.run()
