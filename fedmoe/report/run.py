"""Reading a run folder into the dataclasses of ``run_records``.

Everything read is checked; what cannot be used is a UserError that names file, line and key. A run may have been
interrupted at any moment: a cut last line of a JSONL file is left out with a note, and a run without an up-to-date
summary.json counts as unfinished.

Shape letters: C classes, N clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmoe.errors import UserError
from fedmoe.report.checked_json import Record, read_json, read_jsonl, read_yaml
from fedmoe.report.run_records import (
    Attention,
    Bytes,
    ClientResult,
    LabelCounts,
    Round,
    Run,
    Seconds,
    Settings,
    Spread,
    Summary,
)
from fedmoe.runs.folder import require_format

__all__ = [
    "Attention",
    "Bytes",
    "ClientResult",
    "LabelCounts",
    "NoRoundYet",
    "Round",
    "Run",
    "Seconds",
    "Settings",
    "Spread",
    "Summary",
    "is_run",
    "read_run",
]


class NoRoundYet(UserError):
    """The run has not finished its round 0, or was interrupted before."""


def is_run(path: Path) -> bool:
    """Whether ``path`` holds a run, or what one has written before its first round."""
    return any((path / name).is_file() for name in ("rounds.jsonl", "summary.json", "config.yaml"))


def read_run(path: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        NoRoundYet: if no round has been finished.
        UserError: if a file is missing, unreadable, cut (but for a JSONL's last line) or lacks a key.
    """
    notes: list[str] = []
    if not is_run(path):
        raise UserError(f"{path} is missing." if not path.exists() else f"{path} holds no run.")
    require_format(path)
    if not (path / "rounds.jsonl").exists() and not (path / "summary.json").exists():
        raise NoRoundYet(f"{path} is a run that has finished no round yet; there is nothing to report.")
    labels = _label_counts(read_json(path / "partition.json"))
    by_number: dict[int, Round] = {}
    for record in read_jsonl(path / "rounds.jsonl", notes):
        by_number[record.get("round", int)] = _round(record)  # a round done again after a crash replaces the first
    if not by_number:
        raise NoRoundYet(f"{path / 'rounds.jsonl'} holds no finished round yet; there is nothing to report.")
    rounds = tuple(by_number[number] for number in sorted(by_number))
    results: dict[int, dict[int, ClientResult]] = {}
    for record in read_jsonl(path / "clients.jsonl", notes):
        result = _client_result(record, len(labels.train))
        results.setdefault(result.round, {})[result.client] = result
    clients = {}
    for r in rounds:
        found = results.get(r.round, {})
        if len(found) == len(labels.train):
            clients[r.round] = tuple(found[i] for i in sorted(found))
        elif r.accuracy is not None:
            notes.append(f"clients.jsonl has {len(found)} of {len(labels.train)} clients in round {r.round}")
    summary = _summary(read_json(path / "summary.json")) if (path / "summary.json").exists() else None
    settings = _settings(read_yaml(path / "config.yaml")) if (path / "config.yaml").exists() else None
    return Run(path, rounds, clients, labels, settings, summary, tuple(notes))


def _round(record: Record) -> Round:
    accuracy = record.maybe("accuracy", dict)
    attention = record.maybe("attention", dict)
    experts = record.record("experts")
    domains = record.record("accuracy_per_domain")
    failed = record.record("failed") if "failed" in record.values else Record({}, "")  # older runs have none
    weights = record.record("attention") if attention is not None else None
    for by_client in (experts, failed):
        if not all(client.isdecimal() and len(client) < 19 for client in by_client.values):
            raise UserError(f"{by_client.where} has a key that is not a client's number.")
    spread = record.record("accuracy").numbers(Spread) if accuracy is not None else None
    if spread and not all(0 <= value <= 100 for value in vars(spread).values()):
        raise UserError(f"{record.where} has accuracy {vars(spread)}; valid is 0 to 100 percent.")
    if record.get("round", int) < 0:
        raise UserError(f"{record.where} is of round {record.get('round', int)}; valid is an integer of at least 0.")
    return Round(
        round=record.get("round", int),
        cohort=record.items("cohort", int),
        accuracy=spread,
        accuracy_per_domain={name: domains.get(name, float) for name in domains.values},
        train_loss=record.maybe("train_loss", float),
        seconds=record.record("seconds").numbers(Seconds),
        bytes=record.record("bytes").numbers(Bytes),
        clients_seen=record.get("clients_seen", int),
        prompt_drift=record.maybe("prompt_drift", float),
        experts={int(client): experts.items(client, int) for client in experts.values},
        attention=Attention(weights.get("local", float), weights.items("experts", float)) if weights else None,
        failed={int(client): failed.get(client, str) for client in failed.values},
    )


def _client_result(record: Record, num_clients: int) -> ClientResult:
    integers = ("round", "client", "correct", "total", "train_examples")
    result = ClientResult(
        domain=record.maybe("domain", str),
        accuracy=record.maybe("accuracy", float),
        **{key: record.get(key, int) for key in integers},
    )
    if not 0 <= result.client < num_clients:
        raise UserError(
            f"{record.where} names client {result.client}; partition.json has {num_clients} clients, from 0."
        )
    if not 0 <= result.correct <= result.total:
        raise UserError(f"{record.where} has {result.correct} of {result.total} right; valid is 0 to {result.total}.")
    expected = 100.0 * result.correct / result.total if result.total else None
    if (expected is None) != (result.accuracy is None) or abs((result.accuracy or 0.0) - (expected or 0.0)) > 0.01:
        raise UserError(
            f"{record.where} has accuracy {result.accuracy}; {result.correct} of {result.total} right is {expected}."
        )
    return result


def _label_counts(record: Record) -> LabelCounts:
    names = record.items("class_names", str)
    counts = {}
    for key in ("counts_train", "counts_test"):
        rows = record.items(key, list)
        valid = [len(row) == len(names) and all(type(n) is int and 0 <= n < 2**53 for n in row) for row in rows]
        if not (names and rows and all(valid)):
            raise UserError(
                f"{record.where} has wrong counts under {key!r}; valid is {len(names)} counts for each client."
            )
        counts[key] = np.array(rows, dtype=np.int64)  # [N, C]
    domains = record.items("domains", str) if record.maybe("domains", list) is not None else None
    sizes = [len(rows) for rows in (*counts.values(), domains) if rows is not None]
    if len(set(sizes)) > 1:
        raise UserError(f"{record.where} has {sizes} clients in its lists; valid is one and the same number.")
    return LabelCounts(names, counts["counts_train"], counts["counts_test"], domains)


def _summary(record: Record) -> Summary:
    return Summary(
        method=record.get("method", str),
        label=record.get("label", str),
        seed=record.get("seed", int),
        rounds=record.get("rounds", int),
        versions=record.get("versions", dict),
        privacy=record.record("privacy").get("text", str) if record.values.get("privacy") is not None else None,
    )


def _settings(record: Record) -> Settings:
    method = record.record("method")
    class_path = method.get("class_path", str)
    name = class_path.rpartition(".")[2]
    arguments = method.get("init_args", dict) if method.values.get("init_args") is not None else {}
    return Settings(name, _own_label(class_path), _flat(arguments), record.get("seed", int))


def _own_label(class_path: str) -> str | None:
    """The label of a method of this package. No other class is asked: a report runs no code that a file names."""
    package, _, name = class_path.rpartition(".")
    if package != "fedmoe.methods":
        return None
    import fedmoe.methods

    return getattr(getattr(fedmoe.methods, name, None), "label", None)


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in arguments.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
