"""What a run has measured, as pandas frames and a figure."""

from __future__ import annotations

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

    def __repr__(self) -> str:
        accuracy = "not evaluated" if self.accuracy is None else f"{self.accuracy:.2f} %"
        state = "" if self.finished else ", unfinished"
        return (
            f"<Result {self._run.label}: {accuracy} after round {self._run.rounds[-1].round}{state}, in {self.folder}>"
        )
