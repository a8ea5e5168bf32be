"""Attacks on membership, one file each, and those that an audit makes."""

from fedmoe.audit.membership.alignment import Alignment
from fedmoe.audit.membership.base import Membership, Shadow
from fedmoe.audit.membership.fedmia import FedMIA
from fedmoe.audit.membership.lira import LiRA
from fedmoe.audit.membership.loss import LossThreshold
from fedmoe.audit.membership.pipra import PIPRA

__all__ = ["ATTACKS", "PIPRA", "Alignment", "FedMIA", "LiRA", "LossThreshold", "Membership", "Shadow"]

ATTACKS: tuple[Membership, ...] = (
    LossThreshold(),
    FedMIA("confidence"),
    FedMIA("alignment"),
    Alignment(),
    LiRA("confidence", online=False),
    LiRA("confidence", online=True),
    LiRA("alignment", online=True),
    PIPRA(),
)
