"""``python -m experiments.benchmark PROTOCOL``: run every method in a protocol, and rank them.

The same command again skips what is finished. Runs are made in this process, one after the other, or with --jobs above
1 as processes. Exit code: 0 when every run is there or does not apply, 1 when one failed, 2 for a mistake in the input,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from experiments.benchmark.protocols import load_protocol, names
from experiments.benchmark.scores import check_scores
from experiments.exits import exit_code
from experiments.reproduce.__main__ import _count, machine
from fedmoe.errors import UserError


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("name", help=f"one of {', '.join(names())}")
    parser.add_argument("--preset", help="embedded: with the CLIP and the data that come with the package")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder that holds the data sets' folders")
    parser.add_argument("--seeds", type=_count, metavar="N", help="seeds 0 to N - 1 (default: the manifest's, 3)")
    parser.add_argument("--rounds", type=_count, metavar="N", help="communication rounds, to scale down")
    parser.add_argument("--jobs", type=_count, metavar="N", default=1, help="runs at once (default: 1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for runs, logs and leaderboard")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="folder for the leaderboard (default: that of --out)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs; run nothing")
    return parser.parse_args(arguments)


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """What the command line asks for."""
    from experiments.benchmark.leaderboard import rank, read_entries, table, to_csv
    from experiments.benchmark.page import to_markdown
    from experiments.benchmark.picture import picture
    from experiments.benchmark.runs import labels_of, run_protocol
    from experiments.reproduce.plan import Options, make_plan
    from fedmoe import display
    from fedmoe.io import write_text_atomic
    from fedmoe.report import plot_style
    from fedmoe.report.tables import show

    manifest = load_protocol(options.name, options.preset)
    check_scores(manifest.scores)
    parts = ["benchmark", options.name, options.preset, options.rounds and f"rounds{options.rounds}"]
    out = (options.out or Path("runs") / "-".join(part for part in parts if part)).resolve()
    plan = make_plan(manifest, Options(out, options.data, options.seeds, options.rounds))
    say = partial(display.say, console)
    rows = f"{len(manifest.rows)} methods and {len(manifest.controls)} controls"
    say(f"{plan.title}: {len(plan.runs)} runs of {rows} in {out}")
    for label, reason in plan.pending().items():
        say(f"pending: {label} ({reason})")
    if options.dry_run:
        for run in plan.runs:
            say(run.name)
        return 0
    if any(not run.finished for run in plan.runs):
        plan.check_data()
    done = run_protocol(plan, options.jobs, console)
    if done.interrupted:
        raise KeyboardInterrupt
    for failed, why in done.failed:
        say(f"FAILED: {failed.name} {why}")
    entries = read_entries(plan)
    if not entries:
        raise UserError(f"No method has finished in {out}; valid is at least one.")
    lines, refused = rank(entries), labels_of(plan, done.refused)
    shown = table(plan, lines, refused)
    folder, name = options.report or out, manifest.name
    write_text_atomic(folder / f"{name}.csv", to_csv(plan, lines))
    plot_style.save(picture(plan, lines), folder / f"{name}.png")
    page = to_markdown(plan, shown, entries, machine(), _command(options), f"{name}.png")
    write_text_atomic(folder / f"{name}.md", page)
    show(shown, console)
    say(f"leaderboard: {folder / f'{name}.md'}")
    missing = [run for run in plan.runs if not run.finished and run.name not in done.refused]
    return int(bool(done.failed or missing))


def _command(options: argparse.Namespace) -> str:
    """The command that makes these results again; it names no folder of this machine."""
    parts = ["python -m experiments.benchmark", options.name]
    for key in ("preset", "seeds", "rounds"):
        value = getattr(options, key)
        parts += [] if value is None else [f"--{key}={value}"]
    return " ".join([*parts, "--data=DATA"] if options.data else parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one protocol; the exit code."""
    return exit_code(lambda: benchmark(parse(arguments), Console()))


if __name__ == "__main__":
    sys.exit(main())
