"""``python -m experiments.benchmark PROTOCOL``: run every method in a protocol, and rank them.

The same command again skips what is finished. Exit code: 0 when every run is there, 1 when one failed, 2 for a mistake
in the input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from experiments.benchmark.protocols import load_protocol, names
from experiments.benchmark.scores import check_scores, evaluate
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
    parser.add_argument("--dry-run", action="store_true", help="list the runs; run nothing")
    return parser.parse_args(arguments)


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """What the command line asks for."""
    from experiments.benchmark.leaderboard import picture, rank, read_entries, table, tested, to_csv, to_markdown
    from experiments.reproduce.plan import Options, make_plan
    from experiments.reproduce.runner import run_all
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
    say(f"{plan.title}: {len(plan.runs)} runs of {len(manifest.rows)} methods in {out}")
    for label, reason in plan.pending().items():
        say(f"pending: {label} ({reason})")
    if options.dry_run:
        for run in plan.runs:
            say(run.name)
        return 0
    if any(not run.finished for run in plan.runs):
        plan.check_data()
    outcome = run_all(plan.runs, options.jobs, console, manifest.name, out)
    if outcome.interrupted:
        raise KeyboardInterrupt
    codes = [evaluate(run, manifest.scores) for run in plan.runs if run.finished]
    for failed, why in outcome.failed:
        say(f"FAILED: {failed.name} {why} (log: {failed.log})")
    entries = read_entries(plan)
    if not entries:
        raise UserError(f"No method has finished in {out}; valid is at least one.")
    lines = rank(entries, tested(plan))
    shown = table(plan, lines)
    command = _command(options)
    picture_name = f"{manifest.name}.png"
    write_text_atomic(out / f"{manifest.name}.csv", to_csv(plan, lines))
    plot_style.save(picture(plan, lines), out / picture_name)
    page = to_markdown(plan, shown, machine(), command, picture_name)
    write_text_atomic(out / f"{manifest.name}.md", page)
    show(shown, console)
    say(f"leaderboard: {out / f'{manifest.name}.md'}")
    return int(bool(outcome.failed) or any(codes) or any(not run.finished for run in plan.runs))


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
