"""Every client evaluates itself on its own test split; the server combines the answers.

Shape letters: K experts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedmoe.defences.guard import Defences
from fedmoe.federation.accuracy import mean_per_domain, quality, summarize
from fedmoe.federation.fleet import Fleet
from fedmoe.federation.under_attack import attack_numbers
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import Downlink, RoundContext, Scored, ScoreJob
from fedmoe.runs.records import ClientScore
from fedmoe.server.state import ServerState


@dataclass(frozen=True)
class Evaluation:
    """All clients' scores after a round (or those of a sample of clients), and what they were scored with."""

    clients: list[ClientScore]
    accuracy: dict[str, float]  # percent: mean, std, min, max, worst_decile over clients
    accuracy_per_domain: dict[str, float]
    experts: dict[str, list[int]]  # client -> ids of its experts
    attention: dict[str, Any] | None  # mean weight of the local expert, and of the others, sorted
    bytes_down: int  # downloaded for the evaluation alone
    failed: dict[str, str] = field(default_factory=dict)  # client -> why its fine-tuning came to nothing
    metrics: dict[str, float] = field(default_factory=dict)  # a method's own, averaged over test images
    validation: dict[str, float] | None = None  # as accuracy, on the validation splits; None without them
    quality: dict[str, float] | None = None  # percent: weighted, balanced, ece
    confusion: list[list[int]] = field(default_factory=list)  # over all clients, true classes in rows
    accuracy_others: dict[str, float] | None = None  # as accuracy, on classes that the client does not train on
    generalization: dict[str, float] | None = None  # runs.records.GeneralizationNumbers; None where it is not asked for
    gate: dict[str, float] | None = None  # runs.records.GateNumbers, means over the clients that have them
    attack: dict[str, float] | None = None  # runs.records.AttackNumbers; None where nobody attacks


def evaluate(
    fleet: Fleet,
    method: Method,
    server: ServerState,
    context: RoundContext,
    num_clients: int,
    clients: Collection[int] | None = None,
    sampled: bool = False,
    *,
    defences: Defences | None = None,
    attackers: Collection[int] = (),
) -> Evaluation:
    """Evaluate every client (or those in ``clients``) on its own test split; one without test examples is left out.

    There is a score of each client; if ``clients`` are a sample, of each client in it.

    Args:
        defences: what clients may get of each other's; None: everything.
        attackers: clients that attack, for the record.
    """
    chosen = range(num_clients) if clients is None else sorted(clients)
    listed = chosen if sampled else range(num_clients)
    about = {i: fleet.about(i) for i in listed}
    asked = [i for i in chosen if about[i].test_examples]
    server.ahead = asked
    served = (defences or Defences()).served(server)
    sent: dict[int, tuple[tuple[int, ...], int]] = {}

    def jobs() -> Iterator[ScoreJob]:
        for client_id in asked:
            downlink: Downlink = method.deploy(served.to(client_id), client_id, context)
            sent[client_id] = (downlink.expert_ids, downlink.nbytes)
            yield ScoreJob(client_id, context.round, server.known(client_id).version, downlink)

    scored: dict[int, Scored] = {}
    missing: dict[int, str] = {}  # clients elsewhere that gave no answer, and why
    confusion = torch.zeros(0, dtype=torch.int64)
    for score in fleet.score(jobs()):
        if not score.total:
            missing[score.client_id] = score.failed or "evaluation: no answer"
            continue
        sums = dict(score.sums)
        own = sums.pop("confusion")  # [C, C]: added at once, as those of many clients would fill the memory
        confusion = confusion + own if len(confusion) else own
        scored[score.client_id] = replace(score, sums=sums)
    if scored.keys() | missing.keys() != set(asked):
        raise ValueError(f"of the clients {asked}, {sorted(scored)} have answered")
    inorder = [scored[i] for i in asked if i in scored]  # whichever answered first, sums are taken in this order
    shares = [scored[i].correct / scored[i].total if i in scored else float("nan") for i in listed]
    scores = [
        ClientScore(
            round=context.round,
            client=i,
            domain=about[i].domain,
            accuracy=100 * share if i in scored else None,
            correct=scored[i].correct if i in scored else 0,
            total=scored[i].total if i in scored else 0,
            train_examples=about[i].train_examples,
            accuracy_others=_others(scored[i]) if i in scored else None,
            gate=_gate(scored[i]) if i in scored else None,
        )
        for i, share in zip(listed, shares, strict=True)
    ]
    return Evaluation(
        scores,
        summarize(shares),
        mean_per_domain(shares, [about[i].domain for i in listed]),
        {str(i): list(sent[i][0]) for i in asked if sent[i][0]},
        _mean_attention(inorder),
        sum(size for _, size in sent.values()),
        {str(i): why for i, why in sorted({**missing, **_failed(inorder)}.items())},
        _mean_metrics(inorder),
        _validation(inorder),
        quality(confusion, torch.stack([score.sums["calibration"] for score in inorder]).sum(dim=0)),
        confusion.tolist(),
        _summary([score.accuracy_others / 100 for score in scores if score.accuracy_others is not None]),
        _means([_generalization(score) for score in inorder if "train" in score.sums]),
        _means([score.gate for score in scores if score.gate is not None]),
        attack_numbers(inorder, {i: ids for i, (ids, _) in sent.items()}, attackers) if attackers else None,
    )


def _failed(scored: Sequence[Scored]) -> dict[int, str]:
    return {score.client_id: score.failed for score in scored if score.failed is not None}


def _validation(scored: Sequence[Scored]) -> dict[str, float] | None:
    counts = [score.sums["validation"].tolist() for score in scored if "validation" in score.sums]
    return _summary([right / total for right, total in counts])


def _summary(shares: Sequence[float]) -> dict[str, float] | None:
    return summarize(shares) if shares else None


def _others(score: Scored) -> float | None:
    """Percent."""
    if "others" not in score.sums:
        return None
    right, total = score.sums["others"].tolist()
    return 100 * right / total


def _generalization(score: Scored) -> dict[str, float]:
    """What the client's training accuracy says, as ``runs.records.GeneralizationNumbers``."""
    right, total = score.sums["train"].tolist()
    return {"train_accuracy": 100 * right / total, "gap": 100 * (right / total - score.correct / score.total)}


def _gate(score: Scored) -> dict[str, float] | None:
    """What the client's gate does, as ``runs.records.GateNumbers``."""
    if "gate" not in score.sums:
        return None
    entropy, top_share, right = score.sums["gate"].tolist()
    return {
        "entropy": entropy / score.total,
        "entropy_p10": float(score.sums["gate_p10"]),
        "top_share": top_share / score.total,
        "expert_contribution": 100 * (score.correct - right) / score.total,
    }


def _means(groups: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """The mean of each number over the clients, each of which counts once."""
    if not groups:
        return None
    return {name: math.fsum(group[name] for group in groups) / len(groups) for name in groups[0]}


def _mean_attention(scored: Sequence[Scored]) -> dict[str, Any] | None:
    """Mean over test images of the local expert's weight, and of the other experts' weights in descending order: as
    each client's means are sorted, and as each image's weights are (figure 6)."""
    have = [score for score in scored if "attention" in score.sums]
    if not have:
        return None
    sums = [score.sums["attention"] for score in have]  # [K + 1], summed over images, the local expert first
    by_client = [torch.cat([weights[:1], weights[1:].sort(descending=True).values]) for weights in sums]
    local, *experts = _mean_by_rank(have, by_client)
    by_image = [score.sums.get("attention_ranked", weights[:0]) for score, weights in zip(have, sums, strict=True)]
    return {"local": local, "experts": experts, "ranked": _mean_by_rank(have, by_image)}


def _mean_by_rank(scored: Sequence[Scored], sums: Sequence[torch.Tensor]) -> list[float]:
    """Sums over each client's test images -> means. Clients may hold different numbers of experts: each rank is
    averaged over those that have it."""
    ranks = max(len(own) for own in sums)
    total, images = torch.zeros(ranks, dtype=torch.float64), torch.zeros(ranks, dtype=torch.float64)
    for score, own in zip(scored, sums, strict=True):
        total[: len(own)] += own
        images[: len(own)] += score.total
    return (total / images).tolist()


def _mean_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """The mean of each of the method's own metrics over the test images of the clients that have it."""
    names = dict.fromkeys(name for score in scored for name, value in score.sums.items() if value.ndim == 0)
    means = {}
    for name in names:
        having = [score for score in scored if name in score.sums]
        means[name] = sum(float(score.sums[name]) for score in having) / sum(score.total for score in having)
    return means
