"""Run folders that are written by hand, for tests of reports; every expected number is worked out by hand.

The four clients of ``RUN`` have 10 test images each, and two domains. Their accuracy in percent:

    round 0    20 40 60 80    mean 50, deviations -30 -10 10 30, variance 500, std 22.36
    round 2    50 70 90 90    mean 75, deviations -25  -5 15 15, variance 275, std 16.58; photo 60, sketch 90
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from fedmoe.report import plan_comparison, report
from fedmoe.report.comparison import read_comparison
from fedmoe.report.run import read_run
from fedmoe.report.tables import comparison_table, run_table, show

# Round -> right answers of each client out of 10; mean, std, worst decile; mean of each domain
Evaluations = Mapping[int, tuple[Sequence[int], Sequence[float], Sequence[float]]]
RUN: Evaluations = {
    0: ((2, 4, 6, 8), (50.0, 500**0.5, 20.0), (30.0, 70.0)),
    2: ((5, 7, 9, 9), (75.0, 275**0.5, 50.0), (60.0, 90.0)),
}
OTHER: Evaluations = {  # 60 60 80 80: mean 70, deviations of 10 each; 70 70 50 90: variance (0 + 0 + 400 + 400) / 4
    0: ((6, 6, 8, 8), (70.0, 10.0, 60.0), (60.0, 80.0)),
    2: ((7, 7, 5, 9), (70.0, 200**0.5, 50.0), (70.0, 70.0)),
}
DOMAINS = ("photo", "photo", "sketch", "sketch")


def write_run(
    folder: Path,
    evaluations: Evaluations = RUN,
    *,
    method: str = "PFedMoAP",
    label: str = "pFedMoAP",
    arguments: dict[str, Any] | None = None,
    finished: bool = True,
    domains: bool = True,
    last: int | None = None,
    class_path: str | None = None,
) -> Path:
    """A run folder of rounds 0 to ``last``, of which those in ``evaluations`` are evaluated."""
    number = len(next(iter(evaluations.values()))[0])
    names = DOMAINS if domains else (None,) * number
    rounds, clients = [], []
    for r in range((max(evaluations) if last is None else last) + 1):
        right, (mean, std, worst), per_domain = evaluations.get(r, ((), (0.0, 0.0, 0.0), ()))
        accuracy = {"mean": mean, "std": std, "min": 10.0 * min(right, default=0), "max": 10.0 * max(right, default=0)}
        evaluated = r in evaluations
        record = {"round": r, "cohort": [0] if r else [], "evaluated": evaluated, "accuracy": None}
        record["accuracy"] = {**accuracy, "worst_decile": worst} if evaluated else None
        record["accuracy_per_domain"] = dict(zip(("photo", "sketch"), per_domain, strict=True)) if per_domain else {}
        record["accuracy_per_domain"] = record["accuracy_per_domain"] if domains else {}
        record["train_loss"] = 1.0 / r if r else None
        record["seconds"] = {"train": 2.0 * (r > 0), "evaluate": 0.5 * evaluated, "other": 0.25}
        record["bytes"] = {"down": 1000 + 2000 * r if r else 0, "up": 1000 * (r > 0), "evaluate_down": 1000 * r}
        record |= {"clients_seen": min(r, 1), "prompt_drift": None, "experts": {"0": [1, 2]} if r else {}}
        record["attention"] = {"local": 0.5, "experts": [0.3, 0.2]} if r else None
        rounds.append(record)
        for i, n in enumerate(right):
            result = {"round": r, "client": i, "domain": names[i], "accuracy": 10.0 * n, "correct": n, "total": 10}
            clients.append({**result, "train_examples": 3})
    folder.mkdir(parents=True)
    for name, lines in (("rounds", rounds), ("clients", clients)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = {"counts_train": [[1, 2]] * number, "counts_test": [[5, 5]] * number}
    partition = {"class_names": ["cat", "dog"], **counts, "domains": list(names) if domains else None}
    (folder / "partition.json").write_text(json.dumps(partition))
    settings = {"class_path": class_path or f"fedmoe.methods.{method}", "init_args": arguments or {}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 7, "method": settings}, sort_keys=False))
    if finished:
        summary = {"method": method, "label": label, "seed": 7, "rounds": rounds[-1]["round"], "versions": {}}
        (folder / "summary.json").write_text(json.dumps({**summary, "failed_clients": []}))
    return folder


def write_comparison(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    plan_comparison(folder, names)
    return folder


def printed(path: Path, width: int = 80, terminal: bool = False) -> list[str]:
    """The lines that a report of ``path`` prints."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    report(path, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def tables(path: Path, width: int = 80) -> list[str]:
    """The same without the plots, which take longer."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    comparison = (path / "comparison.json").exists()
    show(comparison_table(read_comparison(path)) if comparison else run_table(read_run(path)), console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def cells(lines: Sequence[str], first: str) -> list[str]:
    """The cells of the printed row that starts with ``first``."""
    row = next(line for line in lines if line.strip().startswith(first))
    return re.split(r"\s{2,}", row.strip())


HUNDRED = {0: ([i // 10 for i in range(100)], (45.0, 825**0.5, 0.0), ())}  # std: (100 - 1) / 12 of tens, squared


def band(figure: Any) -> np.ndarray:
    """Lower and upper edge of the band over rounds, [2, rounds]."""
    vertices = figure.axes[0].collections[0].get_paths()[0].vertices
    edges = [vertices[vertices[:, 0] == x, 1] for x in np.unique(vertices[:, 0])]
    return np.array([[e.min() for e in edges], [e.max() for e in edges]])
