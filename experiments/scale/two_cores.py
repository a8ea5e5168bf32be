"""One run on one core and on two: ``python -m experiments.scale.two_cores [--repeats R] [OPTION...]``, with Flower.

Runs ``fit`` in process and with two workers (``engine.kind: flower_simulation``), one after the other, as often as
asked, with these options of ``fit`` besides (``--config=configs/quickstart.yaml`` unless others are given). Prints the
medians of the seconds that all rounds took and of the whole command, and whether both gave the same results. A run of
one round, which does not count, extracts the features before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ENGINES = {"one core": (), "two cores": ("--engine.kind=flower_simulation", "--engine.actors=2")}
RESULTS = ("round", "cohort", "train_loss", "prompt_drift", "accuracy", "experts", "attention")


def fit(options: list[str], engine: tuple[str, ...], folder: Path) -> tuple[float, float, list[dict[str, Any]]]:
    """Seconds of all rounds, seconds of the command, and what the rounds found."""
    command = [sys.executable, "-m", "fedmoe.cli", "fit", *options, *engine, f"--output.dir={folder}"]
    began = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    wall = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    lines = [json.loads(line) for path in sorted(folder.rglob("rounds.jsonl")) for line in path.open()]
    return sum(sum(line["seconds"].values()) for line in lines), wall, [{k: r.get(k) for k in RESULTS} for r in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each engine, interleaved")
    args, options = parser.parse_known_args()
    options = options or ["--config=configs/quickstart.yaml"]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        shared = [*options, f"--features.cache_dir={folder}/features"]
        fit([*shared, "--federation.rounds=1"], ENGINES["one core"], Path(folder) / "features-only")
        for number in range(args.repeats):
            for name, engine in ENGINES.items():
                rounds, wall, found = fit(shared, engine, Path(folder) / f"{name}-{number}".replace(" ", "-"))
                seconds[name].append((rounds, wall))
                results.append(found)
                print(f"{name}: rounds {rounds:.1f} s, command {wall:.1f} s", flush=True)
    faster = []
    for which in (0, 1):
        one, two = (statistics.median(pair[which] for pair in pairs) for pairs in seconds.values())
        faster.append(one / two)
    print(f"On two cores rounds are {faster[0]:.2f} times as fast, the command {faster[1]:.2f} times; ", end="")
    print("the same results" if all(found == results[0] for found in results) else "DIFFERENT RESULTS")


if __name__ == "__main__":
    main()
