"""How well a finished run's clients do on other data sets: cross-data-set evaluation, as in CoOp and FedTPG.

Each personalized model classifies all test images of each target among the target's own classes. A target that the run
has trained on, such as all of its domains together, is test-time shift: classes and domains of other clients.

Shape letters: b images, d feature width.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedmoe.client.module import ClientModule
from fedmoe.defences.guard import Defences
from fedmoe.federation.accuracy import summarize
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.novel import TestImages, accuracy, personal_models
from fedmoe.protocol.records import RoundContext
from fedmoe.server.state import ServerState


@dataclass(frozen=True)
class TransferScores:
    """Accuracy in percent.

    Attributes:
        targets: target -> mean, std, min, max and worst_decile over clients.
        mean: of the targets' means, unweighted.
        clients: each client's mean over the targets, client by client.
    """

    targets: dict[str, dict[str, float]]
    mean: float
    clients: list[float]


@torch.no_grad()
def score_transfer(
    fleet: LocalFleet,
    server: ServerState,
    context: RoundContext,
    targets: Mapping[str, tuple[ClientModule | None, TestImages]],
    defences: Defences | None = None,
) -> TransferScores:
    """Score every client that takes part in rounds on each target.

    Args:
        targets: name -> a module of the run's method with the target's class names, and the target's test images; None
            where the classes are those of the run, as then what a client stores of its own images can be used.
        defences: what clients may get of each other's; None: everything.
    """
    found: dict[str, list[float]] = {name: [] for name in targets}
    for client_id, _, fitted in personal_models(fleet, server, context, defences):
        for name, (module, images) in targets.items():
            if module is not None:
                module.load(client_id, fitted)
            found[name].append(accuracy(module or fleet.work.module, images))
    summaries = {name: summarize(shares) for name, shares in found.items()}
    each = [100 * statistics.fmean(shares) for shares in zip(*found.values(), strict=True)]
    return TransferScores(summaries, statistics.fmean(one["mean"] for one in summaries.values()), each)
