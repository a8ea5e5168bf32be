"""A run as its folder tells it, and what follows from that.

Everything read is checked; what cannot be used is a UserError that names file, line and key. A run may have been
interrupted at any moment: a cut last line of a JSONL file is left out with a note, and a run without an up-to-date
summary.json counts as unfinished.

Shape letters: C classes, N clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedmoe.config import flatten
from fedmoe.errors import UserError
from fedmoe.readers.plain_yaml import PlainLoader
from fedmoe.readers.regular import read_regular
from fedmoe.runs.folder import require_format
from fedmoe.runs.records import (
    DOCUMENT_BYTES,
    ClientScore,
    Integer,
    PartitionSummary,
    Record,
    RoundRecord,
    Summary,
    parse,
    read_clients,
    read_document,
    read_rounds,
)


class NoRoundYet(UserError):
    """The run has not finished its round 0, or was interrupted before."""


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """How many examples of each class each client has."""

    class_names: tuple[str, ...]
    train: np.ndarray  # [N, C] int64
    test: np.ndarray  # [N, C] int64
    domains: tuple[str, ...] | None  # [N]

    def unscored(self, client_id: int, round: int) -> ClientScore:
        """A client that was not evaluated."""
        domain = None if self.domains is None else self.domains[client_id]
        return ClientScore(
            round=round,
            client=client_id,
            domain=domain,
            accuracy=None,
            correct=0,
            total=0,
            train_examples=int(self.train[client_id].sum()),
        )

    @classmethod
    def of(cls, partition: Mapping[str, Any]) -> LabelCounts:
        """Of the contents of partition.json."""
        train, test = (np.array(partition[f"counts_{part}"], dtype=np.int64) for part in ("train", "test"))
        domains = partition.get("domains")
        return cls(tuple(partition["class_names"]), train, test, None if domains is None else tuple(domains))


class _Method(Record):
    class_path: str
    init_args: dict[str, Any] | None = None

    LATER = frozenset({"init_args"})


class _Config(Record):
    method: _Method
    seed: Integer


@dataclass(frozen=True)
class Settings:
    """What config.yaml says about the method."""

    method: str  # its class
    label: str | None  # of the methods that come with the package, the name in tables and plots
    arguments: Mapping[str, Any]  # its init_args, nested ones with dots in their names
    seed: int


@dataclass(frozen=True, eq=False)
class Run:
    """One federated run."""

    path: Path
    rounds: tuple[RoundRecord, ...]  # ascending, at least one
    clients: Mapping[int, tuple[ClientScore, ...]]  # evaluated round -> all N clients
    labels: LabelCounts
    settings: Settings | None  # None: config.yaml is missing
    summary: Summary | None  # None: not finished
    notes: tuple[str, ...]  # what the reader had to leave out

    @property
    def label(self) -> str:
        """The method's name in tables and plots; where the run does not know it, its class or the folder's name."""
        if self.summary:
            return self.summary.label
        return (self.settings and self.settings.label) or self.method

    @property
    def method(self) -> str:
        """The method's class; the folder's name where nothing is known."""
        known = self.summary or self.settings
        return known.method if known else self.path.resolve().name

    @property
    def seed(self) -> int | None:
        known = self.summary or self.settings
        return known.seed if known else None

    @property
    def num_clients(self) -> int:
        return len(self.labels.train)

    @property
    def num_scored(self) -> int:
        """Clients in the last evaluation: all but late ones and those without test examples."""
        scored = self.client_accuracies(self.last.round) if self.last else None
        return self.num_clients if scored is None else len(scored)

    @property
    def finished(self) -> bool:
        return self.summary is not None and self.summary.rounds == self.rounds[-1].round

    @cached_property
    def failed(self) -> Mapping[int, tuple[tuple[int, ...], str]]:
        """Client -> the rounds from which it was dropped, and why the last time."""
        found: dict[int, tuple[tuple[int, ...], str]] = {}
        for r in self.rounds:
            for key, reason in r.failed.items():
                client = int(key)
                found[client] = ((*found.get(client, ((), ""))[0], r.round), reason)
        return dict(sorted(found.items()))

    @cached_property
    def evaluated(self) -> tuple[RoundRecord, ...]:
        return tuple(r for r in self.rounds if r.accuracy is not None)

    @property
    def last(self) -> RoundRecord | None:
        """The last evaluated round, which is the run's result."""
        return self.evaluated[-1] if self.evaluated else None

    @property
    def seconds(self) -> dict[str, float]:
        """Sums over all rounds: train, evaluate, other."""
        return {phase: sum(r.seconds[phase] for r in self.rounds) for phase in ("train", "evaluate", "other")}

    @property
    def bytes_per_round(self) -> dict[str, float]:
        """down, up: means over the rounds of training; evaluate_down: mean over the evaluations."""
        trained = [r.bytes for r in self.rounds if r.round > 0]
        evaluated = [r.bytes for r in self.evaluated]
        which = {"down": trained, "up": trained, "evaluate_down": evaluated}
        return {key: sum(b[key] for b in found) / max(1, len(found)) for key, found in which.items()}

    def client_accuracies(self, number: int) -> np.ndarray | None:
        """Percent, one for each client with test examples; None where clients.jsonl lacks the round or a client."""
        results = self.clients.get(number)
        return None if results is None else np.array([c.accuracy for c in results if c.accuracy is not None])


def is_run(path: Path) -> bool:
    """Whether ``path`` holds a run, or what one has written before its first round."""
    return any((path / name).is_file() for name in ("rounds.jsonl", "summary.json", "config.yaml"))


def read_run(path: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        NoRoundYet: if no round has been finished.
        UserError: if a file is missing, unreadable, too large, cut (but for a JSONL's last line) or lacks a key.
    """
    notes: list[str] = []
    if not is_run(path):
        raise UserError(f"{path} is missing." if not path.exists() else f"{path} holds no run.")
    require_format(path, oldest=1)
    if not (path / "rounds.jsonl").exists() and not (path / "summary.json").exists():
        raise NoRoundYet(f"{path} is a run that has finished no round yet; there is nothing to report.")
    labels = LabelCounts.of(read_document(path / "partition.json", PartitionSummary).to_json())
    rounds = tuple(read_rounds(path, notes))
    if not rounds:
        raise NoRoundYet(f"{path / 'rounds.jsonl'} holds no finished round yet; there is nothing to report.")
    scores = read_clients(path, len(labels.train), notes)
    clients = {}
    for r in rounds:
        found = scores.get(r.round, {})
        if r.accuracy is not None and "standard_error" in r.accuracy:  # a sample was asked; others have no line
            found = {i: found.get(i) or labels.unscored(i, r.round) for i in range(len(labels.train))}
        if len(found) == len(labels.train):
            clients[r.round] = tuple(found[i] for i in sorted(found))
        elif r.accuracy is not None:
            notes.append(f"clients.jsonl has {len(found)} of {len(labels.train)} clients in round {r.round}")
    summary = read_document(path / "summary.json", Summary) if (path / "summary.json").exists() else None
    settings = _settings(path / "config.yaml") if (path / "config.yaml").exists() else None
    return Run(path, rounds, clients, labels, settings, summary, tuple(notes))


def _settings(path: Path) -> Settings:
    try:
        value = yaml.load(read_regular(path, DOCUMENT_BYTES).decode("utf-8"), PlainLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged, it is not valid YAML: {' '.join(str(error).split())}.") from None
    config = parse(_Config, value, str(path))
    class_path = config.method.class_path
    return Settings(
        class_path.rpartition(".")[2], _own_label(class_path), flatten(config.method.init_args or {}), config.seed
    )


def _own_label(class_path: str) -> str | None:
    """The label of a method of this package. No other class is asked: a report runs no code that a file names."""
    package, _, name = class_path.rpartition(".")
    if package != "fedmoe.methods":
        return None
    import fedmoe.methods

    return getattr(getattr(fedmoe.methods, name, None), "label", None)
