"""``python -m experiments.reproduce NAME``: run a table or figure of the paper, and report it.

The same command again skips what is finished and goes on with what was interrupted. Exit code: 0 when every run is
there, 1 when one failed (or, with --report, is missing), 2 for a mistake in the input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rich.console import Console

from experiments.exits import exit_code
from experiments.reproduce.manifest import load_manifest, names
from experiments.reproduce.regimes import load_regimes, regime_names
from fedmoe.config import ClipConfig


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("name", help=f"one of {', '.join(names())}")
    parser.add_argument("--preset", help="another way to run the same rows, such as embedded")
    regime = f"{', '.join(regime_names())}, several with commas, or both (default: paper)"
    parser.add_argument("--regime", default="paper", metavar="NAMES", help=regime)
    parser.add_argument("--no-controls", action="store_true", help="leave out the rows that are not the paper's")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder that holds the data sets' folders")
    parser.add_argument("--seeds", type=_count, metavar="N", help="seeds 0 to N - 1 (default: the manifest's, 3)")
    parser.add_argument("--rounds", type=_count, metavar="N", help="communication rounds, to scale down")
    parser.add_argument("--clients", type=_count, metavar="N", help="clients, to scale down")
    weights = "local weights of CLIP: a file, or a folder with one named after each architecture (RN50.pt, ...)"
    parser.add_argument("--weights", type=Path, metavar="PATH", help=weights)
    formats = get_args(get_type_hints(ClipConfig)["precision"])
    precision = "number format of CLIP (default: float32); another one is kept in a folder of its own"
    parser.add_argument("--precision", choices=formats, help=precision)
    cache = "folder of the cache of image features (default: ~/.cache/fedmoe)"
    parser.add_argument("--features-cache", type=Path, metavar="DIR", help=cache)
    parser.add_argument("--features-workers", type=_count, metavar="N", help="processes that read images (default: 0)")
    batch = "images in a batch of the image encoder (default: 256)"
    parser.add_argument("--features-batch", type=_count, metavar="N", help=batch)
    parser.add_argument("--jobs", type=_count, metavar="N", help="runs at once (default: one for each GPU, or 1)")
    parser.add_argument("--wandb", choices=["disabled", "offline", "online"], help="track the runs, a group a cell")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for runs, logs and report (default: in runs/)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands and what is pending; run nothing")
    what.add_argument("--report", action="store_true", help="report what is there; run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report one table or figure; the exit code."""
    console = Console()
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # SIGINT too: a shell's background job, and its runs, would ignore it
        signal.signal(number, _interrupt)
    return exit_code(lambda: reproduce(parse(arguments), console))


def reproduce(options: argparse.Namespace, console: Console) -> int:
    """What the command line asks for."""
    from experiments.reproduce.plan import Options, make_plan
    from experiments.reproduce.report import terminal_table, write_report
    from experiments.reproduce.runner import Outcome, run_all, visible_gpus
    from fedmoe import display
    from fedmoe.io import write_json_atomic
    from fedmoe.report.tables import show

    manifest = load_manifest(options.name, options.preset)
    if options.no_controls:
        manifest = replace(manifest, controls=())
    out = (options.out or Path("runs") / _folder(options)).resolve()
    scale = (options.seeds, options.rounds, options.clients)
    regimes = load_regimes(options.regime)
    given = {key: value for key, value in _settings(options).items() if value is not None}
    plan = make_plan(
        manifest, Options(out, options.data, *scale, options.wandb, regimes, options.weights, settings=given)
    )

    say = partial(display.say, console)
    say(f"{plan.title}: {len(plan.runs)} runs in {out}")
    for label, reason in plan.pending().items():
        say(f"pending: {label} ({reason})")
    for note in plan.notes:
        say(f"note: {note}")
    if options.dry_run:
        for run in plan.runs:
            say(shlex.join(["python", "-m", "fedmoe.cli", "fit", *run.arguments]))
        return 0
    outcome = Outcome()
    if not options.report:
        if any(not run.finished for run in plan.runs):
            plan.check_data()
            write_json_atomic(out / "machine.json", {"machine": machine()})
        jobs = options.jobs or len(visible_gpus()) or 1
        outcome = run_all(plan.runs, jobs, console, manifest.name, out)
    written = write_report(plan)
    show(terminal_table(plan), console)
    missing = [run for run in plan.runs if not run.finished]
    if outcome.skipped:
        say(f"{outcome.skipped} runs were finished before.")
    for run, why in outcome.failed:
        say(f"FAILED: {run.name} {why} (log: {run.log})")
    if outcome.failed and outcome.not_started:
        say(f"{outcome.not_started} runs were not started: the first ones all failed.")
    say(f"{len(plan.runs) - len(missing)} of {len(plan.runs)} runs are there; report: {written}")
    if outcome.interrupted:
        raise KeyboardInterrupt
    return 1 if missing else 0


def _folder(options: argparse.Namespace) -> str:
    """A folder for each setting: runs of another scale are other runs."""
    parts = [options.name, options.preset]
    parts += [f"{key}{getattr(options, key)}" for key in ("rounds", "clients") if getattr(options, key) is not None]
    parts += [options.precision if options.precision != "float32" else None]
    return "-".join(part for part in parts if part)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of fit that options stand for."""
    cache = options.features_cache and str(options.features_cache.expanduser().resolve())
    return {
        "clip.precision": options.precision,
        "features.cache_dir": cache,
        "features.workers": options.features_workers,
        "features.batch_size": options.features_batch,
    }


def machine() -> str:
    """Processor, cores that may be used, and GPUs."""
    import torch

    from experiments.reproduce.runner import available_cores

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text(errors="replace").splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{available_cores()} cores of {name}" + (f", {', '.join(gpus)}" if gpus else ", no GPU")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; valid is an integer of at least 1")
    return int(text)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
