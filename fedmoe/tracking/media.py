"""Tables and pictures of single rounds, for the trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fedmoe.federation.callbacks import FederationView
from fedmoe.federation.evaluation import Evaluation
from fedmoe.report.plot_style import image
from fedmoe.report.plots import expert_assignment, expert_attention, label_distribution
from fedmoe.report.run import LabelCounts, read_run
from fedmoe.runs.records import RoundRecord

_SCORE = ("round", "client", "domain", "accuracy", "correct", "total", "train_examples", "accuracy_others", "gate")
CLIENT_COLUMNS = (*_SCORE, "experts")


class Details:
    """Tables and pictures of evaluated rounds: of every ``every``-th, and of the last."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.evaluation: Evaluation | None = None

    def due(self, run: FederationView, record: RoundRecord) -> Evaluation | None:
        """The round's evaluation, if it is to be shown in detail."""
        wanted = record.round % self.every == 0 or record.round == run.config.rounds
        return self.evaluation if record.evaluated and wanted else None

    def table(self, run: FederationView, record: RoundRecord) -> tuple[Sequence[str], list[list[Any]]] | None:
        """``CLIENT_COLUMNS``, and a row per client: accuracy in percent, experts as text."""
        evaluation = self.due(run, record)
        if evaluation is None:
            return None
        rows = []
        for score in evaluation.clients:
            experts = " ".join(map(str, evaluation.experts.get(str(score.client), [])))
            rows.append([*(getattr(score, column) for column in CLIENT_COLUMNS[:-1]), experts])
        return CLIENT_COLUMNS, rows

    def pictures(self, run: FederationView, record: RoundRecord) -> dict[str, Image.Image]:
        """``experts/assignment`` and ``experts/attention``, as far as the method has them."""
        evaluation, pictures = self.due(run, record), {}
        if evaluation is not None and evaluation.experts:
            experts = {int(client): ids for client, ids in evaluation.experts.items()}
            chart = expert_assignment(experts, run.config.clients, record.round)
            pictures["experts/assignment"] = image(chart)
        if evaluation is not None and evaluation.attention is not None:
            pictures["experts/attention"] = image(expert_attention(read_run(self.folder)))
        return pictures

    def labels(self, run: FederationView) -> Image.Image:
        """The label distribution over clients."""
        return image(label_distribution(LabelCounts.of(run.clients)))
