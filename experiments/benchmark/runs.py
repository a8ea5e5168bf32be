"""The runs of a protocol, one after the other in this process: CLIP and each federation's data are loaded once.

A run whose settings a method refuses before its first round is *refused*: the method does not apply there.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from experiments.benchmark.scores import asked, evaluation
from experiments.reproduce.manifest import ROOT, DataEntry
from experiments.reproduce.pending import as_arguments
from experiments.reproduce.plan import Plan, Run
from experiments.reproduce.runner import run_all
from fedmoe.data import DataSet
from fedmoe.display import say
from fedmoe.errors import UserError


@dataclass
class Done:
    """What became of the runs."""

    failed: list[tuple[Run, str]] = field(default_factory=list)  # and why
    refused: dict[str, str] = field(default_factory=dict)  # run's name -> the method's sentence
    interrupted: bool = False


def run_protocol(plan: Plan, jobs: int, console: Console) -> Done:
    """Run and score what is not finished. A run that fails does not stop the others.

    Raises:
        UserError: a target's files are missing; found before the first run.
    """
    done, here = Done(), _Here(plan)
    if jobs > 1:
        outcome = run_all(plan.runs, jobs, console, plan.manifest.name, plan.options.out)
        done.interrupted = outcome.interrupted
        for run, why in outcome.failed:
            _, refusal, sentence = why.partition("ended with code 2: Error: ")
            if refusal and not (run.folder / "rounds.jsonl").exists():
                done.refused[run.name] = sentence
            else:
                done.failed.append((run, why))
        if done.interrupted:
            return done
    apart = {run.name for run, _ in done.failed} | done.refused.keys()
    _run_here(here, [run for run in plan.runs if run.name not in apart], console, done)
    return done


def _run_here(here: _Here, runs: Sequence[Run], console: Console, done: Done) -> None:
    plan, data = here.plan, {run.name: cell.data for cell in here.plan.cells for run in cell.runs}
    # Runs that share their clients' data come one after the other.
    places = {run.name: (run.seed, cell.data.key, cell.x or 0.0) for cell in plan.cells for run in cell.runs}
    left = [run for run in runs if not (run.finished and _scored(plan, run, data[run.name]))]
    for number, run in enumerate(sorted(left, key=lambda run: places[run.name]), start=1):
        began, how = time.monotonic(), "done"
        try:
            here.run(run, data[run.name])
        except UserError as error:
            if (run.folder / "rounds.jsonl").exists():
                done.failed.append((run, str(error)))
                how = "FAILED"
            else:
                done.refused[run.name] = str(error)
                how = "not applicable"
        except KeyboardInterrupt:
            done.interrupted = True
            return
        except Exception as error:  # whatever a method raises is its row's, not the benchmark's
            run.log.parent.mkdir(parents=True, exist_ok=True)
            run.log.write_text(traceback.format_exc(), encoding="utf-8")
            done.failed.append((run, f"raised {type(error).__name__}: {error}"))
            how = "FAILED"
        say(console, f"{number}/{len(left)} {run.name}: {how}, {time.monotonic() - began:.1f} s")


def _scored(plan: Plan, run: Run, data: DataEntry) -> bool:
    return not asked(plan.manifest.scores, bool(data.targets)) - evaluation(run).keys()


class _Here:
    """What runs of this process share: CLIPs, and the session of the last run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clips: dict[str, Any] = {}
        self.session: Any = None
        self.settings: Mapping[str, Any] = {}
        self.targets = read_targets(plan)

    def run(self, run: Run, data: DataEntry) -> None:
        """Train, unless that is finished, and score."""
        from fedmoe.cli.settings import as_experiment, as_plain, experiment_parser, load_settings
        from fedmoe.experiment import Session, evaluate, load_clip
        from fedmoe.experiment import run as train

        arguments = [
            f"--config={ROOT / a.partition('=')[2]}" if a.startswith("--config=") else a for a in run.arguments
        ]
        output = [f"--output.dir={run.folder.parent}", f"--output.name={run.folder.name}"]
        settings = experiment_parser().parse_args([*arguments, *output])
        experiment, (method,) = as_experiment(settings)
        plain = as_plain(settings)
        shared = {key: value for key, value in plain.items() if key not in ("method", "output", "tracking")}
        if shared == self.settings:
            self.session.experiment = experiment
        else:
            clip = json.dumps([plain["clip"], plain["runtime"]])
            if clip not in self.clips:
                self.clips[clip] = load_clip(experiment)
            self.session, self.settings = Session(experiment, Console(quiet=True), self.clips[clip]), shared
        if not run.finished:
            train(self.session, method, plain, run.folder, lambda path: as_plain(load_settings(path)))
        wanted = asked(self.plan.manifest.scores, bool(data.targets))
        if wanted - evaluation(run).keys():
            targets = self.targets.get(data.key)
            evaluate(self.session, method, run.folder, classes="classes" in wanted, targets=targets)


def read_targets(plan: Plan) -> dict[str, dict[str, DataSet]]:
    """Key of a data entry -> the data sets that its clients are scored on, by label; their files have been found.

    Raises:
        UserError: files are missing or cannot be used.
    """
    from fedmoe.cli.settings import as_experiment, experiment_parser

    root = plan.options.data
    given = [] if root is None else [f"--data.root={root.resolve()}"]
    found: dict[str, dict[str, DataSet]] = {}
    for entry in plan.manifest.data:
        for target in entry.targets:
            files = [f"--config={ROOT / path}" for path in target.configs]
            settings = experiment_parser().parse_args([*files, *as_arguments(target.settings), *given])
            data = as_experiment(settings)[0].data
            if not len(data.test):
                raise UserError(f"The target {target.label} has no test images; valid is a data set that has some.")
            found.setdefault(entry.key, {})[target.label] = data
    return found


def labels_of(plan: Plan, refused: Mapping[str, str]) -> dict[str, str]:
    """Row's label -> why it does not apply: the sentence of its first refused run."""
    found: dict[str, str] = {}
    for cell in plan.cells:
        for run in cell.runs:
            if run.name in refused:
                found.setdefault(cell.row.marked, refused[run.name])
    return found
