"""``python -m experiments.robustness``: methods x attacks x defences; a table and a picture.

The same command again skips what is finished. Exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.exits import exit_code
from experiments.reproduce.__main__ import _count, machine
from experiments.robustness.plan import METHODS, ROUNDS, Planned, plan


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.robustness", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=_count, metavar="N", default=3, help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--rounds", type=_count, metavar="N", default=ROUNDS, help=f"rounds (default: {ROUNDS})")
    parser.add_argument("--methods", nargs="+", choices=[method.key for method in METHODS], default=[],
                        help="these methods only")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/robustness"), help="folder for the runs")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="folder for table and picture (default: DIR of --out)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs; run nothing")
    return parser.parse_args(arguments)


def run_all(runs: Sequence[Planned], out: Path, console: Console) -> None:
    """Make all runs that are not finished yet, in this process: CLIP is loaded once."""
    from fedmoe.cli.settings import as_experiment, as_plain, experiment_parser
    from fedmoe.experiment import Session, load_clip, run

    clip, began, quiet = None, time.monotonic(), Console(quiet=True)
    left = [one for one in runs if not finished(out / one.name, one.rounds)]
    for done, one in enumerate(left):
        settings = experiment_parser().parse_args([], one.settings(out))
        experiment, (method,) = as_experiment(settings)
        clip = load_clip(experiment) if clip is None else clip
        run(Session(experiment, quiet, clip), method, as_plain(settings), out / one.name)
        passed = time.monotonic() - began
        console.print(f"{done + 1}/{len(left)} {one.name}, {passed:.0f} s", markup=False, highlight=False)


def finished(folder: Path, rounds: int) -> bool:
    """Whether the folder holds a finished run of so many rounds."""
    try:
        return bool(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["rounds"] == rounds)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def benchmark(options: argparse.Namespace, console: Console) -> None:
    """What the command line asks for."""
    runs = plan(options.seeds, options.rounds, options.methods)
    if options.dry_run:
        for one in runs:
            console.print(one.name, highlight=False)
        return
    run_all(runs, options.out, console)
    from experiments.robustness.results import picture, read, to_csv, to_markdown
    from fedmoe.io import write_text_atomic
    from fedmoe.report.plot_style import save

    folder = options.report or options.out
    rows = read(runs, options.out)
    write_text_atomic(folder / "robustness.csv", to_csv(rows))
    write_text_atomic(folder / "robustness.md", to_markdown(rows, options.seeds, options.rounds, machine()))
    save(picture(rows), folder / "robustness.png")
    console.print(f"table and picture: {folder}", markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    return exit_code(lambda: benchmark(parse(arguments), Console()))


if __name__ == "__main__":
    sys.exit(main())
