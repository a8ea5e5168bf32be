"""Tables and pictures of single rounds, for the trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fedmoe.federation.accuracy import per_class
from fedmoe.federation.callbacks import FederationView
from fedmoe.federation.evaluation import Evaluation
from fedmoe.report.confusion import confusion
from fedmoe.report.plot_style import image
from fedmoe.report.plots import expert_assignment, expert_attention, label_distribution
from fedmoe.report.run import LabelCounts, read_run
from fedmoe.runs.records import RoundRecord

_SCORE = ("round", "client", "domain", "accuracy", "correct", "total", "train_examples", "accuracy_others", "gate")
CLIENT_COLUMNS = (*_SCORE, "experts")
CLASS_COLUMNS = ("round", "class", "test_examples", "accuracy")
Table = tuple[Sequence[str], list[list[Any]]]  # columns and rows


class Details:
    """Tables and pictures of evaluated rounds: of every ``every``-th, and of the last."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.evaluation: Evaluation | None = None

    def due(self, run: FederationView, record: RoundRecord) -> Evaluation | None:
        """The round's evaluation, if it is to be shown in detail."""
        wanted = record.round % self.every == 0 or record.round == run.config.rounds
        return self.evaluation if record.evaluated and wanted else None

    def tables(self, run: FederationView, record: RoundRecord) -> dict[str, Table]:
        """``clients/table``: ``CLIENT_COLUMNS``, and a row per client, with accuracy in percent and experts as text;
        ``classes/table``: ``CLASS_COLUMNS``, and a row per class."""
        evaluation = self.due(run, record)
        if evaluation is None:
            return {}
        rows = []
        for score in evaluation.clients:
            experts = " ".join(map(str, evaluation.experts.get(str(score.client), [])))
            rows.append([*(getattr(score, column) for column in CLIENT_COLUMNS[:-1]), experts])
        found = zip(_class_names(run), evaluation.confusion, per_class(evaluation.confusion), strict=True)
        classes = [[record.round, name, sum(row), share] for name, row, share in found]
        return {"clients/table": (CLIENT_COLUMNS, rows), "classes/table": (CLASS_COLUMNS, classes)}

    def pictures(self, run: FederationView, record: RoundRecord) -> dict[str, Image.Image]:
        """``classes/confusion``, and as far as the method has them ``experts/assignment`` and ``experts/attention``."""
        evaluation, pictures = self.due(run, record), {}
        if evaluation is not None:
            pictures["classes/confusion"] = image(confusion(evaluation.confusion, _class_names(run), record.round))
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


def _class_names(run: FederationView) -> list[str]:
    return list(run.clients.get("class_names", []))
