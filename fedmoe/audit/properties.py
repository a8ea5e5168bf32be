"""Which classes does an owner hold, and in what proportions? Inferred from its prompt.

The game: the training images are halved by fair coins. The attacker has one half, and trains shadow federations on it;
the victims' federations train on the other. Every federation has a partition of its own, drawn by the run's rule, so
that no shadow has a victim's proportions. What an attacker has of a client (``threats``) is shown the attacker's own
images; from what it answers, ridge regression infers the client's class proportions. The guess without any prompt is
the mean over shadow clients, the prior; the control is a regression on shuffled shadow clients.

Shape letters: n clients, C classes, b images of the attacker, V victims' clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe.audit.judge import Judge
from fedmoe.audit.rates import auc
from fedmoe.audit.settings import AuditConfig
from fedmoe.audit.threats import THREATS, Threat
from fedmoe.audit.transcript import Transcript, play
from fedmoe.data.partition import partition_dataset
from fedmoe.errors import UserError
from fedmoe.experiment import Session
from fedmoe.features.client_data import FederatedData
from fedmoe.protocol.method import Method
from fedmoe.seeds import derive, numpy_generator

_RESAMPLES = 1000
_DRAWS = 50  # of a partition, until every client has an image of the half


@dataclass(frozen=True)
class Owner:
    """A client: what was seen of it [2 C], and its class proportions [C]."""

    seen: np.ndarray
    proportions: np.ndarray


def infer_proportions(session: Session, method: Method, config: AuditConfig) -> dict[str, Any] | None:
    """Errors of the inferred class proportions by threat; a sentence in their place where the game cannot be played.

    Errors are l1 distances to the true proportions, 0 to 2, mean over the victims' clients.
    """
    trials = config.property_trials
    if not trials:
        return None
    try:
        drawn = [_draw(session, method, trial, own=trial < trials - trials // 4) for trial in range(trials)]
    except UserError as error:
        return {"not_inferred": str(error)}
    counts = [np.array(data.summary()["counts_train"]) for data, _ in drawn]
    if all(np.array_equal(counts[0], other) for other in counts[1:]):
        return {"not_inferred": "The partition is the same for every seed, so that shadows would know the answer."}
    public, labels = drawn[0][1], torch.from_numpy(session.experiment.data.train.labels[_halves(session)])
    judge = Judge(session.module(method, drawn[0][0].class_names), public, labels)
    shadows: dict[str, list[Owner]] = {}
    victims: dict[str, list[Owner]] = {}
    for trial, (data, _) in enumerate(drawn):
        seed = derive(session.experiment.seed, "audit", "property", trial)
        transcript = play(session, method, data, seed, lambda _client: public)
        truth = counts[trial] / counts[trial].sum(axis=1, keepdims=True)
        own = trial < trials - trials // 4
        for threat in THREATS:
            found = observed(threat, transcript, judge, own)
            place = shadows if own else victims
            place.setdefault(threat.label, []).extend(Owner(seen, truth[i]) for i, seen in found.items())
    rows = [
        {"threat": threat.label, **score(shadows[threat.label], victims[threat.label])}
        for threat in THREATS
        if shadows.get(threat.label) and victims.get(threat.label)
    ]
    return {"shadow_federations": trials - trials // 4, "victim_federations": trials // 4, "rows": rows}


def _halves(session: Session) -> np.ndarray:
    """Which training images are the attacker's, bool."""
    e = session.experiment
    return numpy_generator(e.seed, "audit", "halves").random(len(e.data.train.labels)) < 0.5


def _draw(session: Session, method: Method, trial: int, own: bool) -> tuple[FederatedData, Tensor]:
    """A federation's data on one of the halves, and the features of all of the attacker's images.

    Raises:
        UserError: clients are left without images, or training images are left out of the partition's order.
    """
    e, mine = session.experiment, _halves(session)
    for attempt in range(_DRAWS):
        seed = derive(e.seed, "audit", "partition", trial, attempt)
        indices = partition_dataset(e.data, e.partition, e.federation.clients, seed)
        chosen = [torch.from_numpy(np.flatnonzero(mine[client.train] == own)) for client in indices]
        if min(len(own_half) for own_half in chosen):
            break
    else:
        raise UserError(f"In {_DRAWS} draws of the partition some client had no image of one half of the data.")
    data = Session(replace(e, seed=seed), session.console, session.clip).data(method)
    if any(len(data.client(i).train_labels) != len(client.train) for i, client in enumerate(indices)):
        raise UserError("Clients do not train on all images of the partition, as with federation.validation.")
    order = np.argsort(np.concatenate([client.train for client in indices]))
    features = torch.cat([data.client(i).train_features for i in range(data.num_clients)])[order]
    everybody = np.sort(np.concatenate([client.train for client in indices]))
    return data.with_training(chosen), features[torch.from_numpy(mine[everybody])]


def observed(threat: Threat, transcript: Transcript, judge: Judge, own: bool) -> dict[int, np.ndarray]:
    """What the prompts (or the export) that were seen of each client answer, as numbers: [2 C]. From a prompt's answers
    those of what it was trained from are taken away, where that is known; the mean over times. An attacker with one
    prompt for all has the same of everybody."""
    if transcript.exports and threat.label == "outsider":
        return {i: answers(logits, judge.labels) for i, logits in transcript.exports.items()}
    told: dict[int, list[np.ndarray]] = {}
    for time in threat.simulated(transcript) if own else threat.prompts(transcript):
        for client, sent in time.items():
            if not judge.fits(sent.prompt):
                continue
            found = answers(judge.logits(sent.prompt), judge.labels)
            if sent.start is not None and judge.fits(sent.start):
                found = found - answers(judge.logits(sent.start), judge.labels)
            told.setdefault(client, []).append(found)
    means = {client: np.mean(found, axis=0) for client, found in told.items()}
    return dict.fromkeys(range(transcript.num_clients), means[0]) if threat.common and means else means


def answers(logits: Tensor, labels: Tensor) -> np.ndarray:
    """For each class the logarithm of its mean probability over all images, and over its own: [b, C] -> [2 C]."""
    chance = logits.double().softmax(dim=1)
    own = torch.nn.functional.one_hot(labels, chance.shape[1]).double()
    right = (chance * own).sum(dim=0) / own.sum(dim=0).clamp(min=1)
    return torch.cat([chance.mean(dim=0), right]).clamp(min=1e-6).log().numpy()


def score(shadows: Sequence[Owner], victims: Sequence[Owner]) -> dict[str, Any]:
    """Errors of the regression, of the prior and of the control, each a mean over victims with its bootstrap interval,
    and how well the estimate tells classes that a client has from those it has not."""
    x, y = (np.stack([getattr(owner, name) for owner in shadows]) for name in ("seen", "proportions"))
    seen, truth = (np.stack([getattr(owner, name) for owner in victims]) for name in ("seen", "proportions"))
    shuffled = np.random.default_rng(0).permutation(len(y))
    estimates = {
        "error": estimate(x, y, seen),
        "control": estimate(x, y[shuffled], seen),
        "prior": np.repeat(y.mean(axis=0, keepdims=True), len(truth), axis=0),
    }
    errors = {name: np.abs(found - truth).sum(axis=1) for name, found in estimates.items()}  # [V]
    chosen = np.random.default_rng(1).integers(len(truth), size=(_RESAMPLES, len(truth)))
    result: dict[str, Any] = {"shadow_clients": len(y), "victims": len(truth)}
    errors["gain"] = errors["prior"] - errors["error"]
    for name, values in errors.items():
        low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975])
        result[name] = {"mean": float(values.mean()), "low": float(low), "high": float(high)}
    result["presence_auc"] = auc(estimates["error"].ravel(), (truth > 0).ravel())
    return result


def estimate(x: np.ndarray, y: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Class proportions by ridge regression on standardized columns, its strength by leave-one-out: shadow clients
    [n, 2 C] and [n, C], victims [V, 2 C] -> [V, C], at least 0 and of sum 1."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))).fit(x, y)
    found = np.clip(model.predict(seen), 0, None)
    total = found.sum(axis=1, keepdims=True)
    return np.where(total > 0, found / np.where(total > 0, total, 1), 1 / y.shape[1])
