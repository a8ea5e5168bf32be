"""``python -m experiments.audit methods``: audits of methods or of defences; a table and a picture.

The same command again skips what is finished. Exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.audit.plan import GROUPS, Planned
from experiments.exits import exit_code

PRESET = Path(__file__).resolve().parents[2] / "configs" / "audit.yaml"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.audit", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("group", choices=[*GROUPS, "report"], help="what is audited; report: tables and pictures alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (default: 0)")
    parser.add_argument("--only", nargs="+", default=[], metavar="KEY", help="these alone")
    parser.add_argument("--report", type=Path, metavar="DIR", help="folder for tables and pictures (default: --out)")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/audit"), help="folder for the audits")
    return parser.parse_args(arguments)


def name_of(group: str, one: Planned, seed: int) -> str:
    return f"{group}-{one.key}-seed{seed}.json"


def run_all(options: argparse.Namespace, console: Console) -> None:
    """Make all audits that are not there yet; CLIP is loaded once."""
    from fedmoe.audit.properties import infer_proportions
    from fedmoe.audit.run import audit
    from fedmoe.cli.settings import as_experiment, experiment_parser
    from fedmoe.experiment import Session, load_clip
    from fedmoe.io import write_json_atomic

    if options.group == "report":
        report(options.out, options.report or options.out)
        return
    clip, began, quiet = None, time.monotonic(), Console(quiet=True)
    for seed in options.seeds:
        for one in GROUPS[options.group]:
            path = options.out / name_of(options.group, one, seed)
            if path.exists() or (options.only and one.key not in options.only):
                continue
            settings: dict[str, Any] = {"methods": None, "seed": seed, **one.settings}
            experiment, (method,) = as_experiment(experiment_parser().parse_args([f"--config={PRESET}"], settings))
            clip = load_clip(experiment) if clip is None else clip
            session = Session(experiment, quiet, clip)
            if options.group == "properties":
                found = {"label": method.label, "properties": infer_proportions(session, method, one.audit)}
            else:
                found = audit(session, method, one.audit)
            write_json_atomic(path, {"key": one.key, "name": one.label, **found})
            console.print(f"{path.name}, {time.monotonic() - began:.0f} s", markup=False, highlight=False)


def report(out: Path, folder: Path) -> None:
    """The CSV files and pictures of all finished audits."""
    from experiments.audit.results import (
        defences_picture,
        differences_csv,
        membership_csv,
        methods_picture,
        properties_csv,
        read,
    )
    from fedmoe.io import write_text_atomic
    from fedmoe.report.plot_style import save

    methods, defences, properties = (read(out, group) for group in ("methods", "defences", "properties"))
    write_text_atomic(folder / "membership.csv", membership_csv(methods))
    write_text_atomic(folder / "defences.csv", membership_csv(defences))
    write_text_atomic(folder / "properties.csv", properties_csv(properties))
    write_text_atomic(folder / "differences.csv", differences_csv(methods, defences))
    save(methods_picture(methods), folder / "methods.png")
    save(defences_picture(defences), folder / "defences.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audits; the exit code."""
    return exit_code(lambda: run_all(parse(arguments), Console()))


if __name__ == "__main__":
    sys.exit(main())
