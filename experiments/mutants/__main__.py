"""`make mutants`: run mutmut over the files of targets.toml and report on it."""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from hypothesis import Phase, settings
from mutmut.__main__ import run
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key
from rich.console import Console

from experiments.mutants import plugin
from experiments.mutants.report import Change, Mutant, read_equivalent, report

TARGETS = Path(__file__).with_name("targets.toml")
EQUIVALENT = Path("tests/mutants_equivalent.toml")


def main() -> int:
    """0: enough mutants are killed and each survivor is explained; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="only these files (default: all of targets.toml)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--survivors", action="store_true", help="test the last run's survivors again, no others")
    parser.add_argument("--keep", action="store_true", help="report on the last run's results, and test nothing")
    args = parser.parse_args()
    tests = select(args.files)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if not tests:
        console.print(f"No file of {TARGETS.name} is among {' '.join(args.files)}.")
        return 1
    start = time.perf_counter()
    if not args.keep:
        survivors = [mutant.name for mutant in results(tests) if not mutant.killed] if args.survivors else []
        if args.survivors and not survivors:
            console.print("The last run left no survivors.")
            return 0
        run_mutmut(tests, args.jobs, survivors)
    mutants = list(results(tests))
    passed = report(mutants, read_equivalent(EQUIVALENT), console)
    if mutants and not (args.keep or args.survivors):
        seconds = time.perf_counter() - start
        each = processor_time() / len(mutants)
        console.print(f"{seconds:.0f} s with {args.jobs} processes; {each:.2f} processor seconds a mutant")
    return 0 if passed else 1


def processor_time() -> float:
    """Processor seconds of all processes that mutmut started: other jobs on the machine hardly change them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def select(files: Sequence[str]) -> dict[str, list[str]]:
    """File to be mutated -> its tests; of all targets, or those among ``files``."""
    patterns: dict[str, list[str]] = tomllib.loads(TARGETS.read_text(encoding="utf-8"))["tests"]
    found: dict[str, list[str]] = {}
    for path in sorted(map(str, Path("fedmoe").rglob("*.py"))):
        fitting = next((pattern for pattern in patterns if fnmatch(path, pattern)), None)
        if fitting and (not files or any(fnmatch(path, file) for file in files)):
            found[path] = patterns[fitting]
    return found


def run_mutmut(tests: dict[str, list[str]], jobs: int, names: Sequence[str] = ()) -> None:
    """Run the tests on each mutant, in a process forked from one that has imported everything.

    With ``names``, only on these, which the last run left under ``mutants/``; otherwise all are made anew.
    """
    # Always the same examples, and none made smaller after a failure: verdicts do not change from run to run.
    settings.register_profile(
        "mutants", derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.load_profile("mutants")
    if names:
        Path("mutants/mutmut-stats.json").unlink(missing_ok=True)  # which test calls what: tests were added since
    else:
        shutil.rmtree("mutants", ignore_errors=True)  # mutmut would keep verdicts of tests that have changed since
    config().only_mutate = list(tests)
    config().pytest_add_cli_args_test_selection = sorted({name for names in tests.values() for name in names})
    config().pytest_add_cli_args = ["-p", plugin.__name__, "-p", "no:cacheprovider"]
    plugin.OWN_TESTS.update(tests)
    run.main(["--max-children", str(jobs), *names], standalone_mode=False)


def results(files: dict[str, list[str]]) -> Iterator[Mutant]:
    """The mutants of these files and what became of them."""
    for file in files:
        data = SourceFileMutationData(path=file)
        data.load()
        for name, code in data.exit_code_by_key.items():
            function, owner = orig_function_and_class_names_from_key(name)
            change = Change.from_diff(
                f"{owner}.{function}" if owner else function, get_diff_for_mutant(name, path=file)
            )
            yield Mutant(name, file, status_by_exit_code[code], change)


if __name__ == "__main__":
    sys.exit(main())
