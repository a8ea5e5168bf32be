"""Office-Caltech10 (table 4 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.fedbn_lists import DomainLists


@dataclass(frozen=True, eq=False, kw_only=True)
class OfficeCaltech10(DomainLists):
    """Office-Caltech10: 10 classes in 4 domains (amazon, caltech, dslr, webcam).

    ``<root>/office_caltech_10/<domain>/<class>/`` holds the images.
    """

    name = "office_caltech10"
    folder = "office_caltech_10"
    classes = (
        "back_pack", "bike", "calculator", "headphones", "keyboard", "laptop_computer", "monitor", "mouse", "mug",
        "projector",
    )  # fmt: skip
    domains = ("amazon", "caltech", "dslr", "webcam")
    published = PublishedFacts(train=2025, test=508, classes=10)
