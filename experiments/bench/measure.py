"""Times of runs in turn, floating-point operations, and what the processor can do."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedmoe.models.packed import PackedLinear, available
from fedmoe.runs.provenance import versions

Run = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of repeats."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, slow: Sequence[float], fast: Sequence[float]) -> Spread:
        """How many times as fast in each repeat."""
        return cls.of([s / f for s, f in zip(slow, fast, strict=True)])

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.least:.1f} to {self.largest:.1f})"


@dataclass(frozen=True)
class Times:
    """Seconds of each repeat of a run."""

    processor: list[float]
    wall: list[float]

    def to_json(self) -> dict[str, Any]:
        return {"processor_seconds": asdict(Spread.of(self.processor)), "wall_seconds": asdict(Spread.of(self.wall))}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    runs: Mapping[str, Run],
    repeats: int,
    device: torch.device | None = None,
    least: float = 0.3,
    warmed_up: bool = False,
) -> dict[str, Times]:
    """Time each run, in turn, so that what else the machine does meets all alike. Each is run once before to warm up,
    and a repeat lasts at least ``least`` seconds or ten runs, of which the mean counts. If they are ``warmed_up``
    already, a repeat is one run."""
    device = device or torch.device("cpu")
    often, times = dict.fromkeys(runs, 1), {name: Times([], []) for name in runs}
    for name, run in () if warmed_up else runs.items():
        began = time.perf_counter()
        run()
        synchronize(device)
        often[name] = max(1, min(10, round(least / max(1e-9, time.perf_counter() - began))))
    for _ in range(repeats):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(often[name]):
                run()
            synchronize(device)
            times[name].processor.append((time.process_time() - cpu) / often[name])
            times[name].wall.append((time.perf_counter() - wall) / often[name])
    return times


def flop(run: Run) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def best_product(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The fastest matrix product that is found here, of a few shapes: plain, and with packed weights on a CPU."""
    found: dict[str, float] = {}
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        runs: dict[str, Run] = {f"{size}^3": lambda a=left, b=right: a @ b}  # type: ignore[misc]
        if device.type == "cpu" and dtype == torch.float32 and available(right):
            packed = PackedLinear(right, None)
            runs[f"{size}^3, packed"] = lambda a=left, m=packed: m(a)  # type: ignore[misc]
        for name, times in interleaved(runs, 5, device).items():
            seconds = times.processor if device.type == "cpu" else times.wall
            found[name] = 2 * size**3 / min(seconds)
    best = max(found, key=lambda name: found[name])
    return {"flop_per_second": found[best], "product": best, "all": found}


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware, and the versions of what ran on it."""
    cpuinfo, model = Path("/proc/cpuinfo"), platform.processor()
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    told: dict[str, Any] = {
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    if device.type == "cuda":
        told |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        told["gpu_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return told
