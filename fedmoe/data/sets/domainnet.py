"""DomainNet, the ten classes that FedBN took from it (table 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.fedbn_lists import DomainLists


@dataclass(frozen=True, eq=False, kw_only=True)
class DomainNet(DomainLists):
    """DomainNet: 10 classes in 6 domains (clipart, infograph, painting, quickdraw, real, sketch).

    ``<root>/DomainNet/<domain>/<class>/`` holds the images; folders of DomainNet's other 335 classes are not read.
    """

    name = "domainnet"
    folder = "DomainNet"
    classes = (
        "bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra",
    )  # fmt: skip
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    published = PublishedFacts(train=18278, test=4573, classes=10)
