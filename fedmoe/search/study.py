"""The trials of a search, which Optuna proposes and a file in its folder keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedmoe.errors import UserError
from fedmoe.io import read_regular, write_text_atomic
from fedmoe.report.tables import NONE, Cell, Table
from fedmoe.search.space import Choice, Range, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL, SETTINGS = "trials.log", "search.yaml"


@dataclass(frozen=True)
class Tried:
    """A trial: its number, its settings by name, and its validation accuracy in percent (None: not finished)."""

    number: int
    settings: Mapping[str, Any]
    accuracy: float | None

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"trial{self.number}"


def require_optuna() -> None:
    """Refuse a search without Optuna.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError("search needs Optuna, which is not installed; valid is pip install fedmoe[search].") from error


def require_same(folder: Path, settings: Mapping[str, Any], space: Space) -> None:
    """Keep settings and space of a search in its folder, or compare them with those kept there.

    Raises:
        UserError: the folder holds another search.
    """
    parameters = {name: repr(parameter) for name, parameter in space.parameters.items()}
    text = yaml.safe_dump({"method": space.method, "parameters": parameters, "settings": dict(settings)})
    path = folder / SETTINGS
    if path.exists() and read_regular(path).decode("utf-8") != text:
        raise UserError(f"{folder} holds a search with other settings ({path}); valid is another output.name.")
    if not path.exists():
        write_text_atomic(path, text)


def search(
    space: Space, trials: int, seed: int, folder: Path, objective: Callable[[Tried], float], told: Callable[[str], None]
) -> list[Tried]:
    """Try settings until the folder holds ``trials`` trials, or all of a grid's.

    What is proposed depends on ``seed`` and the trials before alone, so that a search that was interrupted goes on as
    if it had not been: the trial that was running is run again, whose own run folder does the same.

    Args:
        objective: runs a trial; its validation accuracy, percent.
        told: is given a line about each trial.

    Raises:
        UserError: Optuna is not installed, or the objective refuses a trial.
    """
    require_optuna()
    grid = space.grid() if space.method == "grid" else None
    study = _study(folder)
    for left in study.get_trials(deepcopy=False):
        if not left.state.is_finished():
            study.tell(left.number, _run(_tried(left), objective, told))
    for number in range(len(study.get_trials(deepcopy=False)), trials if grid is None else min(trials, len(grid))):
        trial = _ask(study, space, seed + number, grid[number] if grid is not None else None)
        study.tell(trial.number, _run(Tried(trial.number, trial.params, None), objective, told))
    return [_tried(trial) for trial in study.get_trials()]


def _run(trial: Tried, objective: Callable[[Tried], float], told: Callable[[str], None]) -> float:
    accuracy = objective(trial)
    told(f"{trial.name}: validation accuracy {accuracy:.2f} %, {_in_words(trial)}")
    return accuracy


def _study(folder: Path) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)


def _ask(study: Study, space: Space, seed: int, fixed: Mapping[str, Any] | None) -> Trial:
    from optuna.samplers import RandomSampler, TPESampler

    study.sampler = TPESampler(seed=seed) if space.method == "bayes" else RandomSampler(seed=seed)
    if fixed is not None:
        study.enqueue_trial(dict(fixed))
    return study.ask({name: _distribution(parameter) for name, parameter in space.parameters.items()})


def _distribution(parameter: Choice | Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.values)
    if parameter.integer:
        return IntDistribution(int(parameter.low), int(parameter.high), step=int(parameter.step or 1))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _tried(trial: FrozenTrial) -> Tried:
    return Tried(trial.number, trial.params, trial.value)


def _in_words(trial: Tried) -> str:
    return ", ".join(f"{name} = {_value(value)}" for name, value in trial.settings.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best_of(trials: list[Tried]) -> Tried | None:
    """The trial with the best validation accuracy, the earlier of equals; None without a finished one."""
    known = [trial for trial in trials if trial.accuracy is not None and math.isfinite(trial.accuracy)]
    return max(known, key=lambda trial: (trial.accuracy, -trial.number), default=None)


def trials_table(trials: list[Tried]) -> Table:
    """The trials, the best first."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    ordered = sorted(trials, key=lambda trial: (-(trial.accuracy if trial.accuracy is not None else -1), trial.number))
    rows = []
    for trial in ordered:
        cells = [_value(value) for value in trial.settings.values()]
        score = NONE if trial.accuracy is None else f"{trial.accuracy:.2f}"
        rows.append(tuple(Cell(text) for text in (trial.name, *cells, score)))
    note = "Validation accuracy: last round, mean over clients, %; the best of several is optimistic."
    return Table("Trials", ("trial", *names, "validation"), tuple(rows), (note,))
