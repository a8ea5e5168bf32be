"""The server's end of a secure aggregation over a line: four rounds of messages (``fedmoe.secure``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from fedmoe.engine.line import KEYS, MASKED, SHARES, UNMASK, as_hex, from_hex
from fedmoe.federation.fleet import Summed
from fedmoe.protocol.records import SumJob, Summand, Update, nbytes
from fedmoe.secure.summation import Summation, TooFew

Exchange = Callable[[str, Iterable[SumJob]], Iterator[tuple[SumJob, Summand | str]]]
"""Sends one step's orders; each with its answer, or why there is none."""


def sum_securely(exchange: Exchange, updates: Sequence[Update], round: int, like: Mapping[str, Tensor]) -> Summed:
    """The weighted mean of uploads that the server never sees.

    Args:
        exchange: reaches the clients.
        updates: what the clients have said, without parameters.
        like: the shared parameters.
    """
    weights = {update.client_id: update.num_examples for update in updates}
    try:
        summation = Summation(weights, like)
    except ValueError as error:
        return Summed({}, missing=dict.fromkeys(weights, str(error)))

    def ask(step: str, values: Mapping[int, Mapping[str, str]]) -> dict[int, Summand]:
        found = {}
        jobs = (SumJob(client, round, value) for client, value in values.items())
        for job, answer in exchange(step, jobs):
            if isinstance(answer, str):
                summation.missing.setdefault(job.client_id, f"secure aggregation: {answer}")
            else:
                found[job.client_id] = answer
        return found

    try:
        keys = ask(KEYS, {client: {} for client in weights})
        peers = summation.take_keys({client: bytes.fromhex(one.values.get("keys", "")) for client, one in keys.items()})
        sealed = ask(SHARES, {client: as_hex(value) for client, value in peers.items()})
        handed = summation.take_shares({client: from_hex(one.values) for client, one in sealed.items()})
        masked = ask(MASKED, {client: as_hex(value) for client, value in handed.items()})
        settled = summation.take_masked({client: one.masked for client, one in masked.items()})
        words = {
            client: {str(peer): "uploaded" for peer in uploaded} | {str(peer): "gone" for peer in gone}
            for client, (uploaded, gone) in settled.items()
        }
        told = ask(UNMASK, words)
        found = summation.take_told({client: from_hex(one.values) for client, one in told.items()})
    except TooFew as error:
        why = f"there is no sum in this round: {error}"
        return Summed({}, missing={client: summation.missing.get(client, why) for client in weights})
    uploads = summation.uploads
    missing = {client: why for client, why in summation.missing.items() if client not in uploads}
    size = sum(nbytes(masked[client].masked) for client in uploads)
    return Summed(found, sum(weights[client] for client in uploads), size, missing)
