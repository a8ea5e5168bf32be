"""Metrics of each round for people and tools: rounds.csv always, TensorBoard and W&B on request.

The source of truth is rounds.jsonl, from which everything here can be rebuilt. ``tracking/names.py`` lists all names.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.config import TrackingConfig
from fedmoe.errors import UserError
from fedmoe.federation.callbacks import Callback, FederationView
from fedmoe.federation.evaluation import Evaluation
from fedmoe.io import write_text_atomic
from fedmoe.runs.records import RoundRecord
from fedmoe.tracking.names import DOMAIN, METRICS, past_rounds, round_row

if TYPE_CHECKING:
    from PIL import Image


def trackers(config: TrackingConfig, folder: Path, settings: Mapping[str, Any]) -> list[Callback]:
    """The callbacks that the configuration asks for. They must come after ``RunLog`` and ``Checkpoint``.

    Args:
        folder: the run folder.
        settings: the run's resolved settings, nested, as in config.yaml.

    Raises:
        UserError: TensorBoard is requested but not installed.
    """
    from fedmoe.tracking.wandb_tracker import WandbTracker

    chosen: list[Callback] = [CsvLog(folder)]
    if config.tensorboard:
        chosen.append(TensorBoardLog(folder, config.detail_every))
    if config.wandb != "disabled":
        chosen.append(WandbTracker(config, folder, settings))
    return chosen


class CsvLog(Callback):
    """Writes rounds.csv: a row per line of rounds.jsonl, with the columns ``METRICS``, domains and the method's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_run_start(self, run: FederationView) -> None:
        domains = dict.fromkeys(run.clients.get("domains") or [])
        self._columns = [*METRICS, *(DOMAIN.format(domain=name) for name in domains)]
        # From the JSONL, which was cut back to the last checkpoint if the run was interrupted.
        self._rows = [round_row(record, run.config.participants) for record in past_rounds(self.folder)]
        if self._rows:
            self._write()

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        self._rows.append(round_row(record.to_json(), run.config.participants))
        self._write()

    def _write(self) -> None:
        text = io.StringIO()
        # The method's own metrics are known only once a round has them; they come last.
        columns = dict.fromkeys([*self._columns, *(name for row in self._rows for name in row)])
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text_atomic(self.folder / "rounds.csv", text.getvalue())


class TensorBoardLog(Callback):
    """Writes event files to tensorboard/ in the run folder: the same names as W&B's, the round as step.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, detail_every: int) -> None:
        self.folder, self.detail_every = folder, detail_every
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"tracking.tensorboard is true, but TensorBoard cannot be imported ({error}); "
                "pip install 'fedmoe[tensorboard]' or set it to false."
            ) from error
        self._new: Callable[..., Any] = SummaryWriter
        self._writer: Any = None

    def on_run_start(self, run: FederationView) -> None:
        from fedmoe.tracking.media import Details

        self._details = Details(self.folder, self.detail_every)
        if run.rounds_done < run.config.rounds:
            # purge_step: readers drop what an interrupted start wrote after the checkpoint.
            first = run.rounds_done + 1
            self._writer = self._new(str(self.folder / "tensorboard"), purge_step=first if first > 0 else None)
            if first == 0:
                self._image("clients/labels", self._details.labels(run), 0)

    def on_evaluation_end(self, run: FederationView, evaluation: Evaluation) -> None:
        self._details.evaluation = evaluation

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        for name, value in round_row(record.to_json(), run.config.participants).items():
            if value is not None and name != "round":
                self._writer.add_scalar(name, value, record.round)
        for name, picture in self._details.pictures(run, record).items():
            self._image(name, picture, record.round)
        self._writer.flush()

    def on_run_end(self, run: FederationView) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _image(self, name: str, picture: Image.Image, number: int) -> None:
        import numpy as np

        self._writer.add_image(name, np.asarray(picture), number, dataformats="HWC")
