"""What crosses the line between server and client, and what a client keeps on its side of it.

Everything that crosses is named tensors and plain numbers, so that it can cross a process or a machine
(``protocol.wire`` writes it as bytes). Tensors in a record are never written to in place: whoever changes a parameter
makes a new tensor, so that records can be shared without copies.

Shape letters: l context tokens, w token width, K experts, b images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


def nbytes(*groups: Tensors) -> int:
    """Bytes of the tensors' elements, as they would be sent."""
    return sum(tensor.numel() * tensor.element_size() for tensors in groups for tensor in tensors.values())


@dataclass(frozen=True)
class RoundContext:
    """Where the federation is: the round (from 1), its cohort in ascending order, and the run's seed. The cohort stays
    on the server."""

    round: int
    cohort: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Downlink:
    """Server to client, before a client trains or is evaluated."""

    parameters: Tensors = field(default_factory=dict)  # current values of shared parameters
    experts: Tensors = field(default_factory=dict)  # K other clients' values of shared parameters, stacked: [K, l, w]
    extras: Tensors = field(default_factory=dict)  # whatever else a method sends
    expert_ids: tuple[int, ...] = ()  # whose values the experts are; stays on the server

    @property
    def nbytes(self) -> int:
        return nbytes(self.parameters, self.experts, self.extras)


@dataclass(frozen=True)
class Update:
    """Client to server, after local training."""

    client_id: int
    parameters: Tensors  # trained values of shared parameters
    num_examples: int  # the weight n_i in the mean (eq. 7)
    metrics: Mapping[str, float] = field(default_factory=dict)  # a method's own; averaged with the weights n_i

    @property
    def nbytes(self) -> int:
        return nbytes(self.parameters)


@dataclass(frozen=True)
class ClientState:
    """What a client keeps for itself between its rounds; never sent."""

    parameters: Tensors = field(default_factory=dict)  # personal ones, and own last values of shared ones
    experts: Tensors = field(default_factory=dict)  # of its last participation, where the method keeps them
    rounds_seen: int = 0  # rounds that it has trained in

    @property
    def took_part(self) -> bool:
        return self.rounds_seen > 0


@dataclass(frozen=True)
class Loadout:
    """Everything that makes the module one client, for one fit or one evaluation."""

    parameters: Tensors = field(default_factory=dict)  # those that are missing begin at their start
    experts: Tensors = field(default_factory=dict)
    received: Tensors = field(default_factory=dict)  # the shared parameters as the server sent them
    extras: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What the server knows of a client's data."""

    train_examples: int
    test_examples: int
    domain: str | None = None


@dataclass(frozen=True)
class TrainJob:
    """The server's order to train. ``version`` is the round whose state counts on the client, 0 for none: so a lost
    answer or a checkpoint that is older than the client does no harm. Another ``attempt`` draws other batches."""

    client_id: int
    round: int
    version: int
    downlink: Downlink
    attempt: int = 0


@dataclass(frozen=True)
class Trained:
    """What comes back from local training. The client has kept its new state as that of the job's round."""

    update: Update
    loss: float  # mean over the steps
    seconds: float  # that the client worked
    noise_std: float = 0.0  # standard deviation of the noise that privacy asked for


@dataclass(frozen=True)
class Failed:
    """What comes back where local training came to nothing."""

    reason: str
    traceback: str
    seconds: float = 0.0
    error: Exception | None = None  # in the client's own process only


@dataclass(frozen=True)
class ScoreJob:
    """The server's order to evaluate, on the client's own test split."""

    client_id: int
    round: int
    version: int
    downlink: Downlink


@dataclass(frozen=True)
class Scored:
    """A client's evaluation of itself: counts and sums, no label and no logit."""

    client_id: int
    correct: int
    total: int
    # What adds up over images and clients: ``confusion`` and ``calibration`` (client.counts), ``validation`` (right
    # and all validation examples), and ``Method.analyse`` summed over the test images, float64.
    sums: Tensors = field(default_factory=dict)
    failed: str | None = None  # why its fine-tuning came to nothing; then it is scored without
