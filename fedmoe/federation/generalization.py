"""What a finished run is good for beyond its clients' own data: base and novel classes, and clients that join late.

Classes: a run with ``data.subset.classes`` = B learns the first B classes of the data set, the base classes; the
others are novel. Each personalized model is scored on three sets, as in CoCoOp (Zhou et al., CVPR 2022, arXiv
2203.05557) and FedPGP (Cui et al., ICML 2024, section 5.1), choosing only among the classes of that set:

- own: the client's own test images, among the classes it has training images of;
- base: all test images of the base classes, among the base classes;
- novel: all test images of the novel classes, among the novel classes.

Late clients: the last ``federation.late_clients`` take part in no round. Each is scored as it comes, and after it has
trained for some rounds alone: it downloads what the method sends, trains, and its prompt enters the pool, from which
it may get experts in its next round. The global prompt and the other clients stay as they are.

Shape letters: b images, C classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import harmonic_mean

import numpy as np
import torch
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientFailure, LocalWork
from fedmoe.errors import UserError
from fedmoe.features.client_data import FeatureBatches
from fedmoe.federation.accuracy import summarize
from fedmoe.federation.evaluation import BATCH, evaluate
from fedmoe.protocol.records import RoundContext
from fedmoe.runs.checkpoint import FederationState
from fedmoe.server.state import ServerState


@dataclass(frozen=True, eq=False)
class TestImages:
    """Test images and their labels, counted from 0 within their set of classes."""

    features: Tensor  # [n, d]
    labels: Tensor  # [n]


@dataclass(frozen=True)
class ClassScores:
    """Accuracy over clients in percent (mean, std, min, max, worst_decile) on own, base and novel classes.

    ``harmonic_mean`` is that of the means on base and novel classes (CoCoOp), ``harmonic_mean_of_three`` that of all
    three (FedPGP).
    """

    own: dict[str, float]
    base: dict[str, float]
    novel: dict[str, float]
    harmonic_mean: float
    harmonic_mean_of_three: float


@torch.no_grad()
def score_classes(
    work: LocalWork,
    novel_module: ClientModule,
    state: FederationState,
    context: RoundContext,
    base: TestImages,
    novel: TestImages,
) -> ClassScores:
    """Score every client that takes part in rounds on its own, the base and the novel classes.

    Args:
        work: the run's clients, whose module knows the base classes.
        novel_module: a module of the same method with the novel class names.
    """
    own_scores, base_scores, novel_scores = [], [], []
    for client_id in range(work.config.participants):
        data, own = work.data.client(client_id), state.clients[client_id]
        downlink = work.ready(client_id, own, state.server, context)
        classes = data.train_labels.unique()  # ascending
        mine = torch.isin(data.test_labels, classes)
        labels = torch.searchsorted(classes, data.test_labels[mine])
        own_scores.append(_accuracy(work, work.module, TestImages(data.test_features[mine], labels), classes))
        base_scores.append(_accuracy(work, work.module, base))
        loadout = replace(
            work.method.inference(state.server, own, downlink),
            prompt=work.module.export_prompt(),  # after fine-tuning, where the method does that
            personal=work.module.export_personal() or None,
        )
        novel_module.load(client_id, loadout, work.seed)
        novel_scores.append(_accuracy(work, novel_module, novel))
    own_found, base_found, novel_found = summarize(own_scores), summarize(base_scores), summarize(novel_scores)
    means = [found["mean"] for found in (own_found, base_found, novel_found)]
    return ClassScores(own_found, base_found, novel_found, harmonic_mean(means[1:]), harmonic_mean(means))


def _accuracy(work: LocalWork, module: ClientModule, images: TestImages, classes: Tensor | None = None) -> float:
    """The share of images that are classified right, among ``classes`` or all that the module knows; nan of none."""
    device, right = module.prompt.context.device, 0
    for features, labels in FeatureBatches(images.features, images.labels, BATCH):
        logits = work.method.logits(module, features.to(device)).cpu()  # [b, C]
        right += int(((logits if classes is None else logits[:, classes]).argmax(dim=1) == labels).sum())
    return right / len(images.labels) if len(images.labels) else float("nan")


@dataclass(frozen=True)
class LateScores:
    """Accuracy over the late clients in percent, as they come and after ``rounds`` rounds of ``epochs`` epochs."""

    clients: Sequence[int]
    rounds: int
    epochs: int
    as_they_come: dict[str, float]
    joined: dict[str, float]


def score_late_clients(work: LocalWork, state: FederationState, rounds: int) -> LateScores:
    """Score the late clients on their own test splits, before and after each has joined by itself.

    A method that never trains (zero-shot) has the same score twice.

    Raises:
        UserError: a client's training fails, or no late client has test examples.
    """
    late = list(range(work.config.participants, work.config.clients))
    context = RoundContext(state.round, (), work.seed)
    before = evaluate(work, state, context, late)
    after: list[float] = []
    for client_id in late:
        joined = _join(work, state, client_id, rounds if work.config.rounds else 0)
        score = evaluate(work, joined, replace(context, round=joined.round), [client_id]).clients[client_id]
        after.append(score.correct / score.total if score.total else float("nan"))
    return LateScores(late, rounds, work.config.local_epochs, before.accuracy, summarize(np.array(after)))


def _join(work: LocalWork, state: FederationState, client_id: int, rounds: int) -> FederationState:
    """The state after a client has trained for some rounds alone; the given one stays as it is."""
    server = ServerState(state.server.prompt, dict(state.server.pool), dict(state.server.extras))
    joined = FederationState(state.round, state.initial, server, list(state.clients))
    for _ in range(rounds):
        joined.round += 1
        context = RoundContext(joined.round, (client_id,), work.seed)
        downlink = work.method.configure(server, client_id, context)
        try:
            trained = work.train(client_id, joined.clients[client_id], downlink, context)
        except ClientFailure as failure:
            raise UserError(f"Client {client_id} could not join: {failure}.") from failure
        joined.clients[client_id] = trained.kept
        if trained.update.prompt is not None:
            server.pool[client_id] = trained.update.prompt
    return joined
