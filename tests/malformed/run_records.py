"""Records of runs and comparisons that are damaged: logs, partition.json, summary.json and comparison.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

from malformed.run_damage import BRACKETS, REPORTS, RUN, Change, Damage, json_of, line_of, writes


def logs() -> list[Damage]:
    rounds, clients = RUN / "rounds.jsonl", RUN / "clients.jsonl"
    damages = []
    for path in (rounds, clients):
        texts: dict[str, Change] = {
            "garbled": lambda path=path: path.write_bytes(b"{\n" + path.read_bytes()),
            "a list": lambda path=path: path.write_bytes(b"[]\n" + path.read_bytes()),
            "cut in the middle": lambda path=path: path.write_bytes(path.read_bytes()[:40] + path.read_bytes()[60:]),
            "no round": line_of(path, 0, lambda record: record.pop("round")),
            "round of words": line_of(path, 0, lambda record: record.update(round="0")),
            "round of half": line_of(path, 0, lambda record: record.update(round=0.5)),
            "no UTF-8": lambda path=path: path.write_bytes(b"\xff\xfe\n" + path.read_bytes()),
            "deep": lambda path=path: path.write_bytes(BRACKETS + b"\n" + path.read_bytes()),
            "a folder": lambda path=path: (path.unlink(), path.mkdir()),
        }
        for name, change in texts.items():
            damages.append(Damage(f"{path.name} {name}", change, (str(path),), REPORTS))
            damages.append(Damage(f"{path.name} {name} at its end", change, (str(path),), ("fit", "resume")))
        irregular: dict[str, Change] = {
            "a FIFO": lambda path=path: (path.unlink(), os.mkfifo(path)),
            "a link to a device": lambda path=path: (path.unlink(), path.symlink_to("/dev/zero")),
            "a link to a FIFO": lambda path=path: (
                path.unlink(),
                os.mkfifo("fifo"),
                path.symlink_to(Path("fifo").resolve()),
            ),
        }
        words = (str(path), "valid is a regular file")
        for name, change in irregular.items():
            damages += [Damage(f"{path.name} {name}: {command}", change, words, (command,)) for command in REPORTS]
        damages.append(Damage(f"{path.name} missing", path.unlink, (str(path),), REPORTS))
    values = {
        "an accuracy of words": line_of(rounds, 1, lambda r: r["accuracy"].update(mean="x")),
        "an accuracy of 400 digits": line_of(rounds, 1, lambda r: r["accuracy"].update(mean=10**400)),
        "an accuracy beyond 100": line_of(rounds, 1, lambda r: r["accuracy"].update(max=100.5)),
        "no seconds": line_of(rounds, 1, lambda r: r.pop("seconds")),
        "seconds a list": line_of(rounds, 1, lambda r: r.update(seconds=[])),
        "a cohort of words": line_of(rounds, 1, lambda r: r.update(cohort=["x"])),
        "experts of words": line_of(rounds, 1, lambda r: r.update(experts={"x": []})),
        "failed of numbers": line_of(rounds, 1, lambda r: r.update(failed={"0": 3})),
        "attention a list": line_of(rounds, 1, lambda r: r.update(attention=[])),
        "a round of 400 digits": line_of(rounds, 1, lambda r: r.update(round=10**400)),
        "a negative round": line_of(rounds, 1, lambda r: r.update(round=-1)),
        "seconds of 300 digits": line_of(rounds, 1, lambda r: r["seconds"].update(train=10**300)),
        "bytes of 300 digits": line_of(rounds, 1, lambda r: r["bytes"].update(down=10**300)),
        "a loss of 300 digits": line_of(rounds, 1, lambda r: r.update(train_loss=1e300)),
        "a drift of 300 digits": line_of(rounds, 1, lambda r: r.update(prompt_drift=1e300)),
        "clients of 400 digits": line_of(rounds, 1, lambda r: r.update(clients_seen=10**400)),
        "an expert of 400 digits": line_of(rounds, 2, lambda r: r["experts"].update({"0": [10**400]})),
        "a client of 400 digits": line_of(rounds, 2, lambda r: r["experts"].update({"9" * 400: [1]})),
        "attention of 300 digits": line_of(
            rounds, 2, lambda r: r.update(attention={"local": 1e300, "experts": [1e300]})
        ),
    }
    fine = ("seconds of 300 digits", "bytes of 300 digits", "a loss of 300", "a drift of 300", "attention of 300")
    for name, change in values.items():
        if not name.startswith(fine):
            damages.append(Damage(f"rounds.jsonl with {name}", change, (str(rounds),), REPORTS))
    return damages


def documents() -> list[Damage]:
    damages = []
    for name in ("partition.json", "summary.json"):
        path = RUN / name
        texts = {
            "empty": b"",
            "cut": b'{"a": 1',
            "null": b"null",
            "a list": b"[]",
            "no UTF-8": b"\xff\xfe",
            "deep": BRACKETS,
        }
        fifo = Damage(f"{name} a FIFO", lambda path=path: (path.unlink(), os.mkfifo(path)), (str(path),), REPORTS)
        damages.append(fifo)
        damages += [Damage(f"{name} {n}", writes(path, t), (str(path),), REPORTS) for n, t in texts.items()]
    path = RUN / "partition.json"
    values = {
        "no names": json_of(path, lambda v: v.update(class_names=[])),
        "names of numbers": json_of(path, lambda v: v.update(class_names=[1, 2, 3, 4])),
        "counts of words": json_of(path, lambda v: v.update(counts_train="x")),
        "counts of fractions": json_of(path, lambda v: v["counts_train"].__setitem__(0, [0.5] * 4)),
        "negative counts": json_of(path, lambda v: v["counts_test"].__setitem__(0, [-1] * 4)),
        "huge counts": json_of(path, lambda v: v["counts_test"].__setitem__(0, [10**30] * 4)),
        "fewer clients": json_of(path, lambda v: v["counts_test"].pop()),
        "domains of one": json_of(path, lambda v: v.update(domains=["a"])),
        "no domains": json_of(path, lambda v: v.pop("domains")),
    }
    damages += [Damage(f"partition.json with {n}", c, (str(path),), REPORTS) for n, c in values.items()]
    path = RUN / "summary.json"
    values = {
        "a seed of words": json_of(path, lambda v: v.update(seed="x")),
        "rounds of half": json_of(path, lambda v: v.update(rounds=1.5)),
        "no label": json_of(path, lambda v: v.pop("label")),
        "versions a list": json_of(path, lambda v: v.update(versions=[])),
    }
    return [*damages, *(Damage(f"summary.json with {n}", c, (str(path),), REPORTS) for n, c in values.items())]


def comparisons() -> list[Damage]:
    path = Path("runs/comparison.json")
    texts = {
        "empty": "",
        "cut": '{"labels": ["run"',
        "null": "null",
        "a list": "[]",
        "no labels": "{}",
        "labels of numbers": '{"labels": [1]}',
        "labels twice": '{"labels": ["run", "run"]}',
        "a way out": '{"labels": ["../runs/run"]}',
        "an absolute path": json.dumps({"labels": ["/etc"]}),
        "the parent": '{"labels": [".."]}',
        "an empty label": '{"labels": [""]}',
        "a zero": '{"labels": ["a\\u0000b"]}',
        "half a character": '{"labels": ["\\ud800"]}',
        "deep": "[" * 100_000,
        "no numbers": '{"labels": ["run"], "x": NaN}',
    }
    return [
        Damage(f"comparison.json {n}", writes(path, t), (str(path),), ("comparison", "comparisons"))
        for n, t in texts.items()
    ]
