"""The options of each command, and an experiment's settings as objects and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from fedmoe import config
from fedmoe.audit.settings import AuditConfig
from fedmoe.cli.parser import CommandParser
from fedmoe.cli.values import Setting
from fedmoe.errors import UserError

if TYPE_CHECKING:
    from fedmoe.experiment import Experiment
    from fedmoe.protocol.method import Method

GROUPS = {
    "clip": config.ClipConfig,
    "prompt": config.PromptConfig,
    "federation": config.FederationConfig,
    "optim": config.OptimConfig,
    "features": config.FeatureConfig,
    "views": config.ViewsConfig,
    "privacy": config.PrivacyConfig,
    "runtime": config.RuntimeConfig,
    "engine": config.EngineConfig,
    "tracking": config.TrackingConfig,
    "output": config.OutputConfig,
}


@dataclass(frozen=True)
class Command:
    """What a command takes."""

    about: str
    options: Mapping[str, Setting] = field(default_factory=dict)
    positionals: Mapping[str, Setting] = field(default_factory=dict)
    is_of_experiment: bool = True
    """Whether it takes an experiment's settings, too."""


_CLIENT = Setting(int | None, None, "the number of the client, from 0; must be given")
_FILL = Literal["fill", "list", "inspect", "clear"]
COMMANDS = {
    "fit": Command(
        "Train one method, or several to compare.",
        options={
            "resume": Setting(
                str | None,
                None,
                "a folder of a run, a comparison or several seeds to continue; its settings are used, and those given "
                "here may change rounds, tracking and the like",
            ),
            "seeds": Setting(
                list[int] | str | None,
                None,
                "several seeds in place of seed, such as 0,1,2: one folder with a run for each, then mean and standard "
                "deviation over them",
            ),
        },
    ),
    "search": Command(
        "Search settings with Optuna by validation accuracy; the same command continues, or adds trials.",
        options={"trials": Setting(int, 20, "how many trials the folder shall hold; of a grid, at most all of it")},
        positionals={"space": Setting(str, help="YAML file with method and parameters, as of a W&B sweep")},
    ),
    "audit": Command(
        "Attack federations with the settings of a run (`audit RUN`), or with those given: what do prompts reveal?",
        options={
            "audit": Setting(AuditConfig),
            "of": Setting(str | None, None, "the run folder whose settings are used; the same as `audit RUN`"),
        },
    ),
    "evaluate": Command(
        "Score every client of a run from its last checkpoint.",
        options={
            "classes": Setting(
                bool,
                False,
                "also score own, base and novel classes: those within and beyond data.subset.classes of the run",
            ),
            "join_rounds": Setting(
                int, 1, "rounds for which each of federation.late_clients trains before its second score"
            ),
            "best": Setting(
                bool, False, "from the checkpoint with the best validation accuracy in place of the last one"
            ),
            "targets": Setting(
                str | None,
                None,
                "also score every client on all test images of other data sets: YAML files with data, with commas",
            ),
        },
        positionals={"run": Setting(str, help="a run folder")},
        is_of_experiment=False,
    ),
    "predict": Command(
        "Predict the classes of images with one client of a run.",
        options={
            "client": _CLIENT,
            "top": Setting(int, 5, "how many of the most probable classes to print for each image"),
            "format": Setting(
                Literal["text", "json", "csv"], "text", "a table, a list of objects, or a line for each image and class"
            ),
            "best": Setting(
                bool, False, "from the checkpoint with the best validation accuracy in place of the last one"
            ),
        },
        positionals={
            "run": Setting(str, help="a run folder"),
            "images": Setting(list[str], help="image files, and folders that are searched for them"),
        },
        is_of_experiment=False,
    ),
    "export": Command(
        "Write what one client of a run predicts with, all but CLIP, as a folder of its own.",
        options={
            "client": _CLIENT,
            "onnx": Setting(bool, False, "also write head.onnx; needs pip install fedmoe[onnx]"),
            "best": Setting(
                bool, False, "from the checkpoint with the best validation accuracy in place of the last one"
            ),
        },
        positionals={
            "run": Setting(str, help="a run folder"),
            "folder": Setting(str, help="the folder to write, which must not exist or be empty"),
        },
        is_of_experiment=False,
    ),
    "import": Command(
        "Put an exported client back into a run: its newest checkpoint is changed.",
        options={
            "client": _CLIENT,
            "into": Setting(str | None, None, "the run folder; must be given"),
        },
        positionals={"folder": Setting(str, help="a folder that export has made")},
        is_of_experiment=False,
    ),
    "report": Command(
        "Print the table and draw the plots of a run or a comparison.",
        options={
            "html": Setting(str | None, None, "also write one self-contained page to this file"),
            "pdf": Setting(bool, False, "also write the plots as PDF"),
            "svg": Setting(bool, False, "also write the plots as SVG"),
            "latex": Setting(bool, False, "also write the table as LaTeX: table.tex, or comparison.tex"),
        },
        positionals={"run": Setting(str, help="a run folder, or a folder of runs to compare")},
        is_of_experiment=False,
    ),
    "compare": Command(
        "Compare finished runs of several seeds: tables, paired tests, curves and a page.",
        options={"output": Setting(str, "compare", "folder for tables (.md, .csv, .tex), curves and a page (.html)")},
        positionals={
            "runs": Setting(
                list[str], help="run folders, or folders of runs; runs that differ in nothing but the seed form a group"
            )
        },
        is_of_experiment=False,
    ),
    "partition": Command(
        "Show who holds which classes, without training.",
        options={
            "picture": Setting(str, "partition.png", "file to draw the partition to: PNG, or PDF if it ends in .pdf")
        },
    ),
    "features": Command(
        "Fill, list, inspect or clear the cache of image features.",
        options={"keys": Setting(list[str], [], "entries to inspect or clear; [all] clears all")},
        positionals={"action": Setting(_FILL, help="what to do with the cache")},
    ),
    "client": Command(
        "Serve one client at its site, beside a Flower SuperNode (engine.kind = flower on the server).",
        options={
            "client": Setting(int, 0, "the client's number, from 0"),
            "supernode": Setting(str, "127.0.0.1:9094", "HOST:PORT of the SuperNode, on this machine"),
            "secret": Setting(str | None, None, "file with the secret that the SuperNode was started with"),
            "server_key": Setting(
                str | None, None, "file with the server's public key, which its orders are checked with"
            ),
            "insecure": Setting(bool, False, "do without secret and server_key; only for trials on one machine"),
            "states": Setting(str, "client-states", "folder in which the client keeps its states; it must last"),
            "own_data": Setting(
                bool, False, "all data on this machine are the client's; false: those that the partition gives it"
            ),
            "tracebacks": Setting(
                bool, False, "send tracebacks of failures to the server, which may show values of the client's data"
            ),
        },
    ),
    "engine": Command(
        "Prepare or look at a deployment on Flower.",
        options={
            "folder": Setting(str, "federation", "credentials: folder to write certificates, keys and secrets to"),
            "hosts": Setting(list[str], ["127.0.0.1"], "credentials: names and addresses of the SuperLink"),
            "days": Setting(int, 365, "credentials: days that the SuperLink's certificate is valid"),
        },
        positionals={
            "action": Setting(
                Literal["credentials", "register", "status"],
                help="credentials: make certificates, keys and secrets for all clients; register: make the clients' "
                "keys known to the SuperLink; status: who is connected",
            )
        },
    ),
    "data": Command(
        "Check that a data set is complete on disk.",
        options={"headers": Setting(bool, False, "also read the header of every image")},
        positionals={
            "action": Setting(Literal["check"], help="check: is the data set complete, and of the known size")
        },
    ),
    "runs": Command(
        "List run folders: method, data, rounds, accuracy, state.",
        options={
            "dir": Setting(str, "runs", "folder to look for runs in, down to three levels"),
            "method": Setting(str | None, None, "only runs of this method's class, such as PFedMoAP"),
            "data": Setting(str | None, None, "only runs on this data set's class, such as Digits"),
            "state": Setting(
                Literal["finished", "unfinished", "empty", "unreadable"] | None,
                None,
                "only runs in this state; empty: no round is finished yet",
            ),
            "sort": Setting(
                Literal["folder", "method", "data", "seed", "rounds", "accuracy", "changed"],
                "folder",
                "order; by accuracy: the best first; by changed: the latest first",
            ),
        },
        is_of_experiment=False,
    ),
    "configs": Command("List the configurations that come with the package.", is_of_experiment=False),
    "completion": Command(
        'Print what a shell has to evaluate to complete commands and settings: eval "$(fedmoe completion bash)".',
        positionals={"shell": Setting(Literal["bash", "zsh", "fish"], help="the shell")},
        is_of_experiment=False,
    ),
}


@cache
def experiment_parser() -> CommandParser:
    """The parser of an experiment's settings."""
    return _parser("", Command("Settings of an experiment."))


@cache
def build_parser(name: str) -> CommandParser:
    """The parser of one of ``COMMANDS``."""
    return _parser(name, COMMANDS[name])


def _parser(name: str, command: Command) -> CommandParser:
    if not command.is_of_experiment:
        return CommandParser(name, command.about, command.options, command.positionals)
    from fedmoe.attacks import Attack
    from fedmoe.data import DataSet, Partition
    from fedmoe.defences import Aggregation, Screening, Serving
    from fedmoe.methods import Method

    seed = (
        "seed of everything random in a run: partition, the prompt's start, cohorts, batches, gates, noise; not of "
        "data.sample_seed and views.seed, which stay the same over the seeds of an experiment"
    )
    options = {
        "seed": Setting(int, 0, seed),
        **{key: Setting(group) for key, group in GROUPS.items()},
        "data": Setting(DataSet, help="the data set (default: Digits)"),
        "partition": Setting(Partition, help="who holds which examples (default: Dirichlet)"),
        "method": Setting(Method, help="the method (default: PFedMoAP)"),
        "methods": Setting(list[Method] | None, None, "several methods to compare, in place of method"),
        "attack": Setting(Attack | None, None, "what some clients do in place of the protocol; null: nothing"),
        "aggregation": Setting(
            Aggregation | None, None, "the server's defence of the average, such as Median; null: the weighted mean"
        ),
        "screening": Setting(
            Screening | None,
            None,
            "the server's defence of the pool of experts, such as OutlierTest; null: none",
        ),
        "serving": Setting(
            Serving | None,
            None,
            "what others get of a client's prompt in the pool, such as Noise or Groups; null: the prompt as it is",
        ),
        **command.options,
    }
    preset = ("--data=Digits", "--partition=Dirichlet", "--method=PFedMoAP")
    return CommandParser(name, command.about, options, command.positionals, preset)


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
    groups = {
        name: built[name]
        for name in (*GROUPS, "data", "partition", "seed", "attack", "aggregation", "screening", "serving")
    }
    return Experiment(**groups), methods


def as_plain(settings: Namespace, index: int | None = None) -> dict[str, Any]:
    """The settings as nested plain values; of a comparison, those that run its ``index``-th method alone."""
    own = _of_experiment(settings)
    own.output.overwrite = False  # what a command does once is no setting of the run
    if index is not None:
        own.method, own.methods = own.methods[index], None
    return experiment_parser().plain(own)


def _of_experiment(settings: Namespace) -> Namespace:
    """A copy without the options that only a command has."""
    own = settings.clone()
    for name in vars(own).keys() - {option.partition(".")[0] for option in experiment_parser().options}:
        own.pop(name)
    return own
