"""One federation of the game, and all that crossed its line.

Shape letters: R rounds, N clients, C classes, x images, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientWork
from fedmoe.experiment import Session
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.rehearsal import rehearse
from fedmoe.federation.state import fresh_server
from fedmoe.privacy.mechanism import Privacy, build_privacy
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import Downlink, Failed, Scored, ScoreJob, Tensors, Trained, TrainJob

Probe = Callable[[int], Tensor]  # client -> features of images that are shown to what it exports


@dataclass
class Transcript:
    """What crossed the line of a finished federation, and what its clients would export.

    Attributes:
        rounds: R.
        num_clients: N.
        seed: of this federation.
        uploads: by (round, client).
        downlinks: by (round, client); round R + 1 is the download for the evaluation after the last round.
        shared: the shared parameters before the first round, then after each one.
        exports: for each client, the logits [x, C] of the images of its probe under all that it predicts with.
        export_texts: for each client, the text features [C, d] of the prompt that it predicts with.
        accuracy: mean over clients after the last round, in percent.
        privacy: what the run claims to guarantee, as in summary.json.
    """

    rounds: int
    num_clients: int
    seed: int
    uploads: dict[tuple[int, int], Tensors] = field(default_factory=dict)
    downlinks: dict[tuple[int, int], Downlink] = field(default_factory=dict)
    shared: list[Tensors] = field(default_factory=list)
    exports: dict[int, Tensor] = field(default_factory=dict)
    export_texts: dict[int, Tensor] = field(default_factory=dict)
    accuracy: float = 0.0
    privacy: dict | None = None


class Tap(LocalFleet):
    """A fleet that writes down what crosses the line."""

    def __init__(self, work: ClientWork, transcript: Transcript, probe: Probe) -> None:
        super().__init__(work)
        self.transcript, self.probe = transcript, probe

    def train(self, jobs: Iterable[TrainJob]) -> Iterator[tuple[TrainJob, Trained | Failed]]:
        for job, result in super().train(jobs):
            self.transcript.downlinks[job.round, job.client_id] = job.downlink
            if isinstance(result, Trained):
                self.transcript.uploads[job.round, job.client_id] = result.update.parameters
            yield job, result

    def score(self, jobs: Iterable[ScoreJob]) -> Iterator[Scored]:
        for job in jobs:
            yield self.work.score(job, self.kept.get(job.client_id, job.version))
            self.transcript.downlinks[job.round + 1, job.client_id] = job.downlink
            with torch.no_grad():  # the module is still this client
                self.transcript.exports[job.client_id] = self.work._logits(self.probe(job.client_id))
                text = self.work.module.text_features()
            if text.shape[0] == self.work.data.num_classes and text.ndim == 2:
                self.transcript.export_texts[job.client_id] = text.cpu()


def play(session: Session, method: Method, data: FederatedData, seed: int, probe: Probe) -> Transcript:
    """Train one federation on ``data``. The prompt's start is the experiment's, as all clients know it; all other
    draws (personal starts, cohorts, batches, noise) come from ``seed``."""
    work, _ = session.work(method, data)
    privacy: Privacy = build_privacy(session.experiment.privacy, work.config, seed)
    work.seed, work.module.run_seed, work.protection = seed, seed, privacy
    rehearse(work, privacy, range(min(2, work.config.participants)))
    transcript = Transcript(work.config.rounds, data.num_clients, seed)
    federation = Federation(
        method,
        Tap(work, transcript, probe),
        work.config,
        fresh_server(work.module.declared, work.module.shared_start()),
        seed=seed,
        privacy=privacy,
        defences=session.experiment.defences,
        clients=data.summary(),
        name=data.name,
    )
    federation.meet()
    transcript.shared.append(dict(federation.server.shared))
    for number in range(1, work.config.rounds + 1):
        record = federation.round(number)
        transcript.shared.append(dict(federation.server.shared))
    if work.config.rounds and record.accuracy is not None:
        transcript.accuracy = float(record.accuracy["mean"])
    most = max((known.rounds_seen for known in federation.server.clients.values()), default=0)
    transcript.privacy = privacy.summary(most)
    return transcript


def is_prompt(module: ClientModule, tensors: Tensors) -> bool:
    """Whether there is a prompt among the tensors that CLIP's text encoder can read as it is."""
    return "prompt" in tensors and tensors["prompt"].shape == module.prompts.start.shape
