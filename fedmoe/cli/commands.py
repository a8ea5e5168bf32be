"""The command line: ``fedmoe fit | evaluate | report | compare | ...``, also as ``python -m fedmoe.cli``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from rich.console import Console

from fedmoe import __version__
from fedmoe.cli import levels, shipped
from fedmoe.cli.auditing import audit, with_run
from fedmoe.cli.levels import take_level
from fedmoe.cli.process import interrupted, program
from fedmoe.cli.settings import COMMANDS, as_experiment, as_plain, build_parser, load_settings
from fedmoe.cli.values import either, sentence
from fedmoe.display import LEVELS, log_as_text, say
from fedmoe.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from fedmoe.data import DataSet
    from fedmoe.experiment import Experiment
    from fedmoe.protocol.method import Method

_ABOUT = """
Settings come from one or more --config files (later ones win) and from --key=value, which wins over the files before
it. Methods, data sets and partitions are named by class: a short name such as PFedMoAP, or a class path such as
mypackage.MyMethod. The command configs lists the files that come with the package.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for a mistake in the input, 128 plus the number of a signal."""
    try:
        level, args = take_level(sys.argv[1:] if args is None else args)
        log_as_text(level)
        if args[:1] == ["reproduce"]:
            return reproduce(args[1:])
        command = _command(args[0] if args else "")
        args = with_run(args) if args[0] == "audit" else _with_kept_settings(args)
        settings = build_parser(args[0]).parse_args(args[1:])
        return command(settings, Console(quiet=level in ("warning", "error"))) or 0
    except UserError as error:
        logging.getLogger(__name__).debug("Where the mistake was found:", exc_info=True)
        say(Console(stderr=True), f"Error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        return interrupted()


def _command(name: str) -> Callable[[Namespace, Console], int | None]:
    """The command of this name.

    Raises:
        UserError: there is none.
        SystemExit: help or the version was asked for, and printed.
    """
    if name == "--version":
        print(f"fedmoe {__version__}")
        raise SystemExit(0)
    if name in ("-h", "--help"):
        parser = argparse.ArgumentParser(prog=program(), description=_ABOUT)
        parser.add_argument("--version", action="store_true", help="print the version")
        parser.add_argument(
            levels.OPTION,
            choices=LEVELS,
            help="how much to say, with any command: info by default; debug adds where a mistake was found",
        )
        parser.add_argument(levels.QUIET, action="store_true", help=f"short for {levels.OPTION}=warning")
        commands = parser.add_subparsers(title="commands, each with a --help of its own", metavar="command")
        for command, takes in COMMANDS.items():
            commands.add_parser(command, help=takes.about)
        commands.add_parser("reproduce", help="Run a table or figure of the paper, in a checkout of the sources.")
        parser.parse_args([name])
    if not name:
        raise sentence(f"No command is given; valid is {either(COMMANDS)}.")
    if name.startswith("-"):
        raise sentence(f"{name} stands before the command; the command comes first: {either(COMMANDS)}.")
    if name not in COMMANDS:
        raise sentence(f"{name!r} is not a command; valid is {either(COMMANDS)}", did_you_mean(name, COMMANDS))
    return _FUNCTIONS[name]


SEEDS_FILE = "seeds.yaml"  # of a folder of seeds: its settings, and which seeds


def holds_seeds(folder: Path) -> bool:
    """Whether ``fit --seeds`` has made the folder."""
    return (folder / SEEDS_FILE).is_file() or any(
        (path / "config.yaml").is_file() for path in folder.glob("seed[0-9]*")
    )


def _with_kept_settings(args: list[str]) -> list[str]:
    """``fit --resume FOLDER`` begins with the settings kept in the folder; what else is given wins over them.

    Raises:
        UserError: there is no run, comparison or run of several seeds in the folder.
    """
    given = [value for option, value in pairwise([*args, ""]) if option == "--resume"]
    given += [arg.partition("=")[2] for arg in args if arg.startswith("--resume=")]
    if args[:1] != ["fit"] or not given:
        return args
    for name in ("comparison.yaml", SEEDS_FILE, "config.yaml"):
        if (Path(given[-1]) / name).is_file():
            return ["fit", f"--config={Path(given[-1]) / name}", *args[1:]]
    from fedmoe.report import neither_sentence

    raise UserError(neither_sentence(Path(given[-1])))


def fit(settings: Namespace, console: Console) -> None:
    """Train one method, or several to compare, then print the table and draw the plots."""
    if settings.seeds is not None:
        _fit_seeds(settings, console)
    else:
        train(settings, console)


def train(settings: Namespace, console: Console) -> Path:
    """``fit`` without ``seeds``; the folder of the run or the comparison."""
    from fedmoe.experiment import Session, compare, run
    from fedmoe.report import report
    from fedmoe.runs.folder import storage

    experiment, methods = as_experiment(settings)
    compared = settings.methods is not None
    label = "comparison" if compared else type(methods[0]).__name__.lower()
    folder = Path(settings.resume) if settings.resume else experiment.folder(label)
    if experiment.output.overwrite and settings.resume:
        raise UserError(f"output.overwrite is true, but --resume={folder} keeps the run; valid is one of the two.")
    if holds_seeds(folder):
        raise UserError(
            f"{folder} holds runs of several seeds; valid is --seeds, which goes on with them, or another output.name."
        )
    session = Session(experiment, console)

    def resolve(path: Path) -> Mapping[str, Any]:
        return as_plain(load_settings(path))

    with storage(folder):
        if compared:
            each = [as_plain(settings, i) for i in range(len(methods))]
            compare(session, methods, each, as_plain(settings), folder, resolve)
        else:
            run(session, methods[0], as_plain(settings), folder, resolve)
    report(folder, console)
    return folder


def _fit_seeds(settings: Namespace, console: Console) -> None:
    """Train one method with several seeds, then print mean and standard deviation over them."""
    from fedmoe.experiment import SeedRun, run_seeds
    from fedmoe.report.compare import require_ours, summarize_seeds
    from fedmoe.runs.folder import storage

    seeds = _seeds(settings.seeds)
    resumed = Path(settings.resume) if settings.resume and (Path(settings.resume) / SEEDS_FILE).is_file() else None
    for name in ("methods", "resume"):
        if settings[name] and not (name == "resume" and resumed):
            raise UserError(
                f"seeds is given beside {name}; valid is one method at a time, whose seeds the same command continues, "
                "and compare for several."
            )
    experiment, methods = as_experiment(settings)
    if resumed and experiment.output.overwrite:
        raise UserError(f"output.overwrite is true, but --resume={resumed} keeps the runs; valid is one of the two.")
    folder = resumed or experiment.folder(type(methods[0]).__name__.lower(), over_seeds=True)
    plans = []
    for seed in seeds:
        own = settings.clone()
        own.seed, own.output.dir, own.output.name = seed, str(folder), f"seed{seed}"
        experiment, methods = as_experiment(own)
        plans.append(SeedRun(experiment, methods[0], as_plain(own)))
    output = folder / "over_seeds"
    require_ours(output)
    with storage(folder):
        whole = as_plain(settings)
        folders = run_seeds(plans, folder, console, whole, lambda path: as_plain(load_settings(path)))
    summarize_seeds(folders, output, console)


def _seeds(given: list[int] | str) -> list[int]:
    """The seeds in a list, or in a text such as "0,1,2".

    Raises:
        UserError: one is no integer, or there twice; or there is none.
    """
    try:
        seeds = [int(part) for part in given.split(",")] if isinstance(given, str) else given
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"seeds is {given!r}; valid are different integers of at least 0, such as 0,1,2.")
    return seeds


def _of_run(folder: Path) -> tuple[Experiment, list[Method]]:
    """The experiment of a run folder, and its method.

    Raises:
        UserError: it is no run folder, or its settings hold a mistake.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder (it has no config.yaml); valid is a folder that fit has made.")
    return as_experiment(load_settings(folder / "config.yaml"))


def evaluate(settings: Namespace, console: Console) -> None:
    """Score every client of a run from its last checkpoint."""
    from fedmoe.experiment import Session
    from fedmoe.experiment import evaluate as score

    folder = Path(settings.run)
    experiment, methods = _of_run(folder)
    targets = _targets(settings.targets)  # before CLIP is loaded
    session = Session(experiment, console)
    found = score(session, methods[0], folder, settings.classes, settings.join_rounds, settings.best, targets)
    lines = [f"{methods[0].label}: accuracy {_spread(found['accuracy'])}, mean ± standard deviation over clients"]
    if "classes" in found:
        classes = found["classes"]
        lines += [f"  {name} classes: {_spread(classes[name])}" for name in ("own", "base", "novel")]
        lines.append(f"  Local, own classes' images among all base classes: {_spread(classes['local'])}")
        lines += [f"  {name} = {classes[key]:.2f} %" for key, name in _COMPOSITES.items()]
    if "late" in found:
        late = found["late"]
        lines.append(f"  {len(late['clients'])} late clients as they come: {_spread(late['as_they_come'])}")
        lines.append(f"  after {late['rounds']} rounds of {late['epochs']} epochs: {_spread(late['joined'])}")
    if "transfer" in found:
        transfer = found["transfer"]
        lines += [f"  on {name}: {_spread(accuracy)}" for name, accuracy in transfer["targets"].items()]
        lines.append(f"  mean of the targets {transfer['mean']:.2f} %")
    for line in [*lines, f"Written to {folder / 'evaluation.json'}"]:
        say(console, line)


_COMPOSITES = {  # of a ClassScores: name and formula, as papers print them
    "harmonic_mean": "HM = 2 · base · novel / (base + novel)",
    "harmonic_mean_of_three": "HM of own, base and novel = 3 / (1/own + 1/base + 1/novel)",
    "harmonic_mean_with_local": "HM of three = 3 / (1/Local + 1/base + 1/novel)",
    "combined": "CM = (Local + HM) / 2",
}


def _targets(given: str | None) -> dict[str, DataSet]:
    """The data sets in YAML files, by the files' names.

    Raises:
        UserError: two files have one name, or one holds a mistake.
    """
    paths = [Path(part) for part in given.split(",")] if given else []
    names = [path.stem for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"targets has two files named {twice}; valid are files with different names.")
    return {path.stem: as_experiment(load_settings(path))[0].data for path in paths}


def _spread(accuracy: dict[str, float]) -> str:
    return f"{accuracy['mean']:.2f} ± {accuracy['std']:.2f} %, worst tenth {accuracy['worst_decile']:.2f} %"


def _client(settings: Namespace, experiment: Experiment) -> int:
    """The client that a command is about.

    Raises:
        UserError: none is given, or the run does not have it.
    """
    from fedmoe.prediction.client import require_client

    count = experiment.federation.clients
    if settings.client is None:
        raise UserError(f"client is not given; valid is --client=0 to --client={count - 1}.")
    require_client(settings.client, count)
    return int(settings.client)


def predict(settings: Namespace, console: Console) -> None:
    """Predict the classes of images with one client of a run."""
    from fedmoe.experiment import Session
    from fedmoe.prediction.client import require_checkpoint, restore_client
    from fedmoe.prediction.images import find_images
    from fedmoe.prediction.images import predict as classify
    from fedmoe.prediction.show import FORMATS

    folder = Path(settings.run)
    experiment, methods = _of_run(folder)
    images, number = find_images(settings.images), _client(settings, experiment)
    require_checkpoint(folder, settings.best)  # before CLIP is loaded
    session = Session(experiment, Console(stderr=True))  # stdout is for the predictions alone
    client = restore_client(session, methods[0], folder, number, settings.best)
    title = f"{methods[0].label}, client {client.client_id} after round {client.round}"
    FORMATS[settings.format](classify(client, experiment.data, images, settings.top), title, console)


def export(settings: Namespace, console: Console) -> None:
    """Write what one client of a run predicts with as a folder of its own."""
    from fedmoe.experiment import Session
    from fedmoe.export.write import export_client, require_free
    from fedmoe.prediction.client import require_checkpoint, restore_client
    from fedmoe.runs.folder import storage

    run, folder = Path(settings.run), Path(settings.folder)
    experiment, methods = _of_run(run)
    number = _client(settings, experiment)
    require_free(folder, settings.onnx)
    require_checkpoint(run, settings.best)
    client = restore_client(Session(experiment, console), methods[0], run, number, settings.best)
    with storage(folder, "nothing is left of the export; valid is a place that can be written"):
        told = export_client(client, run, folder, settings.onnx)
    say(console, f"{told.label}, client {told.client} after round {told.round}: {folder}")


def import_(settings: Namespace, console: Console) -> None:
    """Put an exported client back into a run."""
    from fedmoe.experiment import Session
    from fedmoe.export.folder import read_export
    from fedmoe.export.into_run import import_client
    from fedmoe.runs.folder import storage

    if settings.into is None:
        raise UserError("into is not given; valid is the run folder that the client goes to, --into=runs/<name>.")
    run, folder = Path(settings.into), Path(settings.folder)
    experiment, methods = _of_run(run)
    number = _client(settings, experiment)
    read_export(folder)  # before CLIP is loaded
    with storage(run, "the run is as it was"):
        told = import_client(Session(experiment, console), methods[0], folder, run, number)
    say(console, f"{told.label}: client {told.client} of {folder} is now client {number} of {run}")


def search(settings: Namespace, console: Console) -> None:
    """Search settings by validation accuracy; every trial is a run folder."""
    from fedmoe.cli.searching import search as run_trials

    run_trials(settings, console, train)


def report(settings: Namespace, console: Console) -> None:
    """Print the table of a run or a comparison and draw its plots anew; on request, also as one page."""
    from fedmoe.report import report as show
    from fedmoe.report.html import write_page

    if settings.html is not None:  # first: a page that cannot be written leaves the plots as they are
        write_page(Path(settings.run), Path(settings.html))
    show(Path(settings.run), console, settings.pdf, svg=settings.svg, latex=settings.latex)
    if settings.html is not None:
        say(console, f"  Page: {settings.html}")


def compare(settings: Namespace, console: Console) -> None:
    """Compare finished runs, grouped by what they have in common beside the seed."""
    from fedmoe.report.compare import compare_runs

    compare_runs([Path(run) for run in settings.runs], Path(settings.output), console)


def partition(settings: Namespace, console: Console) -> None:
    """Show who holds which classes, as text and as a picture; needs neither CLIP nor images."""
    from fedmoe.data.partition import partition_dataset, partition_summary
    from fedmoe.report.partition_view import show_partition

    experiment, _ = as_experiment(settings)
    clients = partition_dataset(experiment.data, experiment.partition, experiment.federation.clients, experiment.seed)
    say(console, show_partition(partition_summary(experiment.data, clients), settings.picture))
    say(console, f"Picture: {settings.picture}")


def features(settings: Namespace, console: Console) -> None:
    """Fill, list, inspect or clear the cache of image features."""
    from fedmoe.features import command

    experiment, methods = as_experiment(settings)
    if settings.action == "fill":
        from fedmoe.experiment import load_clip

        clip = load_clip(experiment)
        encoders = {(e.name, e.identity): e for e in (method.encoder(clip) for method in methods)}
        for encoder in encoders.values():
            command.fill(experiment.data, clip, experiment.features, experiment.views, console, encoder)
    elif settings.action == "list":
        command.show_list(experiment.features, console)
    elif settings.action == "clear":
        command.clear(experiment.features, settings["keys"], console)
    else:
        for key in settings["keys"] or [""]:
            command.inspect(experiment.features, key, console)


def client(settings: Namespace, console: Console) -> None:
    """Serve one client until Ctrl-C or SIGTERM."""
    from fedmoe.experiment import Session

    experiment, methods = as_experiment(settings)
    if settings.methods is not None:
        raise UserError("methods is given, but a client serves one method; valid is method.")
    for name in ("secret", "server_key"):
        if settings[name] is None and not settings.insecure:
            raise UserError(f"{name} is null; valid is the file that `engine credentials` made, or insecure: true.")
    session = Session(experiment, console)
    states = Path(settings.states).expanduser() / f"client-{settings.client}"
    site = session.site(methods[0], settings.client, settings.own_data, states, settings.tracebacks)
    from fedmoe.engine.worker import serve

    about = site.work.about(settings.client)
    say(console, f"client {settings.client}: {about.train_examples} training and {about.test_examples} test examples")
    given = (settings.supernode, settings.secret, settings.server_key)
    serve(site, *given, lambda text: say(console, f"client {settings.client}: {text}"))


def engine(settings: Namespace, console: Console) -> None:
    """Make the credentials of a deployment, or say who is connected."""
    experiment, _ = as_experiment(settings)
    if settings.action == "credentials":
        from fedmoe.engine.credentials import make_credentials

        clients = experiment.federation.clients
        made = make_credentials(Path(settings.folder), clients, settings.hosts, settings.days)
        say(console, f"{len(made)} files for a SuperLink and {clients} clients in {settings.folder}")
        return
    from fedmoe.engine.status import register, status

    if settings.action == "register":
        say(console, f"{register(experiment.engine)} keys are known to the SuperLink at {experiment.engine.address}")
        return
    for line in status(experiment.engine):
        say(console, line)


def data(settings: Namespace, console: Console) -> int:
    """Check that a data set is complete on disk; 1 where it is not."""
    from fedmoe.data.check import check

    experiment, _ = as_experiment(settings)
    found = check(experiment.data, settings.headers)
    say(console, found.text)
    return found.exit_code


def runs(settings: Namespace, console: Console) -> None:
    """List run folders."""
    from fedmoe.report.listing import find_runs, runs_table
    from fedmoe.report.tables import show

    kept = {name: settings[name] for name in ("method", "data", "state") if settings[name] is not None}
    show(runs_table(find_runs(Path(settings.dir)), settings.sort, kept), console)


def configs(settings: Namespace, console: Console) -> None:
    """List the configurations that come with the package."""
    listed = shipped.names()
    width = max(map(len, listed)) + len(shipped.PREFIX)
    for name in listed:
        say(console, f"{shipped.PREFIX + name:<{width}}  {shipped.about(name)}")
    say(
        console,
        f"Use: --config {shipped.PREFIX}quickstart; several may follow each other. The files: {shipped.folder()}",
    )


def completion(settings: Namespace, console: Console) -> None:
    """Print what a shell has to evaluate for completion."""
    from fedmoe.cli.completion import completion_script

    print(completion_script(settings.shell))


def reproduce(args: Sequence[str]) -> int:
    """Run a table or figure of the paper, where ``experiments`` lies beside the package.

    Raises:
        UserError: it does not, as in an installed package.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "experiments" / "reproduce").is_dir():
        raise UserError(
            "reproduce needs the folder experiments, which is not part of the installed package; valid is a checkout "
            "of fedmoe's sources (where its README and Makefile are), and there `make reproduce-table2` or "
            "`python -m fedmoe.cli reproduce table2`."
        )
    sys.path.insert(0, str(checkout))
    return int(importlib.import_module("experiments.reproduce.__main__").main(args))


_FUNCTIONS: dict[str, Callable[[Namespace, Console], int | None]] = {
    "fit": fit,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "import": import_,
    "report": report,
    "compare": compare,
    "partition": partition,
    "features": features,
    "client": client,
    "engine": engine,
    "data": data,
    "configs": configs,
    "completion": completion,
    "runs": runs,
    "search": search,
    "audit": audit,
}
