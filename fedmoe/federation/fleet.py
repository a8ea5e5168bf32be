"""Where the clients are. The round loop gives orders to a fleet and accepts the answers in any order."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from fedmoe.client.lockstep import Place, together
from fedmoe.client.module import ClientModule
from fedmoe.client.score_cache import ScoreCache
from fedmoe.client.states import ClientStates, MemoryStates
from fedmoe.client.work import ClientFailure, ClientWork
from fedmoe.errors import UserError
from fedmoe.protocol.parameters import Scope, part_of, select
from fedmoe.protocol.records import (
    About,
    ClientState,
    Failed,
    Scored,
    ScoreJob,
    Tensors,
    Trained,
    TrainJob,
    Update,
    nbytes,
)
from fedmoe.secure.fixed_point import add, encode_all, mean, nothing, require_examples
from fedmoe.secure.member import LEAST
from fedmoe.server.state import Known, ServerState

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Summed:
    """What a secure aggregation gives: the weighted mean of the uploads, and what is known of the sum."""

    parameters: Tensors  # empty where there is no sum
    num_examples: int = 0  # of all clients in it
    nbytes: int = 0  # sent up for it, of masked uploads
    missing: Mapping[int, str] = field(default_factory=dict)  # client -> why its upload is not in the sum


class Fleet(Protocol):
    """Clients, wherever they are. Orders are pulled one at a time, so that not all downlinks are in memory at once."""

    def open(self, run: str) -> dict[str, Any] | None:
        """Reach all clients before the first round; ``run`` names the run. The contents of partition.json, where only
        the clients know them.

        Raises:
            UserError: a client cannot be reached, or belongs to another federation.
        """

    def close(self) -> None:
        """Leave the clients; more than one call does no harm."""

    def about(self, client_id: int) -> About:
        """The sizes of a client's splits, and its domain."""

    def train(self, jobs: Iterable[TrainJob]) -> Iterator[tuple[TrainJob, Trained | Failed]]:
        """Let clients train. Each order gets one answer, in any order.

        Raises:
            UserError: a mistake in the settings.
        """

    def score(self, jobs: Iterable[ScoreJob]) -> Iterator[Scored]:
        """Let clients evaluate themselves. Each order gets one answer, in any order."""

    def sum(self, updates: Sequence[Update], round: int) -> Summed:
        """Aggregate a round's uploads securely. Where clients are apart, the parameters are not in ``updates``, and
        nobody but their clients sees them; elsewhere the result has the same bits."""

    def crossed(self) -> dict[str, float]:
        """What crossed the line to clients elsewhere since this was last asked: ``messages``, bytes ``down`` and ``up``
        with all that is not accounted, ``wire_down`` and ``wire_up`` with what carries them, where that is known, and
        ``trained_seconds`` and ``waited_seconds`` summed over clients."""

    def states(self, known: Mapping[int, Known]) -> dict[int, ClientState]:
        """The current states of the clients in this process, at the versions given in ``known``, for the checkpoint.
        Clients elsewhere keep their own."""

    def release(self, known: Mapping[int, Known], replaced: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensors in the states that ``states`` gives of these clients by others of the same values."""

    def restore(self, known: Mapping[int, Known], states: Mapping[int, ClientState]) -> None:
        """The inverse of ``states``.

        Raises:
            ValueError: a state does not belong to the method.
        """


def known_after(server: ServerState, job: TrainJob) -> Known:
    """What the server knows of a client that has carried out the order."""
    seen, downlink = server.known(job.client_id).rounds_seen + 1, job.downlink
    return Known(seen, downlink.expert_ids, job.round, gated=bool(downlink.experts))


class LocalFleet:
    """Runs all clients in this process, one after the other, or as many at the same time as ``runtime.cohort_batch``
    says."""

    def __init__(self, work: ClientWork, kept: ClientStates | None = None) -> None:
        self.work = work
        self.kept = MemoryStates() if kept is None else kept
        self._scores = ScoreCache(work.runtime.score_cache_mib)
        self._twins: list[ClientWork] = []  # for clients that train together, made when first needed

    def open(self, run: str) -> None:
        return None

    def close(self) -> None:
        pass

    def about(self, client_id: int) -> About:
        return self.work.about(client_id)

    def train(self, jobs: Iterable[TrainJob]) -> Iterator[tuple[TrainJob, Trained | Failed]]:
        size, left = self.work.runtime.cohort_batch, iter(jobs)
        while group := list(islice(left, size)):
            if len(group) == 1:
                yield group[0], self._train(group[0], self.work)
            else:
                yield from zip(group, self._train_together(group), strict=True)

    def _train_together(self, group: Sequence[TrainJob]) -> Sequence[Trained | Failed]:
        self._twins += [self.work.twin() for _ in range(len(self._twins), len(group))]
        seats = zip(group, self._twins, strict=False)
        return together([partial(self._train, job, work) for job, work in seats])

    def _train(self, job: TrainJob, work: ClientWork, place: Place[Any] | None = None) -> Trained | Failed:
        began = time.perf_counter()
        try:
            trained, kept = work.train(job, self.kept.get(job.client_id, job.version), place)
        except UserError:
            raise
        except Exception as error:
            return Failed(reason(error), traceback.format_exc(), time.perf_counter() - began, error)
        self.kept.put(job.client_id, job.round, kept)
        return trained

    def score(self, jobs: Iterable[ScoreJob]) -> Iterator[Scored]:
        work = self.work
        for job in jobs:
            score = partial(work.score, job, self.kept.get(job.client_id, job.version))
            # Fine-tuning draws by the round, and attacks may too.
            same = not work.method.fine_tune_epochs and work.adversary is None
            yield self._scores(job, score) if same else score()

    def sum(self, updates: Sequence[Update], round: int) -> Summed:
        return sum_in_the_open(updates)

    def crossed(self) -> dict[str, float]:
        return {}

    def states(self, known: Mapping[int, Known]) -> dict[int, ClientState]:
        return {i: self.kept.get(i, known[i].version) for i in sorted(known)}

    def release(self, known: Mapping[int, Known], replaced: Callable[[Tensor], Tensor]) -> None:
        for i, own in known.items():
            self.kept.put(i, own.version, self.kept.get(i, own.version).with_tensors(replaced))

    def restore(self, known: Mapping[int, Known], states: Mapping[int, ClientState]) -> None:
        require_states(self.work.module, known, states)
        self._scores.clear()
        for client_id, state in states.items():
            self.kept.put(client_id, known[client_id].version, state)


def sum_in_the_open(updates: Sequence[Update]) -> Summed:
    """What a secure aggregation gives, where there is nobody to hide uploads from."""
    try:
        require_examples(sum(update.num_examples for update in updates))
    except ValueError as error:
        return Summed({}, missing={update.client_id: str(error) for update in updates})
    like = updates[0].parameters if updates else {}
    total, weights, missing = nothing(like), {}, {}
    for update in updates:
        try:
            add(total, encode_all(update.parameters, update.num_examples))
            weights[update.client_id] = update.num_examples
        except ValueError as error:
            missing[update.client_id] = str(error)
    if len(weights) < LEAST:
        why = f"there is no sum in this round: {len(weights)} clients are left, and {LEAST} must be"
        return Summed({}, missing={update.client_id: missing.get(update.client_id, why) for update in updates})
    examples = sum(weights.values())
    return Summed(mean(total, examples, like), examples, len(weights) * nbytes(total), missing)


def require_states(module: ClientModule, known: Mapping[int, Known], states: Mapping[int, ClientState]) -> None:
    """Refuse states of clients that do not belong to the method.

    Raises:
        ValueError: one does not.
    """
    kept = [part for part in module.declared if part.keep or part.scope is Scope.PERSONAL]
    shapes = {name: tensor.shape for name, tensor in select(module.tensors(), [part.name for part in kept]).items()}
    has_experts = any(part.scope is Scope.EXPERT for part in module.declared)
    gates = {part.name for part in kept if has_experts and part.scope is Scope.PERSONAL}
    for client_id, state in states.items():
        for name, tensor in state.parameters.items():
            if tensor.shape != shapes.get(name):
                raise ValueError(f"client {client_id} keeps {name} of shape {list(tensor.shape)}")
        missing = shapes.keys() - state.parameters.keys()
        # Before its first experts a client has no gate: it would be as it was drawn.
        without_gate = {part_of(name) for name in missing} == gates and not known[client_id].has_gate
        if missing and not without_gate:
            raise ValueError(f"client {client_id} lacks {', '.join(sorted(missing))}")


def reason(error: Exception) -> str:
    """What failed, in one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, ClientFailure) else f"{type(error).__name__}{f': {text}' if text else ''}"
