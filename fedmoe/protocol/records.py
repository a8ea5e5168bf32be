"""What crosses the line between server and client, and what a client keeps on its side.

Only named tensors and plain numbers cross, so that server and client can be in different processes or on different
machines (``protocol.wire`` writes records as bytes). Tensors in a record are never written to in place: to change a
parameter, make a new tensor. So records can be shared without copies.

Shape letters: l context tokens, w token width, K experts, b images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]


def nbytes(*groups: Tensors) -> int:
    """Number of bytes of the tensors' elements, as they would be sent."""
    return sum(tensor.numel() * tensor.element_size() for tensors in groups for tensor in tensors.values())


@dataclass(frozen=True)
class RoundContext:
    """The current round (from 1), its cohort in ascending order, and the run's seed. Not sent to clients."""

    round: int
    cohort: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Downlink:
    """Server to client, before a client trains or is evaluated."""

    parameters: Tensors = field(default_factory=dict)  # current values of shared parameters
    # Values of shared parameters that serve as experts, stacked: [K, l, w]. A name with K = 0 costs no bytes and says
    # that the gate takes part.
    experts: Tensors = field(default_factory=dict)
    extras: Tensors = field(default_factory=dict)  # whatever else a method sends
    expert_ids: tuple[int, ...] = ()  # whose values the experts are; not sent

    @property
    def nbytes(self) -> int:
        return nbytes(self.parameters, self.experts, self.extras)


@dataclass(frozen=True)
class Update:
    """Client to server, after local training."""

    client_id: int
    parameters: Tensors  # trained values of shared parameters
    num_examples: int  # the weight n_i in the mean (eq. 7)
    metrics: Mapping[str, float] = field(default_factory=dict)  # the method's own; averaged with the weights n_i
    extras: Tensors = field(default_factory=dict)  # not averaged: momentum, where the next client's fit uses it

    @property
    def nbytes(self) -> int:
        return nbytes(self.parameters, self.extras)

    def with_values(self, change: Callable[[str, Tensor], Tensor]) -> Update:
        """The upload with other values of its parameters: ``change(name, value)``."""
        return replace(self, parameters={name: change(name, value) for name, value in self.parameters.items()})

    def scaled(self, start: Tensors, factor: float) -> Update:
        """The upload G + ``factor`` (X - G), where X was trained from the G in ``start``; what is not there stays."""

        def change(name: str, value: Tensor) -> Tensor:
            began = start.get(name)
            if began is None:
                return value
            return (began.double() + factor * (value.double() - began.double())).to(value.dtype)

        return self.with_values(change)


@dataclass(frozen=True, slots=True)  # there is one for each client
class ClientState:
    """What a client keeps to itself between its rounds; never sent."""

    parameters: Tensors = field(default_factory=dict)  # personal ones, and its own last values of shared ones
    experts: Tensors = field(default_factory=dict)  # of its last participation, if the method keeps them
    rounds_seen: int = 0  # number of rounds it has trained in

    @property
    def took_part(self) -> bool:
        return self.rounds_seen > 0

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, as checkpoints name them."""
        parameters = {f"parameters/{name}": tensor for name, tensor in self.parameters.items()}
        return parameters | {f"experts/{name}": tensor for name, tensor in self.experts.items()}

    def with_tensors(self, replaced: Callable[[Tensor], Tensor]) -> ClientState:
        """The state with other tensors in their places."""
        parameters = {name: replaced(tensor) for name, tensor in self.parameters.items()}
        experts = {name: replaced(tensor) for name, tensor in self.experts.items()}
        return ClientState(parameters, experts, self.rounds_seen)


@dataclass(frozen=True)
class Loadout:
    """Everything that turns the module into a client, for one fit or one evaluation."""

    parameters: Tensors = field(default_factory=dict)  # missing ones take their initial values
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
    """The server's order to train. ``version`` names the round whose state the client is to use, 0 for none, so that a
    lost answer or a checkpoint older than the client does no harm. Each ``attempt`` draws different batches.

    ``turn`` counts the federation's local fits before this one, in the order of rounds and cohorts. From this number a
    client knows the learning rate where all share one course, and needs to know nothing else of the others."""

    client_id: int
    round: int
    version: int
    downlink: Downlink
    attempt: int = 0
    turn: int = 0


@dataclass(frozen=True)
class Trained:
    """The answer to a ``TrainJob``. The client has stored its new state under the job's round."""

    update: Update
    loss: float  # mean over the steps
    seconds: float  # time that the client took
    noise_std: float = 0.0  # standard deviation of the noise added for privacy


@dataclass(frozen=True)
class Failed:
    """The answer to a ``TrainJob`` if local training failed."""

    reason: str
    traceback: str
    seconds: float = 0.0
    error: Exception | None = None  # only if the client is in the same process; not sent
    lost: bool = False  # whether the client no longer has the state that the order named, and must begin anew


@dataclass(frozen=True)
class SumJob:
    """The server's order to do the next step of a secure aggregation (``fedmoe.secure``): what it hands on of other
    clients, by their numbers; bytes are written in hexadecimal digits."""

    client_id: int
    round: int
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summand:
    """The answer to a ``SumJob``: keys or shares, or the masked upload, whose numbers are integers modulo 2^64."""

    client_id: int
    values: Mapping[str, str] = field(default_factory=dict)
    masked: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreJob:
    """The server's order to evaluate on the client's own test split."""

    client_id: int
    round: int
    version: int
    downlink: Downlink


@dataclass(frozen=True)
class Scored:
    """A client's evaluation on its own test split: counts and sums, no labels and no logits."""

    client_id: int
    correct: int
    total: int
    # What adds up over images and clients: ``confusion`` and ``calibration`` (client.counts), ``validation`` (right
    # and all validation examples), ``train`` (of its training examples), ``others`` (of test images of classes that
    # only others hold), ``gate`` (client.counts), and ``Method.analyse`` summed over the test images, float64. Of the
    # client alone: ``gate_p10`` [1], the 10th percentile over its test images of the gate's normalized entropy.
    sums: Tensors = field(default_factory=dict)
    # Why its fine-tuning came to nothing (then it is scored without), or, with a total of 0, the whole evaluation.
    failed: str | None = None
