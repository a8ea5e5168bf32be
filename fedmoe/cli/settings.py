"""The options of each command, and an experiment's settings as objects, as plain values and as YAML."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import Namespace

from fedmoe.cli.parser import CommandParser
from fedmoe.config import (
    ClipConfig,
    FeatureConfig,
    FederationConfig,
    OptimConfig,
    OutputConfig,
    PrivacyConfig,
    PromptConfig,
    RuntimeConfig,
    TrackingConfig,
    ViewsConfig,
)
from fedmoe.errors import UserError

if TYPE_CHECKING:
    from fedmoe.experiment import Experiment
    from fedmoe.protocol.method import Method

GROUPS = {
    "clip": ClipConfig,
    "prompt": PromptConfig,
    "federation": FederationConfig,
    "optim": OptimConfig,
    "features": FeatureConfig,
    "views": ViewsConfig,
    "privacy": PrivacyConfig,
    "runtime": RuntimeConfig,
    "tracking": TrackingConfig,
    "output": OutputConfig,
}
COMMANDS = {
    "fit": "Train one method, or several to compare.",
    "evaluate": "Score every client of a run from its last checkpoint.",
    "report": "Print the table and draw the plots of a run or a comparison.",
    "partition": "Show who holds which classes, without training.",
    "features": "Fill, list, inspect or clear the cache of image features.",
    "data": "Check that a data set is complete on disk.",
}
_SEED = (
    "seed of everything random in a run: partition, the prompt's start, cohorts, batches, gates, noise; not of "
    "data.sample_seed and views.seed, which stay the same over the seeds of an experiment"
)
_RESUME = (
    "a run or comparison folder to continue; its settings are used, and those given here may change rounds, tracking "
    "and the like"
)


@cache
def experiment_parser() -> CommandParser:
    """The parser of an experiment's settings."""
    return _with_experiment("", "Settings of an experiment.")


@cache
def build_parser(command: str) -> CommandParser:
    """The parser of one command, which is one of ``COMMANDS``."""
    if command not in ("evaluate", "report"):
        parser = _with_experiment(command, COMMANDS[command])
    else:
        parser = CommandParser(command, COMMANDS[command])
    _OPTIONS[command](parser)
    return parser


def _with_experiment(command: str, description: str) -> CommandParser:
    """A parser that has an experiment's settings."""
    from fedmoe.data import DataSet, Partition
    from fedmoe.methods import Method

    parser = CommandParser(command, description, ("--data=Digits", "--partition=Dirichlet", "--method=PFedMoAP"))
    parser.config()
    parser.option("seed", int, _SEED, 0)
    for name, group in GROUPS.items():
        parser.group(name, group)
    parser.option("data", DataSet, "the data set (default: Digits)")
    parser.option("partition", Partition, "who holds which examples (default: Dirichlet)")
    parser.option("method", Method, "the method (default: PFedMoAP)")
    parser.option("methods", list[Method] | None, "several methods to compare, in place of method", None)
    return parser


def _fit(parser: CommandParser) -> None:
    parser.option("resume", str | None, _RESUME, None)


def _evaluate(parser: CommandParser) -> None:
    parser.positional("run", str, "a run folder")
    held_out = "also score own, base and novel classes: those within and beyond data.subset.classes of the run"
    parser.option("classes", bool, held_out, False)
    join = "rounds for which each of federation.late_clients trains before its second score"
    parser.option("join_rounds", int, join, 1)


def _report(parser: CommandParser) -> None:
    parser.positional("run", str, "a run folder, or a folder of runs to compare")
    parser.option("html", str | None, "also write one self-contained page to this file", None)


def _partition(parser: CommandParser) -> None:
    parser.option("picture", str, "PNG file to draw the partition to", "partition.png")


def _features(parser: CommandParser) -> None:
    parser.positional("action", Literal["fill", "list", "inspect", "clear"], "what to do with the cache")
    parser.option("keys", list[str], "entries to inspect or clear; [all] clears all", [])


def _data(parser: CommandParser) -> None:
    parser.positional("action", Literal["check"], "check: is the data set complete, and of the known size")
    parser.option("headers", bool, "also read the header of every image", False)


_OPTIONS: dict[str, Callable[[CommandParser], None]] = {
    "fit": _fit,
    "evaluate": _evaluate,
    "report": _report,
    "partition": _partition,
    "features": _features,
    "data": _data,
}


def load_settings(path: Path) -> Namespace:
    """The settings in a file, with today's defaults for those that it lacks.

    Raises:
        UserError: the file holds a mistake.
    """
    return experiment_parser().parse_args([f"--config={path}"])


def as_experiment(settings: Namespace) -> tuple[Experiment, list[Method]]:
    """Settings as objects: the experiment, and the methods to run."""
    from fedmoe.experiment import Experiment

    built = experiment_parser().instantiate(_of_experiment(settings))
    methods = built.methods if built.methods is not None else [built.method]
    if not methods:
        raise UserError("methods is an empty list; valid is null or a list of at least one method.")
    groups = {name: built[name] for name in (*GROUPS, "data", "partition", "seed")}
    return Experiment(**groups), methods


def as_yaml(settings: Namespace, index: int | None = None) -> str:
    """The settings as YAML, defaults included; of a comparison, those that run its ``index``-th method alone."""
    own = _of_experiment(settings)
    own.output.overwrite = False  # what a command does once is no setting of the run
    if index is not None:
        own.method, own.methods = own.methods[index], None
    return experiment_parser().dump(own)


def _of_experiment(settings: Namespace) -> Namespace:
    """A copy without the options that only a command has."""
    own = settings.clone()
    for name in vars(own).keys() - {option.partition(".")[0] for option in experiment_parser().options}:
        own.pop(name)
    return own
