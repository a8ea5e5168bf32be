"""``python -m experiments.benchmark.rates PROTOCOL``: which learning rate the methods of a protocol shall share.

Each rate, for prompts and gates alike, on seeds that no leaderboard reports, with a fifth of each client's training
images held out: the rate with the best accuracy on these, mean over methods, is the protocol's. Test images decide
nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments.benchmark.protocols import load_protocol, names
from experiments.exits import exit_code
from experiments.reproduce.__main__ import _count

SEEDS = (101, 102)
VALIDATION = 0.2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark.rates",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"one of {', '.join(names())}")
    parser.add_argument("--preset", help="embedded: with the CLIP and the data that come with the package")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder that holds the data sets' folders")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.1], help="the rates (default: 0.02 0.1)")
    parser.add_argument("--methods", nargs="+", metavar="ROW", help="these rows alone (default: all that train)")
    parser.add_argument("--rounds", type=_count, metavar="N", help="communication rounds (default: the protocol's)")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/rates"), help="folder for the runs")
    return parser.parse_args(arguments)


def choose(options: argparse.Namespace, console: Console) -> int:
    """Run each rate, and print its validation accuracy by method."""
    from experiments.benchmark.runs import run_protocol
    from experiments.reproduce.plan import Options, make_plan
    from fedmoe.display import say
    from fedmoe.report.run import read_run

    manifest = replace(load_protocol(options.name, options.preset), controls=(), scores=("accuracy",))
    rows = [row for row in manifest.rows if row.key in (options.methods or {row.key for row in manifest.rows})]
    manifest = replace(manifest, rows=tuple(row for row in rows if row.key != "zero_shot_clip"))
    means = {}
    for rate in options.rates:
        given = {"optim.prompt_lr": rate, "optim.gating_lr": rate, "federation.validation": VALIDATION}
        out = (options.out / f"{options.name}-{rate:g}").resolve()
        plan = make_plan(manifest, Options(out, options.data, 1, options.rounds, settings=given))
        cells = [replace(cell, runs=tuple(run.with_seed(s) for run in cell.runs for s in SEEDS)) for cell in plan.cells]
        run_protocol(replace(plan, cells=tuple(cells)), 1, console)
        found: dict[str, list[float]] = {}
        for cell in cells:
            for run in cell.runs:
                last = read_run(run.folder).last if run.finished else None
                if last is not None and last.validation:
                    found.setdefault(cell.row.label, []).append(last.validation["mean"])
        means[rate] = statistics.fmean(statistics.fmean(own) for own in found.values())
        each = ", ".join(f"{label} {statistics.fmean(own):.2f}" for label, own in found.items())
        say(console, f"rate {rate:g}: validation accuracy {means[rate]:.2f} % ({each})")
    say(console, f"best: {max(means, key=lambda rate: means[rate]):g}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the rates; the exit code."""
    return exit_code(lambda: choose(parse(arguments), Console(width=200)))


if __name__ == "__main__":
    sys.exit(main())
