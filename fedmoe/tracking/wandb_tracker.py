"""W&B: one W&B run per run folder, with the round as the step metric."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.config import TrackingConfig, flatten
from fedmoe.errors import printable, some
from fedmoe.federation.callbacks import Callback, FederationView
from fedmoe.federation.evaluation import Evaluation
from fedmoe.io import read_regular, write_json_atomic
from fedmoe.runs.records import RoundRecord
from fedmoe.tracking.background import Background
from fedmoe.tracking.names import final_row, past_rounds, round_row

if TYPE_CHECKING:
    from PIL import Image

    from fedmoe.tracking.media import Table

_STATE = ("config.yaml", "run.json", "partition.json")  # beside the checkpoints, of an artifact


def sweep_run_id() -> str | None:
    """The id that W&B's sweep agent gave to this process; None outside a sweep.

    The runs of a sweep differ in settings that a run folder's name does not show, so the name contains the id.
    """
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


class WandbTracker(Callback):
    """The run folder's W&B run: metrics of each round, tables and pictures at chosen rounds, a summary at the end, on
    request the last checkpoint, and an alert when clients fail.

    W&B works in a thread of its own, and a round never waits for it. Its first failure, whatever it is, is reported in
    one sentence and ends W&B for this run; the run and its folder do not notice.

    wandb.json keeps the id of the W&B run, so that a resumed run continues it, and ``rounds``: how many of the first
    rounds W&B is known to have, because a start that sent them came to an orderly end. All others in rounds.jsonl are
    sent when the run is resumed, without tables and pictures: they were done before W&B was turned on, or the process
    was killed, and W&B's files may lack what it was given last. Offline, such a round may be in two of W&B's folders,
    with the same values.

    Args:
        settings: resolved settings, nested; W&B's config has them under the names of the command line.
        report: receives messages; by default, they are printed to stderr.
    """

    def __init__(
        self,
        config: TrackingConfig,
        folder: Path,
        settings: Mapping[str, Any],
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.folder, self.settings = config, folder, settings
        self.report = report or (lambda text: print(printable(text), file=sys.stderr))
        self._background: Background | None = None
        self._run: Any = None  # wandb.Run, of the thread
        self._logged = 0  # rounds that W&B has been given, of the thread
        self._once: dict[str, Any] = {}

    def on_run_start(self, run: FederationView) -> None:
        done, (known, safe) = run.rounds_done, self._known()
        if done >= run.config.rounds and known is not None and safe > done:
            return  # a finished run that W&B has
        from fedmoe.tracking.media import Details

        self._details = Details(self.folder, self.config.detail_every)
        self._background = background = Background(self._failed)
        past = [round_row(record, run.config.participants) for record in past_rounds(self.folder)]
        group = self.config.group or f"{run.name}/{run.method.label}"
        try:
            labels = self._details.labels(run) if safe == 0 else None
        except Exception as error:
            background.fail(error)
            return
        background.submit(partial(self._start, known, safe, past, labels, group))

    def on_evaluation_end(self, run: FederationView, evaluation: Evaluation) -> None:
        if self._on:
            self._details.evaluation = evaluation

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        if not self._on or self._background is None:
            return
        try:
            row = round_row(record.to_json(), run.config.participants)
            pictures = self._details.pictures(run, record)
            tables = self._details.tables(run, record)
        except Exception as error:
            self._background.fail(error)
            return
        self._background.submit(partial(self._log, row, pictures, tables))
        if record.failed:
            self._background.submit(partial(self._alert, record.round, record.failed))

    def on_run_end(self, run: FederationView) -> None:
        if self._on and self._background is not None:
            self._background.submit(lambda: self._run.summary.update(final_row(past_rounds(self.folder))))
            if self.config.artifacts:
                self._background.submit(self._send_state)
        self._end(0)

    def close(self) -> None:
        self._end(1)

    @property
    def _on(self) -> bool:
        return self._background is not None and not self._background.failed

    def _end(self, exit_code: int) -> None:
        background, self._background = self._background, None
        if background is None:
            return
        patience = self.config.timeout + 5  # W&B itself gives up after the timeout
        if not background.close(patience, lambda: self._finish(exit_code, background.failed)):
            background.fail(TimeoutError(f"no answer within {self.config.timeout:g} seconds of the run's end"))

    def _failed(self, error: BaseException) -> None:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        again = ""
        if self._run is not None:
            again = f", and `wandb sync {Path(self._run.dir).parent}` can send what W&B has"
        self.report(f"W&B is off for this run: {reason}. The files in {self.folder} are complete{again}.")

    def _known(self) -> tuple[str | None, int]:
        """The id of the folder's W&B run, None where it has none, and how many rounds W&B is known to have."""
        try:
            found = json.loads(read_regular(self.folder / "wandb.json"))
            name, rounds = found["id"], found.get("rounds", 0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None, 0
        if not (isinstance(name, str) and name):
            return None, 0
        return name, rounds if type(rounds) is int else 0

    def _keep(self, rounds: int) -> None:
        url = self._run.url if self.config.wandb == "online" else None
        known = {"id": self._run.id, "project": self._run.project, "url": url, "rounds": rounds}
        write_json_atomic(self.folder / "wandb.json", known)

    # In the thread

    def _start(
        self, known: str | None, safe: int, past: list[dict[str, Any]], labels: Image.Image | None, group: str
    ) -> None:
        import wandb

        config = self.config
        folder = Path(config.dir or self.folder)
        folder.mkdir(parents=True, exist_ok=True)  # otherwise W&B would use the system's temporary folder
        wandb.setup(wandb.Settings(show_info=False))  # also: never ask for a key, not even on a terminal
        run = wandb.init(
            mode="online" if config.wandb == "online" else "offline",
            project=None if sweep_run_id() else config.project,  # in a sweep, its agent sets project and id
            entity=config.entity,
            id=None if sweep_run_id() else known or secrets.token_hex(4),
            resume="allow",
            name=self._name(),
            group=group,
            job_type=config.job_type,
            tags=config.tags,
            config=flatten(self.settings),
            dir=folder,
            settings=wandb.Settings(
                reinit="create_new",  # a process may run several methods
                console="off",  # the terminal belongs to the run
                show_info=False,
                quiet=True,  # otherwise it first looks up the user's name, with a timeout of its own
                init_timeout=config.timeout,
                finish_timeout=config.timeout,
                finish_timeout_raises=True,
            ),
        )
        self._run = run
        run.define_metric("round")
        run.define_metric("*", step_metric="round")
        self._keep(safe)
        if labels is not None:
            self._once["clients/labels"] = wandb.Image(labels)
        if config.wandb == "online" and run.url:
            self.report(f"W&B: {run.url}")
        # Online, W&B knows where the run stands; offline, only an orderly end shows what its files hold.
        self._first = run.starting_step if config.wandb == "online" else safe
        if known is not None and config.wandb == "offline" and self._first < len(past):
            self.report(
                f"W&B: rounds {self._first} to {len(past) - 1} are written again from rounds.jsonl, because an earlier "
                "start was cut off and W&B's files may lack some of them."
            )
        for row in past:
            self._log(row, {}, {})

    def _log(self, row: dict[str, Any], pictures: Mapping[str, Image.Image], tables: Mapping[str, Table]) -> None:
        import wandb

        self._logged = row["round"] + 1
        if row["round"] < self._first:
            return  # W&B has it already
        data: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
        self._run.log(data, step=row["round"], commit=False)  # kept even if tables or pictures fail
        data = {name: wandb.Image(picture) for name, picture in pictures.items()}
        data |= {name: wandb.Table(columns=list(columns), data=rows) for name, (columns, rows) in tables.items()}
        data |= self._once
        self._once = {}
        self._run.log(data, step=row["round"], commit=True)

    def _alert(self, number: int, failed: Mapping[str, str]) -> None:
        told = some([f"client {client}: {reason}" for client, reason in failed.items()], separator="; ")
        text = f"Round {number}: clients that failed ({len(failed)}) are left out. {told}"
        # One in an hour, so that a client that always fails does not fill a mailbox.
        self._run.alert(f"Clients failed in {self._name()}", text, "WARN", timedelta(hours=1))

    def _send_state(self) -> None:
        """The run folder as far as predict, export and evaluate need it."""
        import wandb

        artifact = wandb.Artifact(f"{self._run.id}-state", type="model", metadata={"round": self._logged - 1})
        for name in _STATE:
            artifact.add_file(str(self.folder / name))
        artifact.add_dir(str(self.folder / "state"), name="state")
        self._run.log_artifact(artifact)

    def _finish(self, exit_code: int, failed: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1 if failed else exit_code)
            if not failed:
                self._keep(self._logged)
            if self.config.wandb == "offline" and not exit_code and not failed:
                self.report(f"W&B: written offline; `wandb sync {Path(self._run.dir).parent}` sends it.")

    def _name(self) -> str:
        parent = self.folder.resolve().parent
        name = self.folder.resolve().name
        return f"{parent.name}/{name}" if (parent / "comparison.json").exists() else name
