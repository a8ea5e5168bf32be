"""Scoring clients on their own test splits, with what their method deploys.

Shape letters: b images, C classes, K non-local experts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from fedmoe.client.work import ClientFailure, LocalWork
from fedmoe.features.client_data import FeatureBatches
from fedmoe.federation.accuracy import PerClientAccuracy, mean_per_domain, summarize
from fedmoe.protocol.records import ClientScore, Evaluation, RoundContext
from fedmoe.runs.checkpoint import FederationState

BATCH = 1024  # images; bounds the memory of the gate's weights


@torch.no_grad()
def evaluate(
    work: LocalWork, state: FederationState, context: RoundContext, clients: Collection[int] | None = None
) -> Evaluation:
    """Every client (or those of ``clients``) on its own test split.

    Where a client's fine-tuning fails, it is scored without it and named in ``failed``.
    """
    data, method = work.data, work.method
    num_clients = data.num_clients
    metric = PerClientAccuracy(num_clients)
    experts: dict[str, list[int]] = {}
    failed: dict[str, str] = {}
    attention: list[tuple[int, torch.Tensor]] = []
    bytes_down = 0
    for client_id in range(num_clients) if clients is None else sorted(clients):
        own = data.client(client_id)
        if not len(own.test_labels):
            continue
        try:
            downlink = work.ready(client_id, state.clients[client_id], state.server, context)
        except ClientFailure as failure:
            failed[str(client_id)] = f"fine-tuning: {failure}"
            downlink = method.deploy(state.server, state.clients[client_id], client_id, context)
        bytes_down += downlink.nbytes
        if downlink.expert_ids:
            experts[str(client_id)] = list(downlink.expert_ids)
        device = work.module.prompt.context.device
        for features, labels in FeatureBatches(own.test_features, own.test_labels, BATCH):
            features = features.to(device)
            metric.update(client_id, method.logits(work.module, features).cpu(), labels)
            weights = method.analyse(work.module, features).get("attention")
            if weights is not None:
                attention.append((len(labels), weights.cpu().double()))
    accuracies = metric.compute()
    domains = [data.client(client_id).domain for client_id in range(num_clients)]
    counts = zip(metric.correct.tolist(), metric.total.tolist(), strict=True)
    scores = [
        ClientScore(
            round=context.round,
            client=i,
            domain=domains[i],
            accuracy=100 * accuracies[i].item() if total else None,
            correct=correct,
            total=total,
            train_examples=work.examples(i),
        )
        for i, (correct, total) in enumerate(counts)
    ]
    return Evaluation(
        scores,
        summarize(accuracies),
        mean_per_domain(accuracies, domains),
        experts,
        _mean_attention(attention),
        bytes_down,
        failed,
    )


def _mean_attention(parts: Sequence[tuple[int, torch.Tensor]]) -> dict[str, Any] | None:
    """Mean over test images of the local expert's weight, and of each client's other experts' sorted descending
    (figure 6). Clients may hold fewer experts than others: each rank is averaged over those that have it."""
    if not parts:
        return None
    ranks = max(len(weights) for _, weights in parts)
    total, images = torch.zeros(ranks, dtype=torch.float64), torch.zeros(ranks, dtype=torch.float64)
    for count, weights in parts:  # weights [K + 1], the local expert first
        ranked = torch.cat([weights[:1], weights[1:].sort(descending=True).values])
        total[: len(ranked)] += count * ranked
        images[: len(ranked)] += count
    mean = (total / images).tolist()
    return {"local": mean[0], "experts": mean[1:]}
