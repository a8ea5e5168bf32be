"""Image encoding by batch size, with and without ``features.keep_memory``: ``python -m experiments.bench.images``.

RN50 of open_clip with random weights, images of 224 px, float32, one thread: milliseconds an image, medians of
interleaved repeats. Each is a process of its own, whose peak of memory is told too.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
from rich.console import Console
from rich.table import Table

from experiments.exits import exit_code
from fedmoe.config import ClipConfig
from fedmoe.errors import require
from fedmoe.features.memory import memory_kept
from fedmoe.models.clip import FrozenCLIP
from fedmoe.seeds import torch_generator


def measure(size: int, keep: bool) -> tuple[float, float, int]:
    """Processor and wall milliseconds an image in the second of two batches, and this process's peak of memory, MB."""
    torch.set_num_threads(1)
    clip = FrozenCLIP.load(ClipConfig(architecture="RN50", pretrained=None, quick_gelu=True))
    images = torch.randn(size, 3, clip.image_size, clip.image_size, generator=torch_generator(0))
    with memory_kept() if keep else nullcontext():
        clip.encode_image(images)
        busy, wall = time.process_time(), time.perf_counter()
        clip.encode_image(images)
        busy, wall = time.process_time() - busy, time.perf_counter() - wall
    return 1e3 * busy / size, 1e3 * wall / size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sizes", type=int, nargs="*", default=[8, 32, 256], help="images in a batch (8, 32, 256)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats")
    parser.add_argument("--one", choices=("kept", "returned"), help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    require(arguments.repeats >= 1, "--repeats", arguments.repeats, "an integer of at least 1")
    require(min(arguments.sizes) >= 1, "sizes", arguments.sizes, "integers of at least 1")
    if arguments.one:
        print(json.dumps(measure(arguments.sizes[0], arguments.one == "kept")))
        return 0
    kinds = [(size, kind) for size in arguments.sizes for kind in ("returned", "kept")]
    found: dict[tuple[int, str], list[list[float]]] = {kind: [] for kind in kinds}
    for _ in range(arguments.repeats):
        for size, kind in kinds:
            command = [sys.executable, "-m", "experiments.bench.images", str(size), "--one", kind]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[size, kind].append(json.loads(done.stdout.splitlines()[-1]))
    table = Table("images in a batch", "memory", "processor ms an image", "wall ms", "peak MB", title="Image encoding")
    for (size, kind), rows in found.items():
        busy, wall, peak = zip(*rows, strict=True)
        spread = f"{statistics.median(busy):.0f} ({min(busy):.0f} to {max(busy):.0f})"
        table.add_row(str(size), kind, spread, f"{statistics.median(wall):.0f}", str(max(peak)))
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
