"""fedmoe in Python: what ``fedmoe fit`` and ``fedmoe report`` do, with objects in place of text.

Importing this imports nothing heavy; ``run`` and ``load`` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.errors import UserError

if TYPE_CHECKING:
    from fedmoe.api.result import Result

__all__ = ["load", "run"]


def run(
    method: Any = None,
    data: Any = None,
    *,
    config: str | Path | Sequence[str | Path] = (),
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train one method, as ``fedmoe fit`` does: the same settings and defaults, and the same run folder.

    The same call again continues where the first one stopped, or reads what it left.

    Args:
        method: an object such as ``PFedMoAP(num_experts=5)``, a class, its name, or the path of a class; None: that of
            the files, or PFedMoAP.
        data: a data set, likewise; None: that of the files, or Digits.
        config: YAML files of settings, of which later ones win, or one of them; ``fedmoe:quickstart`` names one that
            comes with the package.
        quiet: print nothing but warnings.
        settings: what files hold, and win over them: ``federation={"rounds": 5}``, or ``federation__rounds=5``,
            ``partition=Dirichlet(0.1)``, ``optim=OptimConfig(prompt_lr=0.01)``, ``seed=1``, ``output__name="mine"``.

    Raises:
        UserError: a setting is wrong, or the settings do not fit each other or the run in the folder.
    """
    from rich.console import Console

    from fedmoe.api.plain import plain_settings
    from fedmoe.cli.commands import train
    from fedmoe.cli.settings import build_parser

    given = {"method": method, "data": data}
    plain = plain_settings({**{name: value for name, value in given.items() if value is not None}, **settings})
    if "resume" in plain:
        raise UserError("resume is of the command line; valid is the same call again, or config='FOLDER/config.yaml'.")
    files = [config] if isinstance(config, str | Path) else config
    parsed = build_parser("fit").parse_args([f"--config={file}" for file in files], plain)
    for name in ("methods", "seeds"):
        if parsed[name] is not None:
            raise UserError(f"{name} is set; fedmoe.run trains one method with one seed, so valid is {name}=None.")
    return load(train(parsed, Console(quiet=quiet)))


def load(folder: str | Path) -> Result:
    """The result in a run folder, finished or not.

    Raises:
        UserError: the folder holds no run, or nothing that can be read.
    """
    from fedmoe.api.result import Result
    from fedmoe.report import neither_sentence
    from fedmoe.report.comparison import is_comparison
    from fedmoe.report.run import is_run, read_run

    path = Path(folder)
    if is_comparison(path):
        inside = sorted(str(child) for child in path.iterdir() if is_run(child))
        raise UserError(f"{path} is a comparison of several runs; valid is one of them: {', '.join(inside)}.")
    if not is_run(path):
        raise UserError(neither_sentence(path))
    return Result(read_run(path))
