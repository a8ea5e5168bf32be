"""Run and comparison folders that are damaged, of another version, or not what they say: no command changes them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fedmoe import cli, experiment
from fedmoe.models.clip import FrozenCLIP
from malformed.helpers import Refused, each

RUN, STATE = Path("runs/run"), Path("runs/run/state")
NEWEST, BEFORE = STATE / "round-00002", STATE / "round-00001"
Change = Callable[..., Any]
BRACKETS = b"[" * 100_000


@dataclass(frozen=True)
class Damage:
    """What is done to a copy of a finished run, the commands that must refuse it, and what they must say."""

    name: str
    change: Change
    words: tuple[str, ...]
    commands: tuple[str, ...]


def writes(path: Path, content: bytes | str) -> Change:
    return lambda: path.write_bytes(content.encode() if isinstance(content, str) else content)


def edits(path: Path, old: str, new: str) -> Change:
    def edit() -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def cuts(path: Path, share: float) -> Change:
    def cut() -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return cut


def flips(path: Path, share: float) -> Change:
    def flip() -> None:
        whole = bytearray(path.read_bytes())
        whole[int(share * len(whole))] ^= 4
        path.write_bytes(whole)

    return flip


def json_of(path: Path, change: Callable[[Any], Any]) -> Change:
    """A JSON file, changed in place or to what ``change`` returns."""

    def edit() -> None:
        value = json.loads(path.read_text())
        changed = change(value)
        path.write_text(json.dumps(value if changed is None else changed))

    return edit


def line_of(path: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> Change:
    """One record of a JSONL file, changed in place."""

    def edit() -> None:
        lines = path.read_text().splitlines()
        record = json.loads(lines[number])
        change(record)
        lines[number] = json.dumps(record)
        path.write_text("\n".join(lines) + "\n")

    return edit


def both(change: Callable[..., Change], suffix: str) -> Change:
    """The same to both rounds that are kept."""
    return lambda: [change(stem.with_suffix(suffix))() for stem in (NEWEST, BEFORE)]


def sealed(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Change:
    """The newest checkpoint with another manifest and other tensors, all checksums right; the only one there is."""

    def seal() -> None:
        manifest = json.loads(NEWEST.with_suffix(".json").read_text())
        files = {name: load((STATE / name).read_bytes()) for name in manifest["files"]}
        tensors = {name: files[file][key] for name, (file, key) in manifest["tensors"].items()}
        del manifest["checksum"]
        change(manifest, tensors)
        for path in STATE.iterdir():
            path.unlink()
        payload = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
        file = f"{NEWEST.name}.safetensors"
        (STATE / file).write_bytes(payload)
        manifest["files"] = {file: hashlib.sha256(payload).hexdigest()}
        manifest["tensors"] = manifest.pop("places", {name: [file, name] for name in tensors})
        manifest["checksum"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        NEWEST.with_suffix(".json").write_text(json.dumps(manifest))

    return seal


def sealed_bytes(content: bytes) -> Change:
    """The newest checkpoint with a file of tensors that holds something else, all checksums right."""

    def seal() -> None:
        sealed(lambda manifest, tensors: None)()
        manifest = json.loads(NEWEST.with_suffix(".json").read_text())
        NEWEST.with_suffix(".safetensors").write_bytes(content)
        manifest["files"] = {f"{NEWEST.name}.safetensors": hashlib.sha256(content).hexdigest()}
        del manifest["checksum"]
        manifest["checksum"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        NEWEST.with_suffix(".json").write_text(json.dumps(manifest))

    return seal


ALL = ("evaluate", "report", "page", "fit", "resume")
READERS = ("evaluate", "fit", "resume")  # of the state
REPORTS = ("report", "page")


def versions() -> list[Damage]:
    path = RUN / "run.json"
    texts: dict[str, tuple[str | bytes, str]] = {
        "format 0": ('{"format": 0, "fedmoe": "0.0.1"}', "says format 0, written by fedmoe 0.0.1"),
        "format 99": ('{"format": 99, "fedmoe": "9.9"}', "says format 99, written by fedmoe 9.9"),
        "no format": ("{}", "says format None, written by fedmoe another version"),
        "format in words": ('{"format": "2"}', "says format '2'"),
        "a list": ("[]", "says format None"),
        "null": ("null", "says format None"),
        "empty": ("", "cannot be read"),
        "garbled": ("{", "cannot be read"),
        "no UTF-8": (b"\xff\xfe{", "cannot be read"),
        "deep": (BRACKETS, "cannot be read"),
    }
    folder = Damage("run.json a folder", lambda: (path.unlink(), path.mkdir()), (str(path), "cannot be read"), ALL)
    long = json.dumps({"format": 3, "fedmoe": "x" * 10_000 + "\n\x1b[2J"})
    return [
        *(
            Damage(f"run.json {name}", writes(path, text), (str(path), words), ALL)
            for name, (text, words) in texts.items()
        ),
        Damage("run.json hostile", writes(path, long), (str(path), "says format 3"), ALL),
        # Logs have not changed since format 1, so that such a run is still reported (test_report).
        Damage("run.json format 1", writes(path, '{"format": 1, "fedmoe": "0.1.0"}'), ("says format 1",), READERS),
        Damage("run.json missing", path.unlink, ("has no run.json", "format 1"), READERS),
        folder,
        Damage(
            "run.json a FIFO", lambda: (path.unlink(), os.mkfifo(path)), (str(path), "valid is a regular file"), REPORTS
        ),
    ]


def settings() -> list[Damage]:
    path = RUN / "config.yaml"
    commands = ("evaluate", "resume")
    texts: dict[str, tuple[bytes | str, str]] = {
        "empty": ("", "is empty"),
        "a list": ("- seed", "valid is a YAML mapping"),
        "binary": (bytes(range(256)), "valid"),
        "an unknown key": ("sede: 3", "line 1: sede is not a known setting; did you mean 'seed'?"),
        "a wrong type": ("seed: many", "line 1: seed is 'many'"),
        "a function": ("method: {class_path: os.system, init_args: {command: touch canary}}", "'os.system'"),
        "a tag": ("seed: !!python/object/apply:os.system ['touch canary']", "is not valid YAML"),
        "laughs": ("a: &a [1, 1]\nb: &b [*a, *a]\n" * 0 + "seed: &a [*a]", "aliases"),
        "deep": (b"seed: " + BRACKETS, "is not valid YAML"),
    }
    damages = [Damage(f"config.yaml {n}", writes(path, t), (str(path), w), commands) for n, (t, w) in texts.items()]
    reported: dict[str, str | bytes] = {
        "laughs": "method: {class_path: CoOp, init_args: {a: &a [1], b: &b [*a]}}\nseed: &c [*c]",
        "deep": "method: " + "[" * 20_000,
        "a tag": "seed: !!python/object/apply:os.system ['touch canary']",
        "bool of no bool": "seed: !!bool maybe",
        "empty": "",
        "a list": "[]",
        "no method": "seed: 3",
        "a method of no class": "seed: 3\nmethod: 3",
        "binary": b"\xff\xfe",
    }
    damages += [
        Damage(f"config.yaml {n} in a report", writes(path, t), (str(path),), REPORTS) for n, t in reported.items()
    ]
    missing = (str(RUN), "not a run folder")
    return [
        *damages,
        Damage("config.yaml missing", path.unlink, missing, ("evaluate",)),
        Damage("config.yaml missing at resume", path.unlink, (str(RUN),), ("resume",)),
        Damage("config.yaml cut", writes(path, "clip:\n  architec"), (str(path), "is 'architec'"), commands),
        Damage("config.yaml a folder", lambda: (path.unlink(), path.mkdir()), (str(RUN),), ("evaluate", "resume")),
        Damage(
            "config.yaml of another run", edits(path, "length: 2", "length: 3"), ("prompt.length = 3, not 2",), ("fit",)
        ),
    ]


def states() -> list[Damage]:
    whole = (str(STATE), "is whole")
    cases = {
        f"{suffix[1:]} {how.__name__} at {share}": both(lambda path, how=how, share=share: how(path, share), suffix)
        for suffix in (".json", ".safetensors")
        for how in (cuts, flips)
        for share in (0.0, 0.02, 0.5, 0.97)
    }
    contents = {"empty": b"", "null": b"null", "a list": b"[]", "a number": b"3", "deep": BRACKETS, "no UTF-8": b"\xff"}
    cases |= {f"json {name}": both(lambda path, c=c: writes(path, c), ".json") for name, c in contents.items()}
    cases["tensors missing"] = both(lambda path: path.unlink, ".safetensors")
    damages = [Damage(f"state: {name}", change, whole, READERS) for name, change in cases.items()]
    for number in (0, 1, 99, None, "2"):
        change = both(lambda path, n=number: json_of(path, lambda m: m.update(format=n)), ".json")
        words = (str(STATE), f"has the format {number!r}", "reads format 2")
        damages.append(Damage(f"state: format {number!r}", change, words, READERS))
    none = Damage("state: missing", lambda: shutil.rmtree(STATE), (str(RUN), "holds no checkpoint"), ("evaluate",))
    return [*damages, none]


def contents() -> list[Damage]:
    """Checkpoints whose checksums are right and whose contents are not."""

    def tensor(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Change:
        return sealed(lambda manifest, tensors: tensors.update({name: value(tensors[name])}))

    def manifest(**changes: Any) -> Change:
        return sealed(lambda manifest, tensors: manifest.update(changes))

    def prompts(value: Callable[[torch.Tensor], torch.Tensor]) -> Change:
        """All alike, so that nothing but the settings says that they are wrong."""
        return sealed(lambda m, t: t.update({name: value(t[name]) for name in t if name.endswith("/prompt")}))

    def without(name: str) -> Change:
        return sealed(lambda manifest, tensors: tensors.pop(name) is None)

    gate = "client/0/parameters/gate.query.weight"
    cases = {
        "all prompts of other width": prompts(lambda t: t[..., :-1]),
        "all prompts of other length": prompts(lambda t: t[..., :1, :]),
        "prompt of other width": tensor("shared/prompt", lambda t: t[:, :-1]),
        "prompt of other length": tensor("shared/prompt", lambda t: torch.cat([t, t])),
        "prompt of one vector": tensor("shared/prompt", lambda t: t[0]),
        "prompt of no vector": tensor("shared/prompt", lambda t: t[:0]),
        "prompt that broadcasts": tensor("shared/prompt", lambda t: t[:1]),
        "prompt of halves": tensor("shared/prompt", lambda t: t.half()),
        "prompt of integers": tensor("shared/prompt", lambda t: t.long()),
        "prompt of no numbers": tensor("shared/prompt", lambda t: t * float("nan")),
        "client's prompt of other width": tensor("client/0/parameters/prompt", lambda t: t[:, :-1]),
        "client's prompt that broadcasts": tensor("client/0/parameters/prompt", lambda t: t[:1]),
        "pool of other width": tensor("pool/1/prompt", lambda t: t[:, :-1]),
        "experts of other width": tensor("client/0/experts/prompt", lambda t: t[..., :-1]),
        "gate of other shape": tensor(gate, lambda t: t[:-1]),
        "gate of integers": tensor(gate, lambda t: t.long()),
        "all gates of other shape": sealed(
            lambda m, t: t.update({name: value[:-1] for name, value in t.items() if name.endswith("query.weight")})
        ),
        "all gates missing": sealed(lambda m, t: [t.pop(name) for name in list(t) if name.endswith("query.weight")]),
        "gate missing": without(gate),
        "gate of one more": sealed(lambda m, t: t.update({"client/0/parameters/gate.more": torch.ones(2)})),
        "prompt missing": without("shared/prompt"),
        "initial of an older format": sealed(lambda m, t: t.update(initial=t["shared/prompt"])),
        "client's prompt missing": without("client/0/parameters/prompt"),
        "pool of a word": sealed(lambda m, t: t.update({"pool/x/prompt": t["pool/0/prompt"]})),
        "pool of no client": sealed(lambda m, t: t.update({"pool/7/prompt": t["pool/0/prompt"]})),
        "clients of 10**12": manifest(num_clients=10**12),
        "clients of words": manifest(num_clients="3"),
        "fewer clients": manifest(num_clients=2),
        "more clients": manifest(num_clients=4),
        "no clients": manifest(num_clients=0),
        "a negative client": sealed(lambda m, t: m["clients"].update({"-1": m["clients"]["0"]})),
        "a client of words": sealed(lambda m, t: m["clients"].update({"x": m["clients"]["0"]})),
        "a client too many": sealed(lambda m, t: m["clients"].update({"9": m["clients"]["0"]})),
        "clients a list": manifest(clients=[]),
        "experts of words": sealed(lambda m, t: m["clients"]["0"].update(expert_ids="ab")),
        "experts of no client": sealed(lambda m, t: m["clients"]["0"].update(expert_ids=[77])),
        "a version of words": sealed(lambda m, t: m["clients"]["0"].update(version="2")),
        "a version to come": sealed(lambda m, t: m["clients"]["0"].update(version=3)),
        "no version": sealed(lambda m, t: m["clients"]["0"].pop("version")),
        "a pool of nothing": manifest(pooled=[]),
        "a pool of another part": manifest(pooled=["prompt", "gate"]),
        "nothing kept": manifest(kept=[]),
        "rounds of words": sealed(lambda m, t: m["clients"]["0"].update(rounds_seen="x")),
        "round of words": manifest(round="2"),
        "round of null": manifest(round=None),
        "round of half": manifest(round=1.5),
        "round of the name": manifest(round=7),
        "a negative round": manifest(round=-5),
        "places of words": manifest(places={"shared/prompt": "ab"}),
        "places elsewhere": manifest(places={"shared/prompt": ["../../x.safetensors", "shared/prompt"]}),
        "places a list": manifest(places=[]),
        "a header of 10**12": sealed_bytes((10**12).to_bytes(8, "little") + b"{}"),
        "a header of nothing": sealed_bytes((2).to_bytes(8, "little") + b"{}"),
        "no safetensors": sealed_bytes(b"no tensors at all"),
        "a pickle as tensors": sealed_bytes(b"cposix\nsystem\n(Vtouch canary\ntR."),
    }
    return [Damage(f"sealed: {name}", change, (str(STATE),), ("evaluate", "resume")) for name, change in cases.items()]


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


def outputs() -> list[Damage]:
    """Whole run folders, and an output that cannot be; the commands are those of ``OUTPUTS``."""
    words = {
        "overwrite with a wrong gate": "method.gating_dim is 48",
        "overwrite with a long prompt": "prompt.length = 75",
        "overwrite with too many clients": "partition.min_size",
        "overwrite and resume": "valid is one of the two",
        "overwrite of no run": "holds no run of fedmoe",
        "a run under a file": "config.yaml",
        "a page of text": "page.txt",
        "a page of records": "rounds.jsonl",
        "a page that is a folder": "runs/run/state.html",
        "a page under a file": "x.html",
        "a picture that is a folder": "runs/run/state",
        "a picture under a file": "config.yaml/picture.png",
    }
    folder = Path("runs/run/state.html")
    return [Damage(name, lambda: folder.mkdir(), (word,), (name,)) for name, word in words.items()]


KINDS = {
    "outputs": outputs(),
    "versions": versions(),
    "settings": settings(),
    "states": states(),
    "contents of states": contents(),
    "logs": logs(),
    "documents": documents(),
    "comparisons": comparisons(),
}


@dataclass(frozen=True)
class Refusal:
    name: str
    damage: Damage
    command: str


CASES = [
    Refusal(f"{damage.name}: {command}", damage, command)
    for damages in KINDS.values()
    for i, damage in enumerate(damages)
    for command in {damage.commands[i % len(damage.commands)]}  # in turn: all of them would take minutes
]


@pytest.fixture
def commands(fit_args: list[str]) -> dict[str, list[str]]:
    own = [arg for arg in fit_args if arg.startswith("--features")]
    return {
        "evaluate": ["evaluate", "runs/run"],
        "report": ["report", "runs/run"],
        "page": ["report", "runs/run", "--html=page.html"],
        "fit": [*fit_args, "--federation.rounds=3"],
        "resume": ["fit", "--resume=runs/run", *own, "--federation.rounds=3"],
        "overwrite with a wrong gate": [*fit_args, "--output.overwrite=true", "--method.gating_dim=48"],
        "overwrite with a long prompt": [*fit_args, "--output.overwrite=true", "--prompt.length=75"],
        "overwrite with too many clients": [*fit_args, "--output.overwrite=true", "--federation.clients=40"],
        "overwrite and resume": ["fit", "--resume=runs/run", *own, "--output.overwrite=true"],
        "overwrite of no run": [*fit_args, "--output.overwrite=true", "--output.dir=runs/run", "--output.name=state"],
        "a run under a file": [*fit_args, "--output.dir=runs/run/config.yaml"],
        "a page of text": ["report", "runs/run", "--html=page.txt"],
        "a page of records": ["report", "runs/run", "--html=runs/run/rounds.jsonl"],
        "a page that is a folder": ["report", "runs/run", "--html=runs/run/state.html"],
        "a page under a file": ["report", "runs/run", "--html=runs/run/config.yaml/x.html"],
        "a picture that is a folder": ["partition", *fit_args[1:], "--picture=runs/run/state"],
        "a picture under a file": ["partition", *fit_args[1:], "--picture=runs/run/config.yaml/picture.png"],
        "comparison": ["report", "runs"],
        "comparisons": ["report", "runs", "--html=page.html"],
    }


def test_there_are_many_cases() -> None:
    counts = {kind: len(damages) for kind, damages in KINDS.items()}
    assert sum(counts.values()) >= 200, counts
    assert {case.command for case in CASES} >= {*ALL, "comparison", "comparisons"}


@pytest.fixture
def _one_clip(monkeypatch: pytest.MonkeyPatch, embedded_clip: FrozenCLIP) -> None:
    """CLIP is frozen: the one that was loaded first serves all cases."""
    monkeypatch.setattr(experiment, "load_clip", lambda _: embedded_clip)


@pytest.mark.usefixtures("_one_clip", "bounded")
@each(CASES)
def test_a_run_folder_is_refused(
    case: Refusal, whole_run: Path, commands: dict[str, list[str]], refused: Refused
) -> None:
    shutil.copytree(whole_run / "runs", "runs")
    case.damage.change()
    refused(commands[case.command], *case.damage.words)


def test_a_run_of_format_1_is_still_reported(whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and settings have not changed since; its run.json may be missing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole_run / "runs", "runs")
    (RUN / "run.json").write_text('{"format": 1, "fedmoe": "0.1.0"}')
    assert cli.main(["report", str(RUN)]) == 0
    (RUN / "run.json").unlink()
    assert cli.main(["report", str(RUN)]) == 0


@pytest.mark.usefixtures("_one_clip")
def test_a_comparison_with_a_run_of_another_version(
    whole_run: Path, commands: dict[str, list[str]], refused: Refused
) -> None:
    """Nothing of it is written anew, though only its last run is of another version."""
    Path("runs/both").mkdir(parents=True)
    shutil.copytree(whole_run / "runs" / "run", "runs/both/CoOp")
    Path("runs/both/CoOp/run.json").write_text('{"format": 99}')
    Path("runs/both/comparison.json").write_text('{"labels": ["ZeroShot", "CoOp"], "results": [{"a": 1}]}')
    own = [arg for arg in commands["fit"] if not arg.startswith("--method")]
    refused([*own, "--output.name=both", "--methods=[ZeroShot,CoOp]"], "runs/both/CoOp/run.json says format 99")


@pytest.mark.parametrize("command", ["evaluate", "report", "page", "fit", "resume"])
def test_the_whole_folder_is_taken(command: str, whole_run: Path, commands: dict[str, list[str]], here: Path) -> None:
    shutil.copytree(whole_run / "runs", "runs")
    assert cli.main(commands[command]) == 0
