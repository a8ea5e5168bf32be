"""What a run has measured, as pandas frames and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedmoe.report.run import Run
from fedmoe.tracking.names import round_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result:
    """A run folder. ``rounds`` and ``clients`` have what had been written when it was read.

    Attributes:
        folder: the run folder.
        finished: whether the run has reached its last round.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.folder: Path = run.path
        self.finished: bool = run.finished

    @property
    def accuracy(self) -> float | None:
        """Mean over clients in the last evaluated round, percent; None before the first one."""
        last = self._run.last
        return last.accuracy["mean"] if last and last.accuracy else None

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """A row for each round, by its number; columns as in rounds.csv, NaN where a round has no value."""
        rows = [round_row(record.to_json(), self._run.num_clients) for record in self._run.rounds]
        return pd.DataFrame(rows).set_index("round").astype(float)

    @cached_property
    def clients(self) -> pd.DataFrame:
        """A row for each evaluated round and client, as in clients.jsonl; the gate's numbers as gate/<name>."""
        rows = []
        for scores in self._run.clients.values():
            for score in scores:
                row = score.to_json()
                gate = row.pop("gate") or {}
                rows.append(row | {f"gate/{key}": value for key, value in gate.items()})
        if not rows:
            rows = [dict.fromkeys(("round", "client"))]
            return pd.DataFrame(rows).dropna().set_index(["round", "client"])
        return pd.DataFrame(rows).set_index(["round", "client"]).sort_index()

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row, by the folder's path, so that those of several runs can be concatenated.

        Columns: method, label, seed, finished, rounds, accuracy/<statistic> of the last evaluated round (percent), the
        sums over all rounds of seconds/<phase> and bytes/<direction>, and failed_clients, how many failed once.
        """
        run, last = self._run, self._run.last
        row: dict[str, Any] = {"method": run.method, "label": run.label, "seed": run.seed, "finished": run.finished}
        row |= {"rounds": run.rounds[-1].round}
        row |= {f"accuracy/{key}": value for key, value in ((last and last.accuracy) or {}).items()}
        row |= {f"seconds/{phase}": value for phase, value in run.seconds.items()}
        row |= {f"bytes/{key}": sum(r.bytes[key] for r in run.rounds) for key in ("down", "up", "evaluate_down")}
        row |= {"failed_clients": len(run.failed)}
        return pd.DataFrame([row], index=[str(self.folder)])

    def plot(self) -> Figure:
        """Accuracy over rounds with its spread over clients, as in the folder's plots.

        Raises:
            UserError: no round has been evaluated yet.
        """
        from fedmoe.errors import UserError
        from fedmoe.report.accuracy import accuracy_over_rounds

        if self._run.last is None:
            raise UserError(f"{self.folder} has no evaluated round yet; there is nothing to plot.")
        return accuracy_over_rounds(self._run)

    def predict(
        self, images: str | Path | Sequence[str | Path], client: int, *, top: int = 5, best: bool = False
    ) -> pd.DataFrame:
        """Predict the classes of images with one client of the run, as ``fedmoe predict`` does.

        Args:
            images: image files, and folders that are searched for them; or one of these.
            client: its number, from 0.
            top: how many of the most probable classes to give for each image.
            best: from the checkpoint with the best validation accuracy in place of the last one.

        Returns:
            A row for each image and class, by the file and the rank from 1, with the columns class and probability; of
            a method with experts also weight/<expert>, the gate's weights of that image, the same in each of its rows.

        Raises:
            UserError: an image cannot be read, or the run has no such client, or no checkpoint.
        """
        from rich.console import Console

        from fedmoe.cli.settings import as_experiment, load_settings
        from fedmoe.experiment import Session
        from fedmoe.prediction.client import require_checkpoint, require_client, restore_client
        from fedmoe.prediction.images import find_images, predict

        paths = find_images([str(path) for path in ([images] if isinstance(images, str | Path) else images)])
        experiment, methods = as_experiment(load_settings(self.folder / "config.yaml"))
        require_client(client, experiment.federation.clients)
        require_checkpoint(self.folder, best)  # before CLIP is loaded
        restored = restore_client(Session(experiment, Console(quiet=True)), methods[0], self.folder, client, best)
        rows = [
            {"image": found.image, "rank": rank, "class": name, "probability": share}
            | {f"weight/{expert}": weight for expert, weight in found.experts}
            for found in predict(restored, experiment.data, paths, top)
            for rank, (name, share) in enumerate(found.classes, start=1)
        ]
        columns = None if rows else ["image", "rank", "class", "probability"]
        return pd.DataFrame(rows, columns=columns).set_index(["image", "rank"])

    def __repr__(self) -> str:
        accuracy = "not evaluated" if self.accuracy is None else f"{self.accuracy:.2f} %"
        state = "" if self.finished else ", unfinished"
        return (
            f"<Result {self._run.label}: {accuracy} after round {self._run.rounds[-1].round}{state}, in {self.folder}>"
        )
