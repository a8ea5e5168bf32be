"""What an attack does, for the record: the server and the method never see who attacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fedmoe.federation.accuracy import summarize
from fedmoe.protocol.records import Scored


def attack_numbers(
    scored: Sequence[Scored], experts: Mapping[int, Sequence[int]], attackers: Collection[int]
) -> dict[str, float] | None:
    """``runs.records.AttackNumbers``; None where no honest client was scored.

    Args:
        scored: the evaluated clients' scores.
        experts: client -> whose prompts it predicts with.
        attackers: who attacks.
    """
    honest = [score for score in scored if score.client_id not in attackers]
    bad = [score for score in scored if score.client_id in attackers]
    if not honest:
        return None
    found = {"honest_accuracy": _mean(honest)}
    if bad:
        found["attackers_accuracy"] = _mean(bad)
    counts = [score.sums["attack"].tolist() for score in honest if "attack" in score.sums]
    aimed_at = sum(count for _, count in counts)
    if aimed_at:
        found["success"] = 100 * sum(hits for hits, _ in counts) / aimed_at
    given = [other for score in honest for other in experts.get(score.client_id, ()) if other != score.client_id]
    if given:
        found["expert_share"] = 100 * sum(other in attackers for other in given) / len(given)
    return found


def _mean(scored: Sequence[Scored]) -> float:
    """Mean over clients of the accuracy on their own test splits, in percent."""
    return summarize([score.correct / score.total for score in scored])["mean"]
