"""Tables and pictures of single rounds, for the trackers. Everything is read from the run folder.

Shape letters: N clients.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fedmoe.federation.callbacks import FederationView
from fedmoe.federation.evaluation import Evaluation
from fedmoe.report.plot_style import COUNTS, frame, style, styled
from fedmoe.report.plots import expert_attention, label_distribution
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
        return {f"experts/{name}": image for name, image in round_pictures(read_run(self.folder), evaluation).items()}

    def labels(self, run: FederationView) -> Image.Image:
        return labels_picture(run.clients)


def client_rows(evaluation: Evaluation) -> list[list[Any]]:
    """A row per client, with the columns ``CLIENT_COLUMNS``; accuracy in percent, experts as text."""
    rows = []
    for score in evaluation.clients:
        experts = " ".join(map(str, evaluation.experts.get(str(score.client), [])))
        rows.append([*(getattr(score, column) for column in CLIENT_COLUMNS[:-1]), experts])
    return rows


def labels_picture(summary: Mapping[str, Any]) -> Image.Image:
    """Label distribution over clients; ``summary`` as in partition.json."""
    train, test = (np.array(summary[key], dtype=np.int64) for key in ("counts_train", "counts_test"))
    domains = None if summary["domains"] is None else tuple(summary["domains"])
    return render(label_distribution(LabelCounts(tuple(summary["class_names"]), train, test, domains)))


def round_pictures(run: Run, evaluation: Evaluation) -> dict[str, Image.Image]:
    """``assignment`` and ``attention`` of the run's last round, as far as the method has them."""
    pictures = {}
    if evaluation.experts:
        experts = {int(client): ids for client, ids in evaluation.experts.items()}
        number = evaluation.clients[0].round
        pictures["assignment"] = render(expert_assignment(experts, len(evaluation.clients), number))
    if evaluation.attention is not None:
        pictures["attention"] = render(expert_attention(run))
    return pictures


@styled
def expert_assignment(experts: Mapping[int, Sequence[int]], num_clients: int, number: int) -> Figure:
    """Who uses whose prompt: a row per client, with a dark cell for each client whose prompt it has as an expert.

    Args:
        experts: client -> ids of its experts.
        number: the round.
    """
    matrix = np.zeros((num_clients, num_clients))  # [N, N]
    for client, ids in experts.items():
        matrix[client, list(ids)] = 1
    users = matrix.sum(axis=0)
    subtitle = f"Round {number}: {len(experts)} of {num_clients} clients have experts; above: clients that use a prompt"
    figure = frame(8.0, "Expert assignment: who uses whose prompt", subtitle)
    grid = figure.add_gridspec(2, 1, height_ratios=[1, 7])
    axes = figure.add_subplot(grid[1])
    top = figure.add_subplot(grid[0], sharex=axes)
    axes.imshow(matrix, cmap=COUNTS, vmin=0, vmax=1, aspect="auto", interpolation="nearest", alpha=matrix)
    axes.plot([-0.5, num_clients - 0.5], [-0.5, num_clients - 0.5], color="#A0A0A0", linewidth=0.8)
    axes.set(xlabel="whose prompt", ylabel="client that uses it")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    top.bar(range(num_clients), users, width=0.8, color="#8C9AA5", linewidth=0)
    top.set_ylabel("users")
    top.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
    top.tick_params(axis="x", length=0, labelbottom=False)
    return figure


def render(figure: Figure) -> Image.Image:
    """The figure as an image, 960 pixels wide."""
    buffer = io.BytesIO()
    with style():  # ticks are created only now
        figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
