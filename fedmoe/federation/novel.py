"""How well a finished run generalizes beyond its clients' own classes.

A run with ``data.subset.classes`` = B learns the first B classes of the data set, the base classes; the others are
novel. Each personalized model is scored in four ways, as in CoCoOp (Zhou et al., CVPR 2022, arXiv 2203.05557) and
FedPGP (Cui et al., ICML 2024, section 5.1), choosing only among the classes of that set:

- own: the client's own test images, among the classes it has training images of;
- local: the same images, among all base classes, as FedPGP's and FedMGP's code does;
- base: all test images of the base classes, among the base classes;
- novel: all test images of the novel classes, among the novel classes.

Shape letters: b images, C classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import harmonic_mean

import torch
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.client.work import BATCH
from fedmoe.defences.guard import Defences
from fedmoe.features.client_data import ClientData, FeatureBatches
from fedmoe.federation.accuracy import summarize
from fedmoe.federation.fleet import LocalFleet
from fedmoe.protocol.records import Loadout, RoundContext, ScoreJob
from fedmoe.server.state import ServerState


@dataclass(frozen=True, eq=False)
class TestImages:
    """Test images and their labels, which count from 0 within their set of classes."""

    features: Tensor  # [n, d]
    labels: Tensor  # [n]


@dataclass(frozen=True)
class ClassScores:
    """Accuracy over clients in percent (mean, std, min, max, worst_decile): own, local, base and novel.

    ``harmonic_mean`` is that of the means on base and novel classes (CoCoOp), ``harmonic_mean_of_three`` that of own,
    base and novel, and ``harmonic_mean_with_local`` that of local, base and novel (pFedMMA).
    ``combined`` is (local + harmonic_mean) / 2, FedMGP's CM. ``clients`` has each client's own, local, base and novel,
    client by client.
    """

    own: dict[str, float]
    base: dict[str, float]
    novel: dict[str, float]
    harmonic_mean: float
    harmonic_mean_of_three: float
    local: dict[str, float]
    harmonic_mean_with_local: float
    combined: float
    clients: dict[str, list[float]]


@torch.no_grad()
def score_classes(
    fleet: LocalFleet,
    novel_module: ClientModule,
    server: ServerState,
    context: RoundContext,
    base: TestImages,
    novel: TestImages,
    defences: Defences | None = None,
) -> ClassScores:
    """Score every client that takes part in rounds on its own, on the base, and on the novel classes.

    Args:
        fleet: the run's clients, whose module knows the base classes.
        novel_module: a module of the same method with the novel class names.
        defences: what clients may get of each other's; None: everything.
    """
    module = fleet.work.module
    found: dict[str, list[float]] = {"own": [], "local": [], "base": [], "novel": []}
    for client_id, data, fitted in personal_models(fleet, server, context, defences):
        classes = data.train_labels.unique()  # ascending
        mine = torch.isin(data.test_labels, classes)
        labels = torch.searchsorted(classes, data.test_labels[mine])
        found["own"].append(accuracy(module, TestImages(data.test_features[mine], labels), classes))
        found["local"].append(accuracy(module, TestImages(data.test_features[mine], data.test_labels[mine])))
        found["base"].append(accuracy(module, base))
        novel_module.load(client_id, fitted)
        found["novel"].append(accuracy(novel_module, novel))
    own, local, base_found, novel_found = map(summarize, found.values())
    both = [base_found["mean"], novel_found["mean"]]
    return ClassScores(
        own,
        base_found,
        novel_found,
        harmonic_mean(both),
        harmonic_mean([own["mean"], *both]),
        local,
        harmonic_mean([local["mean"], *both]),
        (local["mean"] + harmonic_mean(both)) / 2,
        {name: [100 * share for share in shares] for name, shares in found.items()},
    )


def personal_models(
    fleet: LocalFleet, server: ServerState, context: RoundContext, defences: Defences | None = None
) -> Iterator[tuple[int, ClientData, Loadout]]:
    """Each client that takes part in rounds, with its data and what it predicts with (after fine-tuning, where the
    method does that); the fleet's module holds it until the next one."""
    work, served = fleet.work, (defences or Defences()).served(server)
    for client_id in range(work.config.participants):
        version = server.known(client_id).version
        downlink = work.method.deploy(served.to(client_id), client_id, context)
        loadout = work.ready(ScoreJob(client_id, context.round, version, downlink), fleet.kept.get(client_id, version))
        yield client_id, work.data.client(client_id), replace(loadout, parameters=work.module.export())


def accuracy(module: ClientModule, images: TestImages, classes: Tensor | None = None) -> float:
    """Fraction of images classified correctly among ``classes`` (or all that the module knows); nan without images."""
    right = 0
    for features, labels in FeatureBatches(images.features, images.labels, BATCH):
        logits = module(features.to(module.device)).cpu()  # [b, C]
        right += int(((logits if classes is None else logits[:, classes]).argmax(dim=1) == labels).sum())
    return right / len(images.labels) if len(images.labels) else float("nan")
