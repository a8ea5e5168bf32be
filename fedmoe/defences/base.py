"""What a defence is: the server's caution about what clients send. There are three kinds, and a run may have all.

- An ``Aggregation`` protects the average: it stands between the round's uploads and ``Method.aggregate``, and hands on
  uploads whose weighted mean is the robust aggregate. So it works with any method that averages, and with those whose
  ``aggregate`` does more than that. Pools of experts get the uploads as they are.
- A ``Screening`` protects what clients get of each other: it stands between the pools and ``Method.configure`` and
  ``deploy``, and leaves entries out. The pools themselves are kept whole, so it can change its mind.
- A ``Serving`` protects the owners of what is in the pools: it changes what others get of an entry. An owner keeps its
  own, the average is of the uploads as they are, and the server sees everything.

A defence that could do nothing is refused. FLTrust (Cao, Fang, Liu, Gong; NDSS 2021) is left out: it needs a clean
root data set on the server, and a server here has no images.

Shape letters: n uploads of a round, N clients, K experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedmoe.config import FederationConfig, PrivacyConfig
from fedmoe.protocol.records import Tensors, Update

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.server.state import ServerState


@dataclass(frozen=True, kw_only=True)
class Aggregation(ABC):
    """What the server averages, in place of the round's uploads."""

    @abstractmethod
    def combine(self, shared: Tensors, updates: Sequence[Update]) -> Sequence[Update]:
        """Uploads whose mean, weighted by n_i, is the robust aggregate.

        Args:
            shared: the shared parameters that the round began with.
            updates: the round's uploads, at least one; not changed.
        """

    def check(self, federation: FederationConfig) -> None:
        """Check the settings against the size of cohorts.

        Raises:
            UserError: they do not fit.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Screening(ABC):
    """Which clients' values may be served to others."""

    needs_reports: ClassVar[bool] = False  # whether clients also upload the mean weights of their gate

    @abstractmethod
    def trusted(self, server: ServerState) -> frozenset[int]:
        """The clients whose entries in the pools may be served to others."""

    def note(self, server: ServerState, updates: Sequence[Update]) -> None:
        """Take account of a round's uploads, in ``server.extras``, after they have been admitted."""
        return None

    def learn(self, server: ServerState, reports: Sequence[Report]) -> None:
        """Take account of a round's reports, in ``server.extras``, which checkpoints include."""
        return None

    def check(self, federation: FederationConfig, privacy: PrivacyConfig) -> None:
        """Check that what clients are asked for may leave them.

        Raises:
            UserError: it may not.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Serving(ABC):
    """What others get in place of a client's entry in a pool. The same upload gives the same values every time, so that
    asking again tells no more."""

    @abstractmethod
    def shown(self, entries: Mapping[int, Tensor], shared: Tensor | None) -> Mapping[int, Tensor]:
        """What is served in place of the entries of a pool; those that are left out are not served.

        Args:
            entries: by client, none of which is changed.
            shared: the server's value of the same parameter, which everybody may have.
        """


@dataclass(frozen=True)
class Report:
    """What a client says of its experts: the mean weight of its gate on its own prompt, then on each expert."""

    client: int
    experts: tuple[int, ...]  # [K], whose prompts the experts were
    weights: Tensor  # [K + 1]


def one_update(updates: Sequence[Update], values: Tensors) -> list[Update]:
    """A single upload in place of all, with all their examples: its mean is itself."""
    return [replace(updates[0], parameters=values, num_examples=sum(update.num_examples for update in updates))]


def stacks(updates: Sequence[Update]) -> dict[str, Tensor]:
    """Each parameter of those who sent it, in float64: [n, ...]."""
    import torch

    names = dict.fromkeys(name for update in updates for name in update.parameters)
    return {
        name: torch.stack([update.parameters[name].double() for update in updates if name in update.parameters])
        for name in names
    }


def in_format(values: Tensors, updates: Sequence[Update]) -> dict[str, Any]:
    """The values in the number formats of the uploads."""
    formats = {name: tensor.dtype for update in updates for name, tensor in update.parameters.items()}
    return {name: value.to(formats[name]) for name, value in values.items()}
