"""Which runs need nothing of the clients' uploads but their mean, so that a secure aggregation fits."""

from __future__ import annotations

from collections.abc import Sequence

from fedmoe.config import FederationConfig
from fedmoe.defences.guard import Defences
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import Parameter, Scope
from fedmoe.secure.member import LEAST
from fedmoe.server.sampling import share_of


def require_mean_alone(
    method: Method, declared: Sequence[Parameter], federation: FederationConfig, defences: Defences
) -> None:
    """Refuse a secure aggregation for what needs single uploads.

    Args:
        declared: what the method learns.

    Raises:
        UserError: something needs them; the sentence says what.
    """
    kind, name = type(method), type(method).__name__
    needs = {
        f"{name} averages nothing": not federation.rounds or all(part.scope is not Scope.SHARED for part in declared),
        f"{name} hands single clients' prompts to others": any(part.pool for part in declared),
        f"{name} does more with uploads than to average them": kind.aggregate is not Method.aggregate
        or kind.admit is not Method.admit
        or method.admits_at_once,
        "federation.share_momentum hands on what single clients leave": federation.share_momentum,
        "the setting aggregation looks at single uploads": defences.aggregation is not None,
    }
    for why, needed in needs.items():
        if needed:
            raise UserError(
                f"federation.secure_aggregation is true, but {why}; valid is false, or a method that needs nothing but "
                "the mean, such as PromptFL."
            )
    if (size := share_of(federation.participants, federation.participation)) < LEAST:
        raise UserError(
            f"federation.secure_aggregation is true, but the cohort has {size} clients; valid are at least {LEAST}, "
            "since of two, each could take its own upload away from the sum."
        )
