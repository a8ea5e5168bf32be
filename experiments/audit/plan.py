"""What is audited: methods, defences and controls, on one federation of the embedded data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    audit: AuditConfig = AuditConfig()


METHODS: Sequence[Planned] = (
    Planned("pfedmoap", "pFedMoAP", {"method": _class("PFedMoAP", num_experts=9)}),
    Planned("promptfl", "PromptFL", {"method": _class("PromptFL")}),
    Planned("fedotp", "FedOTP", {"method": _class("FedOTP")}),
    Planned("fedpgp", "FedPGP", {"method": _class("FedPGP")}),
    Planned("dpfpl", "DP-FPL", {"method": _class("DPFPL")}),
)
GROUPS: Mapping[str, Sequence[Planned]] = {"methods": METHODS}
