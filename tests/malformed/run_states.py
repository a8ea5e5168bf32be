"""Checkpoints of a run that are damaged, or whole and not what they say."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save

from malformed.run_damage import (
    BRACKETS,
    NEWEST,
    READERS,
    RUN,
    STATE,
    Change,
    Damage,
    both,
    cuts,
    flips,
    json_of,
    writes,
)


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
