"""``fedmoe audit``: the game with a run's settings, or with those that are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from fedmoe.audit.settings import AuditConfig
from fedmoe.cli.settings import as_experiment
from fedmoe.display import say
from fedmoe.errors import UserError


def with_run(args: Sequence[str]) -> list[str]:
    """``audit FOLDER ...`` begins with the settings kept in the run folder.

    Raises:
        UserError: it is none.
    """
    if len(args) < 2 or args[1].startswith("-"):
        return list(args)
    folder, rest = Path(args[1]), args[2:]
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder (it has no config.yaml); valid is a folder that fit has made.")
    return [args[0], f"--config={folder / 'config.yaml'}", f"--of={folder}", *rest]


def audit(settings: Namespace, console: Console) -> None:
    """Audit each method, print the tables and write the folder.

    Raises:
        UserError: the settings do not fit an audit.
    """
    from fedmoe.audit.run import audit as play
    from fedmoe.audit.run import require_auditable
    from fedmoe.audit.show import write
    from fedmoe.experiment import Session
    from fedmoe.runs.folder import held, storage

    experiment, methods = as_experiment(settings)
    config = AuditConfig(**vars(settings.audit))
    label = "comparison" if settings.methods is not None else type(methods[0]).__name__.lower()
    folder = Path(settings.of) / "audit" if settings.of else experiment.folder(label, "audit")
    if (folder / "config.yaml").exists() or (folder / "comparison.json").exists():
        raise UserError(f"{folder} holds a run or a comparison; choose another output.name.")
    session = Session(experiment, console)
    require_auditable(session)
    with storage(folder, "nothing is left of the audit; valid is a place that can be written"), held(folder):
        found = [play(session, method, config, lambda line: say(console, line)) for method in methods]
        write(found, folder, console)
