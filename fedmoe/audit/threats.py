"""Who attacks, and what they have. Each class reads its own part of the transcript, and nothing else.

All of them know the game's rules (``game``): settings, CLIP, targets, owners, the prompt's start. Where prompts carry
no sender's name, as experts do, the attacker is assumed to know whose they are: the worst case, and an easy guess
where clients' classes differ. What a recipient knows of its own data is not used.

Shape letters: E times at which something is seen, J prompts at a time, X targets, N clients, C classes, d feature
width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedmoe.audit.judge import Judge, true_logit
from fedmoe.audit.transcript import Transcript
from fedmoe.protocol.records import Tensors
from fedmoe.seeds import derive


@dataclass(frozen=True)
class Sent:
    """A prompt, and what it was trained from, where that is known."""

    prompt: Tensor
    start: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """What an attacker computes of a transcript; NaN where it has seen nothing.

    Attributes:
        values: by statistic, [E, J, X]: of each target under each prompt; J is N, or 1 if there is one for all.
        texts: the text features [N, C, d] of the last prompt of each owner, or [1, C, d].
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Tensor | None = None

    def own(self, name: str, owner: Tensor) -> Tensor:
        """The statistic of each target under the prompt of its own owner: [E, X]."""
        value = self.values[name]
        return value[:, 0] if value.shape[1] == 1 else value[:, owner, torch.arange(len(owner))]


class Threat(ABC):
    """Base class of threat models."""

    label: ClassVar[str]
    about: ClassVar[str]  # what the attacker has
    common: ClassVar[bool] = False  # whether what it sees is one prompt for all clients

    @abstractmethod
    def prompts(self, transcript: Transcript) -> Sequence[Mapping[int, Sent]]:
        """The prompts that the attacker has of the federation under attack, by their owner, at each time."""

    def simulated(self, transcript: Transcript) -> Sequence[Mapping[int, Sent]]:
        """The prompts that it has of a federation which it simulates itself."""
        return self.prompts(transcript)

    def sees(self, transcript: Transcript, judge: Judge, own: bool = False) -> Seen | None:
        """The statistics of all targets; None where there is no prompt to see.

        Args:
            own: whether the attacker simulates this federation itself.
        """
        times = self.simulated(transcript) if own else self.prompts(transcript)
        count = 1 if self.common else transcript.num_clients
        if not any(judge.fits(sent.prompt) for time in times for sent in time.values()):
            return None
        shape = (len(times), count, len(judge.labels))
        values = {name: torch.full(shape, torch.nan) for name in ("confidence", "alignment")}
        texts = None
        for e, time in enumerate(times):
            for j, sent in time.items():
                values["confidence"][e, j] = judge.confidence(sent.prompt)
                if sent.start is not None and judge.fits(sent.start):
                    values["alignment"][e, j] = judge.alignment(sent.start, sent.prompt)
                if texts is None:
                    blank = torch.full_like(judge.text(sent.prompt), torch.nan)
                    texts = blank.repeat(count, 1, 1)
                texts[j] = judge.text(sent.prompt)
        return Seen(values, texts)


class Server(Threat):
    """The server: every upload, with its sender and what it was trained from."""

    label, about = "server", "all uploads of all rounds, by sender"

    def prompts(self, transcript: Transcript) -> Sequence[Mapping[int, Sent]]:
        times: list[dict[int, Sent]] = []
        for number in range(1, transcript.rounds + 1):
            found = {}
            for (round, client), upload in transcript.uploads.items():
                if round == number and "prompt" in upload:
                    began = transcript.downlinks[round, client].parameters.get("prompt")
                    found[client] = Sent(upload["prompt"], began)
            times.append(found)
        return times


class Recipient(Threat):
    """A client of the federation, drawn by the federation's seed: the experts that it receives in each round and
    for its evaluation after the last one, and the shared prompt that they were trained from."""

    label, about = "recipient of experts", "the experts that one client receives, in all rounds"

    def attacker(self, transcript: Transcript) -> int:
        """Which client it is."""
        return derive(transcript.seed, "recipient") % transcript.num_clients

    def prompts(self, transcript: Transcript) -> Sequence[Mapping[int, Sent]]:
        return self._received(transcript, [self.attacker(transcript)])

    def simulated(self, transcript: Transcript) -> Sequence[Mapping[int, Sent]]:
        """In a federation of its own the attacker can look at what any client receives."""
        return self._received(transcript, range(transcript.num_clients))

    def _received(self, transcript: Transcript, clients: Sequence[int]) -> Sequence[Mapping[int, Sent]]:
        times: list[dict[int, Sent]] = []
        for number in range(2, transcript.rounds + 2):
            found: dict[int, Sent] = {}
            for client in clients:
                downlink = transcript.downlinks.get((number, client))
                if downlink is None or "prompt" not in downlink.experts:
                    continue
                for owner, prompt in zip(downlink.expert_ids, downlink.experts["prompt"], strict=False):
                    found[owner] = Sent(prompt, _began(transcript, owner, number))
            times.append(found)
        return times


class AverageRecipient(Threat):
    """A client that receives only the average: the shared prompt after each round."""

    label, about = "recipient of the average", "the shared prompt after each round"
    common = True

    def prompts(self, transcript: Transcript) -> Sequence[Mapping[int, Sent]]:
        before: list[Tensors] = transcript.shared[:-1]
        return [
            {0: Sent(now["prompt"], earlier.get("prompt"))} if "prompt" in now else {}
            for earlier, now in zip(before, transcript.shared[1:], strict=True)
        ]


class Outsider(Threat):
    """Somebody with one exported client after the last round: all that ``fedmoe export`` writes for it to predict
    with, once, and nothing of the federation."""

    label, about = "outsider", "one exported client after the last round: all it predicts with"

    def prompts(self, transcript: Transcript) -> Sequence[Mapping[int, Sent]]:
        return []

    def sees(self, transcript: Transcript, judge: Judge, own: bool = False) -> Seen | None:
        if not transcript.exports:
            return None
        logits = torch.cat([transcript.exports[i] for i in range(transcript.num_clients)])
        texts = None
        if len(transcript.export_texts) == transcript.num_clients:
            texts = torch.stack([transcript.export_texts[i] for i in range(transcript.num_clients)])
        return Seen({"confidence": true_logit(logits, judge.labels).float()[None, None]}, texts)


def _began(transcript: Transcript, owner: int, before: int) -> Tensor | None:
    """What the owner's last prompt before a round was trained from: the shared prompt, which every client has."""
    rounds = [number for number, client in transcript.uploads if client == owner and number < before]
    return transcript.shared[max(rounds) - 1].get("prompt") if rounds else None


THREATS: tuple[Threat, ...] = (Server(), Recipient(), AverageRecipient(), Outsider())
