"""``fedmoe search``: trials as runs of their own, from the command's settings and those of a space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml
from jsonargparse import Namespace
from rich.console import Console

from fedmoe.cli.settings import as_experiment, as_plain, build_parser
from fedmoe.display import say
from fedmoe.errors import UserError
from fedmoe.io import write_text_atomic

BASE, BEST = "base.yaml", "best.yaml"


def search(settings: Namespace, console: Console, train: Callable[[Namespace, Console], Path]) -> None:
    """Run the trials that the folder lacks, then print all of them and write the best one's settings.

    Args:
        train: runs the settings of one trial; the run folder.

    Raises:
        UserError: there are no validation splits, Optuna is not installed, or the space or a trial's settings hold a
            mistake; all of them before the first trial.
    """
    from fedmoe.report.run import read_run
    from fedmoe.report.tables import show
    from fedmoe.runs.folder import held, storage
    from fedmoe.search.space import read_space
    from fedmoe.search.study import Tried, best_of, require_optuna, require_same, trials_table
    from fedmoe.search.study import search as run_trials

    experiment, methods = as_experiment(settings)
    _require_searchable(settings, experiment.federation.validation)
    space = read_space(Path(settings.space))
    require_optuna()
    folder = experiment.folder(type(methods[0]).__name__.lower(), "search")
    plain = as_plain(settings)

    def of_trial(trial: Tried) -> Namespace:
        # Files and names of classes, not objects: so that a searched class brings its own defaults.
        place = {"output.dir": str(folder), "output.name": trial.name}
        return build_parser("fit").parse_args([f"--config={folder / BASE}"], {**trial.settings, **place})

    def objective(trial: Tried) -> float:
        last = read_run(train(of_trial(trial), Console(quiet=True))).last
        if last is None or not last.validation:
            raise UserError(f"{folder / trial.name} has no validation accuracy; valid is federation.validation > 0.")
        return float(last.validation["mean"])

    folder.mkdir(parents=True, exist_ok=True)
    with storage(folder), held(folder):
        require_same(folder, plain, space)
        write_text_atomic(folder / BASE, yaml.safe_dump(plain, sort_keys=False))
        for ends in space.ends():
            as_experiment(of_trial(Tried(0, ends, None)))
        trials = run_trials(space, settings.trials, experiment.seed, folder, objective, lambda line: say(console, line))
        show(trials_table(trials), console)
        if best := best_of(trials):
            chosen = as_plain(of_trial(best))
            chosen["output"] = plain["output"]  # those of a run to come, not the trial's place
            chosen["output"]["name"] = None
            write_text_atomic(folder / BEST, yaml.safe_dump(chosen, sort_keys=False))
            say(console, f"Best: {best.name}; its settings: {folder / BEST}")


def _require_searchable(settings: Namespace, validation: float) -> None:
    if not validation:
        raise UserError(
            "federation.validation is 0, but search chooses by validation accuracy, never by the test split; valid is "
            "a number in (0, 1), such as --federation.validation=0.2."
        )
    if settings.methods is not None:
        raise UserError("methods is set, but search runs one method a trial; valid is methods=null and method.")
    if settings.trials < 1:
        raise UserError(f"trials is {settings.trials}; valid is an integer of at least 1.")
