"""The command line: ``python -m fedmoe.cli fit | evaluate | report | partition | features | data``.

Settings come from one or more --config files (the later wins) and from --key=value, which wins over files that stand
before it. Methods, data sets and partitions are named by class: a short name such as PFedMoAP, or a class path such
as mypackage.MyMethod.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console

from fedmoe.cli.mistakes import SentenceParser
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

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the settings' docstrings are their help

_GROUPS = {
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


def build_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    parser = SentenceParser(prog="python -m fedmoe.cli", description=__doc__)
    commands = parser.add_subcommands(dest="command")
    fit = experiment_parser()
    resume_help = "a run or comparison folder to go on with; its settings are taken, and those given here may change"
    fit.add_argument("--resume", type=str | None, default=None, help=f"{resume_help} rounds, tracking and the like")
    commands.add_subcommand("fit", fit, help="train; one method, or several to compare")
    evaluate = SentenceParser(description="Score every client of a run from its last checkpoint.")
    evaluate.add_argument("run", type=str, help="a run folder")
    held_out = "also score own, base and novel classes: those within and behind data.subset.classes of the run"
    evaluate.add_argument("--classes", type=bool, default=False, help=held_out)
    join = "rounds for which each of federation.late_clients trains before its second score"
    evaluate.add_argument("--join_rounds", type=int, default=1, help=join)
    commands.add_subcommand("evaluate", evaluate, help="score a run's clients from its last checkpoint")
    report = SentenceParser(description="Table and plots of a run or a comparison.")
    report.add_argument("run", type=str, help="a run folder, or a folder of runs to compare")
    report.add_argument("--html", type=str | None, default=None, help="also write one self-contained page to this file")
    commands.add_subcommand("report", report, help="table and plots of a run or a comparison")
    partition = experiment_parser()
    partition.add_argument("--picture", type=str, default="partition.png", help="PNG file to draw the partition to")
    commands.add_subcommand("partition", partition, help="show who holds which classes, without training")
    features = experiment_parser()
    features.add_argument("action", type=Literal["fill", "list", "inspect", "clear"], help="what to do with the cache")
    features.add_argument("--keys", type=list[str], default=[], help="entries to inspect or clear; [all] clears all")
    commands.add_subcommand("features", features, help="fill, list, inspect or clear the cache of image features")
    data = experiment_parser()
    data.add_argument("action", type=Literal["check"], help="check: is the data set complete, and of the known size")
    data.add_argument("--headers", type=bool, default=False, help="also read the header of every image")
    commands.add_subcommand("data", data, help="check a data set on disk")
    return parser


def experiment_parser() -> ArgumentParser:
    """The parser of an experiment's settings."""
    from fedmoe.data import DataSet, Partition
    from fedmoe.methods import Method

    parser = SentenceParser(description="Settings of an experiment.")
    parser.preset = ("--data=Digits", "--partition=Dirichlet", "--method=PFedMoAP")
    parser.add_argument("--config", action="config", help="YAML file of settings; several may follow each other")
    seed = (
        "seed of all that is random in the run: partition, the prompt's start, cohorts, batches, gates, noise; not of "
    )
    seed += "data.sample_seed and views.seed, which stay the same over the seeds of an experiment"
    parser.add_argument("--seed", type=int, default=0, help=seed)
    for name, group in _GROUPS.items():
        parser.add_class_arguments(group, name)
    parser.add_argument("--data", type=DataSet, help="the data set (default: Digits)")
    parser.add_argument("--partition", type=Partition, help="who holds which examples (default: Dirichlet)")
    parser.add_argument("--method", type=Method, help="the method (default: PFedMoAP)")
    parser.add_argument(
        "--methods", type=list[Method] | None, default=None, help="several methods to compare, in place of method"
    )
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    console = Console()
    try:
        parser = build_parser()
        config = parser.parse_args(_with_kept_settings(sys.argv[1:] if args is None else list(args)))
        return _COMMANDS[config.command](config[config.command], console) or 0
    except UserError as error:
        sentence = f"Error: {error}"
        Console(stderr=True).print(sentence, style="red", highlight=False, markup=False, emoji=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; the same command again goes on after the last finished round.")
        return 130


def fit(config: Namespace, console: Console) -> None:
    """Train one method, or every one of ``methods``, then print the table and draw the plots."""
    from fedmoe.experiment import Session, compare, run
    from fedmoe.report import report
    from fedmoe.runs.folder import storage

    resumed = config.pop("resume")
    experiment, methods = _experiment(config)
    names = [type(method).__name__.lower() for method in methods]
    compared = config.methods is not None
    folder = Path(resumed) if resumed else experiment.folder("comparison" if compared else names[0])
    if experiment.output.overwrite and resumed:
        raise UserError(f"output.overwrite is true, but --resume={resumed} keeps the run; valid is one of the two.")
    session = Session(experiment, console)
    with storage(folder):
        if compared:
            configs = [_dump(config, i) for i in range(len(methods))]
            compare(session, methods, configs, _dump(config), folder, _resolved)
        else:
            run(session, methods[0], _dump(config), folder, _resolved)
    report(folder, console)


def _with_kept_settings(args: list[str]) -> list[str]:
    """``fit --resume FOLDER`` begins with the settings kept in the folder; what else is given wins over them.

    Raises:
        UserError: there is no run or comparison in the folder.
    """
    given = [value for option, value in pairwise([*args, ""]) if option == "--resume"]
    given += [arg.partition("=")[2] for arg in args if arg.startswith("--resume=")]
    if args[:1] != ["fit"] or not given:
        return args
    from fedmoe.report import neither_sentence

    for name in ("comparison.yaml", "config.yaml"):
        if (Path(given[-1]) / name).is_file():
            return ["fit", f"--config={Path(given[-1]) / name}", *args[1:]]
    raise UserError(neither_sentence(Path(given[-1])))


def _resolved(path: Path) -> str:
    """The settings in a file, with defaults for those it lacks, as YAML."""
    return _dump(experiment_parser().parse_args([f"--config={path}"]))


def _dump(config: Namespace, index: int | None = None) -> str:
    """The resolved settings as YAML; of a comparison, those that run its ``index``-th method alone."""
    own = config.clone()
    own.output.overwrite = False  # what a command does once is no setting of the run
    if index is not None:
        own.method, own.methods = own.methods[index], None
    own.pop("config", None)
    return experiment_parser().dump(own, skip_unset=False)  # null is a setting, too


def _experiment(config: Namespace) -> tuple[Experiment, list[Method]]:
    """Settings as objects."""
    from fedmoe.experiment import Experiment

    parser = experiment_parser()
    built = parser.instantiate(config)
    methods = built.methods if built.methods is not None else [built.method]
    if not methods:
        raise UserError("methods is an empty list; valid is null or a list of at least one method.")
    groups = {name: built[name] for name in (*_GROUPS, "data", "partition", "seed")}
    return Experiment(**groups), methods


def evaluate(config: Namespace, console: Console) -> None:
    """Score every client of a run folder from its last checkpoint."""
    from fedmoe.experiment import Session
    from fedmoe.experiment import evaluate as score

    folder = Path(config.run)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder (it has no config.yaml); valid is a folder that fit has made.")
    experiment, methods = _experiment(experiment_parser().parse_args([f"--config={folder / 'config.yaml'}"]))
    found = score(Session(experiment, console), methods[0], folder, config.classes, config.join_rounds)
    lines = [f"{methods[0].label}: accuracy {_spread(found['accuracy'])}, mean ± standard deviation over clients"]
    if "classes" in found:
        classes = found["classes"]
        lines += [f"  {name} classes: {_spread(classes[name])}" for name in ("own", "base", "novel")]
        of_three = f"of all three {classes['harmonic_mean_of_three']:.2f} %"
        lines.append(f"  harmonic mean of base and novel {classes['harmonic_mean']:.2f} %, {of_three}")
    if "late" in found:
        late = found["late"]
        lines.append(f"  {len(late['clients'])} late clients as they come: {_spread(late['as_they_come'])}")
        lines.append(f"  after {late['rounds']} rounds of {late['epochs']} epochs: {_spread(late['joined'])}")
    for line in [*lines, f"Written to {folder / 'evaluation.json'}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _spread(accuracy: dict[str, float]) -> str:
    return f"{accuracy['mean']:.2f} ± {accuracy['std']:.2f} %, worst tenth {accuracy['worst_decile']:.2f} %"


def report(config: Namespace, console: Console) -> None:
    """Print the table of a run or a comparison and draw its plots anew; write a page of it where one is asked for."""
    from fedmoe.report import report as show
    from fedmoe.report.html import write_page

    if config.html is not None:  # first: a page that cannot be written leaves the plots as they are
        write_page(Path(config.run), Path(config.html))
    show(Path(config.run), console)
    if config.html is not None:
        console.print(f"  Page: {config.html}", markup=False, highlight=False, soft_wrap=True)


def partition(config: Namespace, console: Console) -> None:
    """Show who holds which classes, as text and as a picture; needs neither CLIP nor images."""
    from fedmoe.data.partition import partition_dataset, partition_summary
    from fedmoe.report.partition_view import show_partition

    picture = config.pop("picture")
    experiment, _ = _experiment(config)
    clients = partition_dataset(experiment.data, experiment.partition, experiment.federation.clients, experiment.seed)
    console.out(show_partition(partition_summary(experiment.data, clients), picture), highlight=False)
    console.print(f"Picture: {picture}", highlight=False)


def features(config: Namespace, console: Console) -> None:
    """Fill, list, inspect or clear the feature cache."""
    from fedmoe.features import command as feature_command

    action, keys = config.pop("action"), config.pop("keys")
    experiment, methods = _experiment(config)
    if action == "fill":
        from fedmoe.experiment import load_clip

        clip = load_clip(experiment)
        encoders = [method.encoder(clip) for method in methods]
        for encoder in {(encoder.name, encoder.identity): encoder for encoder in encoders}.values():
            feature_command.fill(experiment.data, clip, experiment.features, experiment.views, console, encoder)
    elif action == "list":
        feature_command.show_list(experiment.features, console)
    elif action == "clear":
        feature_command.clear(experiment.features, keys, console)
    else:
        for key in keys or [""]:
            feature_command.inspect(experiment.features, key, console)


def data(config: Namespace, console: Console) -> int:
    """Check that a data set is complete on disk; 1 where it is not."""
    from fedmoe.data.check import check

    headers, _ = config.pop("headers"), config.pop("action")
    experiment, _ = _experiment(config)
    found = check(experiment.data, headers)
    console.out(found.text, highlight=False)
    return found.exit_code


_COMMANDS: dict[str, Callable[[Namespace, Console], int | None]] = {
    "fit": fit,
    "evaluate": evaluate,
    "report": report,
    "partition": partition,
    "features": features,
    "data": data,
}
