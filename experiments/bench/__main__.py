"""Speed of local training: ``make bench``, or ``OMP_NUM_THREADS=1 python -m experiments.bench --json FILE``.

1. A local step of pFedMoAP (forward, backward, optimizer; 32 images, 9 experts) on cached features with the
   prefix-shared text pass, against the plain way: the image encoder on 32 images of 224 px and all 77 tokens. With the
   default settings and with ``runtime.packed_weights``; ``speed_up`` is that of the one which ``auto`` chooses here.
2. The share of a federated round that is spent outside model mathematics (forward, backward, optimizer steps and
   evaluation logits): Lightning, sampling, aggregation, logs, checkpoints.

3. The text pass and its gradient, for each prompt: alone, and ten clients' at once (``runtime.cohort_batch``).

CLIP is open_clip's RN50 with random weights: speed does not depend on their values. One thread; processor seconds;
medians of interleaved repeats with the least and the largest. ``--device cuda`` times table 2's shape on a GPU instead
(written without one at hand; the same code has run on a CPU only).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments.bench.card import bench_card, show_card
from experiments.bench.measure import Spread, best_product, machine
from experiments.bench.rounds import bench_round
from experiments.bench.steps import bench_cohort, bench_step
from experiments.exits import exit_code
from fedmoe.config import ClipConfig
from fedmoe.errors import UserError, require
from fedmoe.io import write_json_atomic
from fedmoe.models.clip import FrozenCLIP


def bench_core(classes: list[int], repeats: int, console: Console) -> dict[str, Any]:
    """Steps and rounds on one thread, printed and as plain values."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    clip = FrozenCLIP.load(ClipConfig(architecture="RN50", pretrained=None, quick_gelu=True))
    best = best_product(device)
    peak = best["flop_per_second"]
    told = {"format": 1, "device": "cpu", "repeats": repeats, "machine": machine(device), "best_product": best}
    console.print(f"RN50 with random weights, float32, torch {torch.__version__}, 1 thread", highlight=False)
    console.print(f"Best matrix product here: {peak / 1e9:.0f} GFLOP/s ({best['product']})", highlight=False)
    steps = {str(count): bench_step(clip, count, repeats, peak) for count in classes}
    title = f"A local step of pFedMoAP: processor ms, median (least to largest) of {repeats} interleaved repeats"
    table = Table("", "run", "processor ms", "wall ms", "GFLOP", "GFLOP/s", "of best", "faster than plain", title=title)
    for count, found in steps.items():
        for name, row in found["runs"].items():
            cpu, wall = (
                Spread(**{k: 1e3 * v for k, v in row[f"{kind}_seconds"].items()}) for kind in ("processor", "wall")
            )
            rates = [f"{row['flop'] / 1e9:.1f}", f"{row['flop_per_second'] / 1e9:.0f}"]
            factor = str(Spread(**row["speed_up"])) if "speed_up" in row else ""
            share = f"{100 * row['share_of_best_product']:.0f} %"
            taken = f"{name} (auto)" if name == found["auto"] else name
            table.add_row(f"C = {count}", taken, str(cpu), f"{wall.median:.1f}", *rates, share, factor)
    console.print(table)
    clip.text.packed = False
    rounds = {str(count): bench_round(clip, count) for count in classes}
    table = Table("", "median", "largest", "seconds", title="Share of a round outside model mathematics")
    for count, found in rounds.items():
        share = found["outside_mathematics"]
        shares = (f"{100 * share[name]:.1f} %" for name in ("median", "largest"))
        table.add_row(f"C = {count}", *shares, f"{found['wall_seconds']['median']:.2f}")
    console.print(table)
    cohorts = {str(count): bench_cohort(clip, count, min(2, repeats)) for count in classes}
    table = Table("", "run", "processor ms a prompt", title="Text pass and gradient of one prompt, and of ten at once")
    for count, found in cohorts.items():
        for name, row in found["processor_ms_a_prompt"].items():
            table.add_row(f"C = {count}", name, str(Spread(**row)))
    console.print(table)
    factors = {count: found["speed_up"]["median"] for count, found in steps.items()}
    default = {count: found["runs"]["default"]["speed_up"]["median"] for count, found in steps.items()}
    return {
        **told,
        "speed_up": factors,
        "speed_up_default": default,
        "steps": steps,
        "rounds": rounds,
        "cohort": cohorts,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100], help="numbers of classes C, up to 110")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of each step")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: table 2's shape on a GPU")
    parser.add_argument("--card-on-cpu", action="store_true", help="the code of --device cuda on the CPU, scaled down")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all numbers go")
    arguments = parser.parse_args()
    require(arguments.repeats >= 1, "--repeats", arguments.repeats, "an integer of at least 1")
    require(all(1 <= c <= 110 for c in arguments.classes), "--classes", arguments.classes, "numbers from 1 to 110")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no CUDA device here; valid is cpu.")
    console = Console(width=130)
    if arguments.device == "cuda" or arguments.card_on_cpu:
        found = bench_card(torch.device(arguments.device), arguments.classes, arguments.repeats)
        show_card(found, console)
    else:
        found = bench_core(arguments.classes, arguments.repeats, console)
    if arguments.json is not None:
        write_json_atomic(arguments.json, found)
        console.print(f"Written: {arguments.json}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
