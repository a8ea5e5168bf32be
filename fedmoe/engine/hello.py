"""What a client says of itself before the first round, and what the server compares: it must be the same federation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from fedmoe import __version__
from fedmoe.client.work import ClientWork
from fedmoe.engine.line import as_json, from_json
from fedmoe.errors import UserError
from fedmoe.protocol.records import About

_MOST_EXAMPLES = 2**40
# What clients do, of the federation's settings.
_COURSE = ("clients", "local_epochs", "batch_size", "validation", "secure_aggregation")
_WORDS = {
    "fedmoe": "another version of fedmoe",
    "class names": "other class names",
    "CLIP": "another CLIP",
    "seed": "another seed",
    "start": "another start of the shared parameters (prompt.* or seed)",
}


@dataclass(frozen=True)
class Introduction:
    """One client's part of a hello."""

    client: int
    about: About
    counts_train: list[int]  # [C]
    counts_test: list[int]  # [C]


def identity(work: ClientWork) -> dict[str, str]:
    """What server and clients must have in common: versions, and digests of settings, class names and CLIP."""
    module, optim = work.module, work.module.optim
    course = {name: getattr(work.config, name) for name in _COURSE}
    if optim.schedule == "cosine_federation":
        course["rounds"] = work.config.rounds
    start = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.shared_start().items()):
        start.update(f"{name} {tuple(tensor.shape)}".encode())
        start.update(tensor.contiguous().numpy().tobytes())
    method = type(work.method)
    return {
        "fedmoe": __version__,
        "class names": _digest(list(module.prompts.class_names)),
        "CLIP": module.clip.fingerprint,
        "seed": str(work.seed),
        "method": f"{method.__qualname__} {_digest(vars(work.method))}",
        "federation": _digest(course),
        "optim": _digest(asdict(optim)),
        "privacy": _digest(getattr(work.protection, "config", None)),
        "screening": _digest(work.reports),
        "start": start.hexdigest(),
    }


def say_hello(work: ClientWork, clients: Iterable[int]) -> bytes:
    """The hello of these clients."""
    summary = work.data.summary()
    introduced = [
        {
            "client": i,
            **asdict(work.about(i)),
            "counts_train": [int(n) for n in summary["counts_train"][i]],
            "counts_test": [int(n) for n in summary["counts_test"][i]],
        }
        for i in clients
    ]
    return as_json({"identity": identity(work), "clients": introduced})


def read_hello(data: bytes, expected: Mapping[str, str], num_classes: int, num_clients: int) -> list[Introduction]:
    """The clients in a hello, which comes from outside.

    Raises:
        ValueError: it is no hello.
        UserError: it is of another federation, in one sentence.
    """
    value = from_json(data)
    told, clients = value.get("identity"), value.get("clients")
    if not isinstance(told, dict) or not isinstance(clients, list) or not clients or len(clients) > num_clients:
        raise ValueError("it has no identity or no clients")
    found = [_introduction(entry, num_classes, num_clients) for entry in clients]
    who = f"Client {found[0].client}"
    for name, mine in expected.items():
        if told.get(name) != mine:
            other = f" ({told.get(name)}, not {mine})" if name in ("fedmoe", "seed") else ""
            what = _WORDS.get(name, f"other settings of {name}")
            raise UserError(f"{who} has {what} than the server{other}; valid is the same configuration on both.")
    if any(len(one.counts_train) != num_classes or len(one.counts_test) != num_classes for one in found):
        raise ValueError("it counts other classes")
    return found


def _introduction(entry: Any, num_classes: int, num_clients: int) -> Introduction:
    if not isinstance(entry, dict):
        raise ValueError("a client in it is no object")
    client, domain = entry.get("client"), entry.get("domain")
    sizes: list[Any] = [entry.get("train_examples"), entry.get("test_examples")]
    counts: list[Any] = [entry.get("counts_train"), entry.get("counts_test")]
    if type(client) is not int or not 0 <= client < num_clients:
        raise ValueError(f"it names client {client!r} of {num_clients}")
    if not (domain is None or isinstance(domain, str)):
        raise ValueError(f"client {client} has the domain {domain!r}")
    for size, parts in zip(sizes, counts, strict=True):
        whole = isinstance(parts, list) and all(type(n) is int and 0 <= n < _MOST_EXAMPLES for n in parts)
        if not whole or type(size) is not int or size != sum(parts):
            raise ValueError(f"client {client} has {size!r} examples, which are not the sum over its classes")
    if not sizes[0]:
        raise ValueError(f"client {client} has no training examples")
    return Introduction(client, About(sizes[0], sizes[1], domain and domain[:100]), *counts)


def _digest(value: Any) -> str:
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps(plain, sort_keys=True, default=lambda other: type(other).__qualname__)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
