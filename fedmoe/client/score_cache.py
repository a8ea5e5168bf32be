"""Evaluations that need not be repeated: of clients that would use what they used before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from fedmoe.protocol.records import Scored, ScoreJob, nbytes


class ScoreCache:
    """The last score of each client, as long as its state and all that it is sent stay the same to the bit.

    A score is a function of both, since nothing is drawn in an evaluation. The clients scored longest ago are forgotten
    first.

    Args:
        limit_mib: size limit of the scores' tensors, in MiB; 0: every client is scored anew.
    """

    def __init__(self, limit_mib: int) -> None:
        self._limit = limit_mib * 2**20
        self._held: OrderedDict[int, tuple[bytes, Scored]] = OrderedDict()
        self._bytes = 0

    def __call__(self, job: ScoreJob, score: Callable[[], Scored]) -> Scored:
        """The client's score; ``score`` finds it where it is not known."""
        if not self._limit:
            return score()
        key, known = _digest(job), self._held.pop(job.client_id, None)
        if known is not None:
            self._bytes -= nbytes(known[1].sums)
        found = known[1] if known is not None and known[0] == key else score()
        self._held[job.client_id] = (key, found)
        self._bytes += nbytes(found.sums)
        while self._bytes > self._limit:
            _, (_, dropped) = self._held.popitem(last=False)
            self._bytes -= nbytes(dropped.sums)
        return found

    def clear(self) -> None:
        self._held.clear()
        self._bytes = 0


def _digest(job: ScoreJob) -> bytes:
    """Of the client's state, which its version names, and of what it is sent."""
    digest, downlink = hashlib.blake2b(str(job.version).encode(), digest_size=16), job.downlink
    for group in (downlink.parameters, downlink.experts, downlink.extras):
        digest.update(str(len(group)).encode())
        for name, tensor in group.items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
