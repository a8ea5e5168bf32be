"""Tables and pictures of single rounds, for the trackers. Everything is read from the run folder.

Shape letters: N clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fedmoe.federation.callbacks import FederationView
from fedmoe.federation.evaluation import Evaluation
from fedmoe.report.plot_style import image
from fedmoe.report.plots import expert_assignment, expert_attention, label_distribution
from fedmoe.report.run import LabelCounts, Run, read_run
from fedmoe.runs.records import RoundRecord

CLIENT_COLUMNS = ("round", "client", "domain", "accuracy", "correct", "total", "train_examples", "experts")


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
        evaluation = self.due(run, record)
        return None if evaluation is None else (CLIENT_COLUMNS, client_rows(evaluation))

    def pictures(self, run: FederationView, record: RoundRecord) -> dict[str, Image.Image]:
        evaluation = self.due(run, record)
        if evaluation is None or not (evaluation.experts or evaluation.attention):
            return {}
        return {
            f"experts/{name}": picture for name, picture in round_pictures(read_run(self.folder), evaluation).items()
        }

    def labels(self, run: FederationView) -> Image.Image:
        return image(label_distribution(LabelCounts.of(run.clients)))


def client_rows(evaluation: Evaluation) -> list[list[Any]]:
    """A row per client, with the columns ``CLIENT_COLUMNS``; accuracy in percent, experts as text."""
    rows = []
    for score in evaluation.clients:
        experts = " ".join(map(str, evaluation.experts.get(str(score.client), [])))
        rows.append([*(getattr(score, column) for column in CLIENT_COLUMNS[:-1]), experts])
    return rows


def round_pictures(run: Run, evaluation: Evaluation) -> dict[str, Image.Image]:
    """``assignment`` and ``attention`` of the run's last round, as far as the method has them."""
    pictures = {}
    if evaluation.experts:
        experts = {int(client): ids for client, ids in evaluation.experts.items()}
        number = evaluation.clients[0].round
        pictures["assignment"] = image(expert_assignment(experts, len(evaluation.clients), number))
    if evaluation.attention is not None:
        pictures["attention"] = image(expert_attention(run))
    return pictures
