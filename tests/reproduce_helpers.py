"""What tests of tables and figures share: their names, a manifest without controls, the files of a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import yaml

from experiments.reproduce.manifest import Manifest, load_manifest
from experiments.reproduce.plan import Run

TABLES = [1, 2, 3, 4, 6, 7, 8, 9]
NAMES = [f"table{n}" for n in TABLES] + [f"figure{n}" for n in (3, 4, 5, 6)] + ["zero-shot", "experts_matter"]


def published_alone(name: str, preset: str | None = None) -> Manifest:
    """A manifest without controls."""
    return replace(load_manifest(name, preset), controls=())


def write_run(run: Run, mean: float, domains: Mapping[str, float] | None = None) -> None:
    """The files of a finished run that a report reads."""
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(dict(run.settings)), encoding="utf-8")
    summary = {
        "rounds": run.rounds,
        "accuracy": {"mean": mean},
        "accuracy_per_domain": domains or {},
        "seconds": {"train": 2.0, "evaluate": 1.0, "other": 0.5},
        "versions": {"fedmoe": "0.0", "torch": "9.9"},
    }
    (run.folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
