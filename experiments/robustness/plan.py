"""What is run: methods x attacks x defences, on one federation of the embedded data.

Not every combination: a defence of the average is tried on methods that average, a defence of the pool on those with
experts, and every method has the row without attack and the column without defence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Class = Mapping[str, Any]
ROUNDS = 10
FEDERATION: Mapping[str, Any] = {
    "clip": {"architecture": "fedmoe-tiny", "pretrained": "glyphs"},
    "data": {"class_path": "Digits"},
    "partition": {"class_path": "Dirichlet", "init_args": {"alpha": 0.5, "min_size": 10}},
    "federation": {"clients": 20, "participation": 0.5, "local_epochs": 3, "batch_size": 32},
    "optim": {"prompt_lr": 0.02, "gating_lr": 0.02},
    "runtime": {"threads": 1},
}


@dataclass(frozen=True)
class Choice:
    """A method, an attack or a defence: its key in folder names, its words in the table, and its settings."""

    key: str
    label: str
    settings: Mapping[str, Any]  # top-level ones
    about: str = ""


def _class(name: str, **arguments: Any) -> Class:
    return {"class_path": name, "init_args": arguments}


def _method(key: str, label: str, name: str, **arguments: Any) -> Choice:
    return Choice(key, label, {"method": _class(name, **arguments)})


METHODS: Sequence[Choice] = (
    _method("promptfl", "PromptFL", "PromptFL"),
    _method("fedotp", "FedOTP", "FedOTP"),
    _method("pfedmoap", "pFedMoAP", "PFedMoAP", num_experts=9),
    _method("pfedmoap_random", "pFedMoAP, random experts", "PFedMoAP", num_experts=9, assignment="random"),
    _method("pfedmoap_alone", "pFedMoAP, no experts (control)", "PFedMoAP", num_experts=0),
    _method("neighbours", "Neighbour mixture", "NeighbourMixture", num_experts=9),
)
NEVER = 1_000_000  # a first round of attack that no run reaches


def _attack(key: str, label: str, name: str, about: str, **arguments: Any) -> Choice:
    return Choice(key, label, {"attack": _class(name, share=0.2, **arguments)}, about)


_STRONG: Mapping[str, Any] = {"target": 0, "epochs": 20}
ATTACKS: Sequence[Choice] = (
    _attack("none", "none", "LabelFlip", "the control: the same attackers do nothing", from_round=NEVER),
    _attack("label_flip", "label flip", "LabelFlip", "train on class C - 1 - y"),
    _attack("noise", "noise prompt", "NoisePrompt", "upload noise of the prompt's norm"),
    _attack("huge", "huge norm", "HugeNorm", "upload 100 times the prompt"),
    _attack(
        *("replacement", "model replacement", "ModelReplacement"),
        "train 20 epochs towards class 0, upload 5 times the update",
        **_STRONG,
        scale=5.0,
    ),
    _attack("backdoor", "backdoor", "Backdoor", "train 20 epochs, half the images with a patch and class 0", **_STRONG),
    _attack(
        *("backdoor_scaled", "backdoor, scaled", "Backdoor"),
        "the same, and upload 5 times the update",
        **_STRONG,
        scale=5.0,
    ),
    _attack("copies", "nearest copies", "NearestCopies", "train on class C - 1 - y, upload a tenth of the update"),
)
CONTROLS: Mapping[str, Choice] = {  # attacks whose success is compared with that of attackers who do nothing
    attack.key: Choice(
        f"{attack.key}_never",
        attack.label,
        {
            "attack": _class(
                attack.settings["attack"]["class_path"],
                **{**attack.settings["attack"]["init_args"], "from_round": NEVER},
            )
        },
    )
    for attack in ATTACKS
    if attack.key in ("replacement", "backdoor")
}


def _average(key: str, label: str, name: str, **arguments: Any) -> Choice:
    return Choice(key, label, {"aggregation": _class(name, **arguments)}, "average")


def _pool(key: str, label: str, name: str, **arguments: Any) -> Choice:
    return Choice(key, label, {"screening": _class(name, **arguments)}, "pool")


NO_DEFENCE = Choice("none", "none", {})
DEFENCES: Sequence[Choice] = (
    NO_DEFENCE,
    _average("clipping", "norm clipping", "NormClipping"),
    _average("median", "median", "Median"),
    _average("trimmed", "trimmed mean", "TrimmedMean", trim=0.2),
    _average("krum", "Krum", "Krum", attackers=3),
    _average("multikrum", "multi-Krum", "Krum", attackers=3, keep=5),
    _pool("outliers", "outlier test", "OutlierTest"),
    _pool("reputation", "reputation", "Reputation"),
)
_TRIED: Mapping[str, Sequence[str]] = {  # method -> defences beside none
    "promptfl": ("clipping", "median", "trimmed", "krum", "multikrum"),
    "fedotp": ("median", "multikrum"),
    "pfedmoap": ("clipping", "median", "multikrum", "outliers", "reputation"),
    "pfedmoap_random": ("outliers",),
    "pfedmoap_alone": (),
    "neighbours": ("median", "outliers"),
}


@dataclass(frozen=True)
class Planned:
    """One run."""

    method: Choice
    attack: Choice
    defence: Choice
    seed: int
    rounds: int

    @property
    def name(self) -> str:
        return f"{self.method.key}-{self.attack.key}-{self.defence.key}-seed{self.seed}"

    def settings(self, out: Path) -> dict[str, Any]:
        """All settings of the run, nested as in a file."""
        federation = {**FEDERATION["federation"], "rounds": self.rounds, "evaluate_every": self.rounds}
        output = {"dir": str(out), "name": self.name}
        own = {**FEDERATION, "federation": federation, "seed": self.seed, "output": output}
        return {**own, **self.method.settings, **self.attack.settings, **self.defence.settings}


def plan(seeds: int, rounds: int, methods: Sequence[str] = ()) -> list[Planned]:
    """All runs: those of seed 0, then the core of the other seeds, then the rest, so that an interrupted benchmark has
    a whole table, and several seeds where they matter most."""
    runs = []
    for seed in range(seeds):
        for method in METHODS:
            if methods and method.key not in methods:
                continue
            tried = [defence for defence in DEFENCES if defence.key in ("none", *_TRIED[method.key])]
            runs += [Planned(method, attack, one, seed, rounds) for attack in ATTACKS for one in tried]
            runs += [Planned(method, control, NO_DEFENCE, seed, rounds) for control in CONTROLS.values()]
    return sorted(runs, key=lambda one: (one.seed > 0 and not _is_core(one), one.seed))


def _is_core(one: Planned) -> bool:
    """Whether the run tells what attacks do, or what defences do with the strongest one, to the methods in the text."""
    without = one.defence is NO_DEFENCE and one.attack in ATTACKS
    return one.method.key not in ("fedotp", "pfedmoap_random") and (
        without or (one.attack.key in ("none", "replacement") and one.defence.key in _CORE_DEFENCES)
    )


_CORE_DEFENCES = ("clipping", "median", "multikrum", "outliers")
