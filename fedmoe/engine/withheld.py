"""A site's end of a secure aggregation: uploads that stay here until they are masked."""

from __future__ import annotations

from dataclasses import replace

from fedmoe.engine.line import KEYS, MASKED, SHARES, UNMASK, as_hex, from_hex
from fedmoe.protocol.records import SumJob, Summand, Trained, Update
from fedmoe.secure.member import Member

STEPS = (KEYS, SHARES, MASKED, UNMASK)


class Withheld:
    """Keeps the last upload of each client in memory, and answers the server's four steps. An upload goes into one sum:
    two sums that differ by a client would show its upload."""

    def __init__(self) -> None:
        self._uploads: dict[tuple[str, int], tuple[int, Update]] = {}  # run, client -> round, upload
        self._members: dict[tuple[str, int], Member] = {}

    def keep(self, run: str, round: int, trained: Trained) -> Trained:
        """What is told to the server instead: all but the parameters."""
        update = trained.update
        self._uploads[run, update.client_id] = (round, update)
        return replace(trained, update=replace(update, parameters={}))

    def answer(self, ask: str, run: str, job: SumJob) -> Summand:
        """The answer to one step.

        Raises:
            ValueError: the step is not the next one, or would show a single upload.
        """
        place = (run, job.client_id)
        if ask == KEYS:
            round, update = self._uploads.pop(place, (0, None))
            if update is None or round != job.round:
                raise ValueError(f"there is no upload of round {job.round} here that is not in a sum yet")
            member = Member(job.client_id, update.parameters, update.num_examples, job.round)
            self._members[place] = member
            return Summand(job.client_id, {"keys": member.keys.hex()})
        if place not in self._members or self._members[place].round != job.round:
            raise ValueError(f"no secure aggregation of round {job.round} has begun here")
        member = self._members[place]
        if ask == SHARES:
            return Summand(job.client_id, as_hex(member.shares(from_hex(job.values))))
        if ask == MASKED:
            return Summand(job.client_id, masked=member.masked(from_hex(job.values)))
        del self._members[place]
        uploaded = [int(peer) for peer, what in job.values.items() if what == "uploaded"]
        gone = [int(peer) for peer, what in job.values.items() if what == "gone"]
        return Summand(job.client_id, as_hex(member.unmask(uploaded, gone)))
