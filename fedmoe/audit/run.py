"""An audit: its federations, its attacks, and its numbers.

Shape letters: T trials, A of them audited, P pairs, X targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe.audit.epsilon import one_run_epsilon
from fedmoe.audit.game import Game, make_game, members
from fedmoe.audit.judge import Judge
from fedmoe.audit.membership import ATTACKS, Membership, Shadow
from fedmoe.audit.membership.base import Setting
from fedmoe.audit.properties import infer_proportions
from fedmoe.audit.rates import auc, auc_interval, roc, true_positive_rate
from fedmoe.audit.settings import AuditConfig
from fedmoe.audit.threats import THREATS, Outsider, Seen, Threat
from fedmoe.audit.transcript import play
from fedmoe.errors import UserError, did_you_mean
from fedmoe.experiment import Session
from fedmoe.protocol.method import Method
from fedmoe.seeds import derive

_NEVER = 1_000_000_000  # rounds between evaluations: the last round alone is evaluated
RATES = {"tpr_at_1": 0.01, "tpr_at_0.1": 0.001}


@dataclass(frozen=True)
class Trial:
    """A federation of the game: which targets were in [X], and what each attacker sees of it, as its victim and as a
    shadow of the attacker's own."""

    coins: Tensor
    attacked: Mapping[str, Seen]
    simulated: Mapping[str, Seen]
    accuracy: float
    privacy: Mapping[str, Any] | None


def require_auditable(session: Session) -> None:
    """Refuse settings that the game has no rules for.

    Raises:
        UserError: there are some.
    """
    e = session.experiment
    for key, value, valid in (
        ("attack", None if e.attack is None else type(e.attack).__name__, None),
        ("views.kind", e.views.kind, "none"),
        ("federation.late_clients", e.federation.late_clients, 0),
        ("federation.share_momentum", e.federation.share_momentum, False),
    ):
        if value != valid:
            raise UserError(f"{key} is {value!r}, which an audit has no rules for; valid is {valid!r}.")
    if not e.federation.rounds:
        raise UserError("federation.rounds is 0, so that nothing is sent; valid is an integer of at least 1.")


def audit(
    session: Session, method: Method, config: AuditConfig, told: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Play the game and attack it; the contents of audit.json for this method.

    Raises:
        UserError: the settings do not fit.
    """
    require_auditable(session)
    attacks = chosen_attacks(config.attacks)
    e = session.experiment
    quiet = replace(e, federation=replace(e.federation, evaluate_every=_NEVER))
    session = Session(quiet, session.console, session.clip)
    game = make_game(session.data(method), config.targets, config.mislabelled, derive(e.seed, "audit", "pairs"))
    module = session.module(method, game.whole.class_names)
    setting = Setting(game.owner, game.target_labels, Judge(module, game.features, game.target_labels).features)
    trials = []
    for number in range(config.trials):
        trials.append(play_trial(session, method, game, Judge(module, setting.features, setting.labels), number))
        told(f"{method.label}: federation {number + 1} of {config.trials}")
    rows, bounds, claimed = [], [], trials[0].privacy
    for threat in THREATS:
        for attack in attacks:
            scores = attacked(trials, threat, attack, setting, config.audited)
            if scores is not None:
                rows.append(row(threat, attack, scores, trials, setting, e.seed))
            if claimed is None or isinstance(threat, Outsider):
                continue
            scores = attacked(trials, threat, attack, setting, config.audited, apart=True)
            if scores is not None:
                bounds.append((threat, attack, scores))
    return {
        "method": type(method).__name__,
        "label": method.label,
        "seed": e.seed,
        "settings": asdict(config),
        "clients": game.whole.num_clients,
        "pairs": game.num_pairs,
        "accuracy": float(np.mean([trial.accuracy for trial in trials])),
        "membership": rows,
        "privacy": None if claimed is None else privacy(bounds, trials, claimed, config),
        "properties": infer_proportions(session, method, config),
    }


def chosen_attacks(names: Sequence[str]) -> list[Membership]:
    """The attacks of these names, or all.

    Raises:
        UserError: there is none of a name.
    """
    known = {attack.label: attack for attack in ATTACKS}
    for name in names:
        if name not in known:
            raise UserError(
                f"audit.attacks has {name!r}; valid is any of {', '.join(known)}{did_you_mean(name, known)}"
            )
    return [known[name] for name in names] or list(ATTACKS)


def play_trial(session: Session, method: Method, game: Game, judge: Judge, number: int) -> Trial:
    """One federation with coins of its own."""
    seed = derive(session.experiment.seed, "audit", "trial", number)
    coins = game.coins(seed)
    transcript = play(session, method, game.data(coins), seed, game.features_of)
    attacked, simulated = dict[str, Seen](), dict[str, Seen]()
    for threat in THREATS:
        seen, own = threat.sees(transcript, judge), threat.sees(transcript, judge, own=True)
        if seen is not None and own is not None:
            attacked[threat.label], simulated[threat.label] = seen, own
    return Trial(coins, attacked, simulated, transcript.accuracy, transcript.privacy)


def attacked(
    trials: Sequence[Trial],
    threat: Threat,
    attack: Membership,
    setting: Setting,
    audited: int,
    apart: bool = False,
) -> list[Tensor] | None:
    """The attack's scores of the targets [X] in each audited federation. Its shadows are all others, whose coins it is
    told, or with ``apart`` those that are not audited; of the one under attack it gets what the threat model sees
    alone."""
    found = []
    for number, trial in enumerate(trials[:audited]):
        others = [other for i, other in enumerate(trials) if (i >= audited if apart else i != number)]
        others = [other for other in others if threat.label in other.simulated]
        shadows = [Shadow(other.simulated[threat.label], members(other.coins)) for other in others]
        if threat.label not in trial.attacked or (attack.learns and not shadows):
            return None
        scores = attack.scores(trial.attacked[threat.label], shadows, setting)
        if scores is None:
            return None
        found.append(scores)
    return found if any(bool(torch.isfinite(scores).any()) for scores in found) else None


def row(
    threat: Threat,
    attack: Membership,
    scores: Sequence[Tensor],
    trials: Sequence[Trial],
    setting: Setting,
    seed: int,
) -> dict[str, Any]:
    """What an attack achieves, over all targets of all audited federations and for each owner. The interval is over
    owners: an owner's targets share its prompt, and scores in one federation depend on coins of the others, its
    shadows. The control counts the same scores against coins that no federation ever used."""
    values = torch.cat(list(scores)).numpy()
    inside = torch.cat([members(trial.coins) for trial in trials[: len(scores)]]).numpy()
    owners = np.tile(setting.owner.numpy(), len(scores))
    fresh = [np.random.default_rng(derive(seed, "audit", "control", i)) for i in range(len(scores))]
    control = np.concatenate([g.permuted(np.tile([True, False], (len(trials[0].coins), 1)), axis=1).ravel()
                              for g in fresh])  # fmt: skip
    reached = np.isfinite(values)
    values, inside, owners, control = (part[reached] for part in (values, inside, owners, control))
    areas = {i: auc(values[owners == i], inside[owners == i]) for i in np.unique(owners)}
    found: dict[str, Any] = {
        "threat": threat.label,
        "attack": attack.label,
        "auc": auc(values, inside),
        "interval": auc_interval(values, inside, owners),
        "control": auc(values, control),
        "control_interval": auc_interval(values, control, owners),
        "reached": float(reached.mean()),
        "per_client": {int(i): area for i, area in areas.items() if math.isfinite(area)},
        "roc": roc(values, inside),
    }
    for name, rate in RATES.items():
        at = true_positive_rate(values, inside, rate)
        found[name] = None if at is None else {"value": at.value, "low": at.interval[0], "high": at.interval[1]}
    return found


def privacy(
    attacks: Sequence[tuple[Threat, Membership, Sequence[Tensor]]],
    trials: Sequence[Trial],
    claimed: Mapping[str, Any],
    config: AuditConfig,
) -> dict[str, Any]:
    """The bounds that the attacks prove beside the one that is claimed for all uploads of a client.

    A guess is which of a pair was in. The audited federations are one mechanism on the coins of all: each coin affects
    one of them. So no guess may use the coins of another one, and only those that are not audited serve as shadows
    here. The probability of error, 0.05 for all attacks together, is divided among them.
    """
    rows, best, delta, upper = [], 0.0, float(claimed["delta"]), claimed["total_epsilon"]
    for threat, attack, scores in attacks:
        coins = torch.cat([trial.coins for trial in trials[: len(scores)]])
        correct, guesses = right_guesses(torch.cat(list(scores)), coins, config.guesses)
        bound = one_run_epsilon(len(coins), guesses, correct, delta, 0.05 / len(attacks))
        rows.append({"threat": threat.label, "attack": attack.label, "coins": len(coins), "guesses": guesses,
                     "correct": correct, "epsilon_at_least": bound})  # fmt: skip
        best = max(best, bound)
    return {
        "claimed_epsilon": upper,
        "delta": delta,
        "mechanism": claimed["mechanism"],
        "rows": rows,
        "epsilon_at_least": best,
        "refuted": upper is not None and best > upper,
    }


def right_guesses(scores: Tensor, coins: Tensor, share: float) -> tuple[int, int]:
    """How many of the surest guesses of coins are right, and how many they are: scores [X] and coins [P].

    Their number is fixed by ``share``; where nothing was seen of a pair, or both score alike, it guesses 0."""
    lead = (scores[1::2] - scores[0::2]).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    count = max(1, math.ceil(share * len(coins)))
    chosen = lead.abs().argsort(descending=True, stable=True)[:count]
    return int(((lead[chosen] > 0).long() == coins[chosen]).sum()), count
