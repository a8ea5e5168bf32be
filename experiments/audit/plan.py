"""What is audited: methods, defences and controls, on one federation of the embedded data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedmoe.audit.settings import AuditConfig

Class = Mapping[str, Any]


def _class(name: str, **arguments: Any) -> Class:
    return {"class_path": name, "init_args": arguments}


@dataclass(frozen=True)
class Planned:
    """One audit: settings beside those of configs/audit.yaml, and how it is made."""

    key: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    audit: AuditConfig = field(default_factory=lambda: AuditConfig(property_trials=0))


_FEWER = AuditConfig(trials=8, audited=4, property_trials=0)
METHODS: Sequence[Planned] = (
    Planned("pfedmoap", "pFedMoAP", {"method": _class("PFedMoAP", num_experts=9)}),
    Planned("promptfl", "PromptFL", {"method": _class("PromptFL")}),
    Planned("fedotp", "FedOTP", {"method": _class("FedOTP")}, _FEWER),
    Planned("fedpgp", "FedPGP", {"method": _class("FedPGP")}, _FEWER),
    Planned("dpfpl", "DP-FPL", {"method": _class("DPFPL")}, _FEWER),
)
PROPERTIES = tuple(replace(one, audit=AuditConfig(property_trials=8)) for one in METHODS)


def _pfedmoap(key: str, label: str, **settings: Any) -> Planned:
    """pFedMoAP under a defence, attacked with fewer federations."""
    method = _class("PFedMoAP", num_experts=9)
    attacks = ("loss threshold", "FedMIA, loss", "LiRA offline", "LiRA online")
    audit = AuditConfig(trials=8, audited=8, property_trials=0, attacks=attacks)
    return Planned(key, label, {"method": method, **settings}, audit)


DEFENCES: Sequence[Planned] = (
    _pfedmoap("none", "none"),
    _pfedmoap("noise-0.03", "noise 0.03", serving=_class("Noise", std=0.03)),
    _pfedmoap("groups-3", "groups of 3", serving=_class("Groups", size=3)),
    _pfedmoap("rank-1", "rank 1", serving=_class("LowRank", rank=1)),
    _pfedmoap("bits-2", "2 bits", serving=_class("Quantized", bits=2)),
    _pfedmoap("size-50", "owners of 50", screening=_class("MinimumSize", least=50)),
    _pfedmoap("noise-0.1", "noise 0.1", serving=_class("Noise", std=0.1)),
    _pfedmoap("groups-5", "groups of 5", serving=_class("Groups", size=5)),
    _pfedmoap("noise-0.01", "noise 0.01", serving=_class("Noise", std=0.01)),
)
GROUPS: Mapping[str, Sequence[Planned]] = {"methods": METHODS, "properties": PROPERTIES, "defences": DEFENCES}
