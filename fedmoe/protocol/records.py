"""What crosses the line between client and server, and what stays on either side.

Shape letters: l context tokens, w token width, K non-local experts. Tensors in a record are never written to in
place: whoever changes a prompt makes a new one, so that records can be shared without copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

Tensors = Mapping[str, Tensor]


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of the tensors' elements, as they would be sent."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True)
class RoundContext:
    """Round number (from 1), the cohort's client ids in ascending order, and the run's seed."""

    round: int
    cohort: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Downlink:
    """Server to client: the start of the local prompt, and other clients' prompts as fixed experts."""

    prompt: Tensor | None  # [l, w]; None where a method sends nothing
    experts: Tensor | None = None  # [K, l, w]
    expert_ids: tuple[int, ...] = ()  # whose prompts the experts are: bookkeeping of the simulation, not sent
    extras: Tensors = field(default_factory=dict)  # whatever else a method sends

    @property
    def nbytes(self) -> int:
        return nbytes(self.prompt, self.experts, *self.extras.values())


@dataclass(frozen=True)
class ClientUpdate:
    """Client to server: the trained prompt and its weight n_i in the mean (eq. 7)."""

    client_id: int
    prompt: Tensor | None  # [l, w]; None where a method sends nothing
    num_examples: int
    extras: Tensors = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return nbytes(self.prompt, *self.extras.values())


@dataclass(frozen=True)
class ClientState:
    """What a client keeps for itself between its rounds; never sent."""

    prompt: Tensor  # [l, w], the last one it trained; the common start before that
    personal: Tensors = field(default_factory=dict)  # the gate's parameters, or what else a method keeps
    experts: Tensor | None = None  # [K, l, w] of its last participation
    expert_ids: tuple[int, ...] = ()
    rounds_seen: int = 0

    @property
    def took_part(self) -> bool:
        return self.rounds_seen > 0


@dataclass(frozen=True)
class Loadout:
    """Everything that makes the module one client, for one fit or one evaluation."""

    prompt: Tensor  # [l, w]
    personal: Tensors | None = None  # None: drawn anew from the client's own seed
    experts: Tensor | None = None  # [K, l, w]
    reference: Tensor | None = None  # [l, w], the prompt the server sent
    extras: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class ClientScore:
    """One client's part of an evaluation; ``accuracy`` in percent, None without test examples."""

    round: int
    client: int
    domain: str | None
    accuracy: float | None
    correct: int
    total: int
    train_examples: int


@dataclass(frozen=True)
class Evaluation:
    """All clients' scores after a round, and what they were scored with."""

    clients: list[ClientScore]
    accuracy: dict[str, float]  # percent: mean, std, min, max, worst_decile over clients
    accuracy_per_domain: dict[str, float]
    experts: dict[str, list[int]]  # client -> ids of its experts
    attention: dict[str, Any] | None  # mean weight of the local expert, and of the others, sorted
    bytes_down: int  # experts downloaded for the evaluation alone
    failed: dict[str, str] = field(default_factory=dict)  # client -> why its fine-tuning came to nothing


@dataclass(frozen=True)
class Failure:
    """One line of failures.jsonl: local training that came to nothing."""

    round: int
    client: int
    attempt: int  # from 0
    reason: str
    traceback: str


@dataclass
class RoundRecord:
    """One line of rounds.jsonl."""

    round: int
    cohort: list[int] = field(default_factory=list)
    evaluated: bool = False
    accuracy: dict[str, float] | None = None
    accuracy_per_domain: dict[str, float] = field(default_factory=dict)
    train_loss: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # train, evaluate, other
    bytes: dict[str, int] = field(default_factory=dict)  # down, up, evaluate_down
    clients_seen: int = 0
    prompt_drift: float | None = None  # mean l2 distance of the cohort's prompts to the new global prompt
    experts: dict[str, list[int]] = field(default_factory=dict)
    attention: dict[str, Any] | None = None
    failed: dict[str, str] = field(default_factory=dict)  # client -> why it was dropped
    privacy: dict[str, float | None] | None = None  # epsilon spent so far, standard deviation of the noise

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
