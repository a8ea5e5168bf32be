"""The runs of a manifest, each as the arguments of ``python -m fedmoe.cli fit``, checked against its parser.

A row whose method, or whose setting, fedmoe does not have yet is *pending*: it is listed, and never run or guessed.
Where there are fewer other clients than experts, their number is lowered with a note; where it is what is compared, the
point is *left out*.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.reproduce.cifar_files import write_cifar
from experiments.reproduce.fields import merged
from experiments.reproduce.manifest import ROOT, DataEntry, Manifest, Row
from experiments.reproduce.pending import (
    as_arguments,
    from_files,
    known_settings,
    lower_experts,
    method_of,
    parser,
    pending,
)
from experiments.reproduce.regimes import PAPER, Regime
from experiments.reproduce.weights import clip_settings
from fedmoe.errors import UserError

GENERATORS: Mapping[str, Callable[[Path], None]] = {"cifar": write_cifar}
# Settings that may differ between a finished run and the command that asks for it: they say where and how, not what.
_ANY = ("config.", "output.", "features.", "runtime.", "engine.", "tracking.")


@dataclass(frozen=True)
class Options:
    """What the command line changes; None leaves the manifest's."""

    out: Path
    data: Path | None = None
    seeds: int | None = None
    rounds: int | None = None
    clients: int | None = None
    wandb: str | None = None  # W&B's mode, see tracking.wandb
    regimes: tuple[Regime, ...] = (PAPER,)
    weights: Path | None = None  # a weights file, or a folder of them
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value, over all others

    def words(self) -> str:
        """The part of these that makes results other than the table's, as text."""
        found = {"rounds": self.rounds, "clients": self.clients}
        return ", ".join(f"{key} = {value}" for key, value in found.items() if value is not None)


@dataclass(frozen=True, eq=False)
class Run:
    """One federated run."""

    name: str
    arguments: tuple[str, ...]  # of fit, without those that say where and how
    folder: Path
    log: Path
    data: str  # the data set and its regime: runs of the same one can share image features
    seed: int
    settings: Mapping[str, Any]  # resolved, flat
    rounds: int
    work: float  # passes over a client's data, roughly

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run with these settings, up to its last round."""
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            found = flat(yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError):
            return False
        return summary.get("rounds") == self.rounds and _what(found) == _what(self.settings)

    def with_seed(self, seed: int) -> Run:
        """The same run with another seed, in a folder of its own."""
        name = f"{self.name.rpartition('-')[0]}-seed{seed}"
        return replace(
            self,
            name=name,
            arguments=(*self.arguments, f"--seed={seed}"),
            folder=self.folder.with_name(name),
            log=self.log.with_name(f"{name}.log"),
            seed=seed,
            settings={**self.settings, "seed": seed},
        )


State = Literal["run", "pending", "left out"]


@dataclass(frozen=True, eq=False)
class Cell:
    """A row on a data set (at a value of the axis), over all seeds."""

    row: Row
    data: DataEntry
    x: float | None
    state: State
    reason: str = ""
    runs: tuple[Run, ...] = ()
    regime: str = PAPER.name


@dataclass(frozen=True, eq=False)
class Plan:
    """All there is to run for a table or figure."""

    manifest: Manifest
    options: Options
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]
    experiments: Mapping[str, Any] = field(default_factory=dict)  # Run.data -> settings as objects, of one such run

    @property
    def runs(self) -> list[Run]:
        """Seed by seed, so that a table fills evenly."""
        found = [run for cell in self.cells for run in cell.runs]
        return sorted(found, key=lambda run: run.seed)

    @property
    def seeds(self) -> range:
        return range(self.options.seeds or self.manifest.seeds)

    @property
    def regimes(self) -> list[str]:
        return [regime.name for regime in self.options.regimes]

    @property
    def title(self) -> str:
        """The manifest's, with the regimes where they are not the paper's alone."""
        found = self.regimes
        words = f"{' and '.join(found)} regime{'s' * (len(found) > 1)}"
        return self.manifest.title if found == [PAPER.name] else f"{self.manifest.title} ({words})"

    def labelled(self, label: str, regime: str) -> str:
        """A row's label, with its regime where there are several."""
        return label if len(self.regimes) == 1 else f"{label}, {regime} regime"

    def pending(self) -> dict[str, str]:
        """Row label -> what it waits for."""
        found = [cell for cell in self.cells if cell.state == "pending"]
        return {self.labelled(cell.row.label, cell.regime): cell.reason for cell in found}

    def check_data(self) -> None:
        """Read every data set and partition it, so that a mistake there is found before the first run.

        Raises:
            UserError: files are missing or cannot be used, or a partition cannot be kept.
        """
        from fedmoe.data import partition_dataset

        for built in self.experiments.values():
            partition_dataset(built.data, built.partition, built.federation.clients, 0)


def make_plan(manifest: Manifest, options: Options) -> Plan:
    """The runs of a manifest.

    Raises:
        UserError: a setting is not valid, or an option does not fit.
    """
    if manifest.generate is not None and options.data is None:
        root = options.out / "data"
        GENERATORS[manifest.generate](root)
        options = replace(options, data=root)
    cells: list[Cell] = []
    notes: list[str] = []
    experiments: dict[str, Any] = {}
    for regime in options.regimes:
        for row in manifest.all_rows:
            for data in manifest.data:
                for shown, value in manifest.axis.values if manifest.axis else ((None, None),):
                    cell, note, built = _cell(manifest, data, row, shown, value, regime, options)
                    cells.append(cell)
                    if note and note not in notes:
                        notes.append(note)
                    if built is not None:
                        experiments.setdefault(cell.runs[0].data, built)
    return Plan(manifest, options, tuple(cells), tuple(notes), experiments)


def _cell(
    manifest: Manifest, data: DataEntry, row: Row, shown: float | None, value: Any, regime: Regime, options: Options
) -> tuple[Cell, str, Any]:
    """A cell, what was changed in it, and its settings as objects."""
    files = [*manifest.configs, *data.configs, *row.configs]
    name, reason = regime.name, pending(row)
    if reason:
        return Cell(row, data, shown, "pending", reason, regime=name), "", None
    settings = _settings(manifest, data, row, value, regime, options)
    reason, note = lower_experts(settings, files, manifest, row)
    if reason:
        return Cell(row, data, shown, "left out", reason, regime=name), "", None
    runs, built = _runs(manifest, data, row, shown, settings, regime, options)
    return Cell(row, data, shown, "run", "", runs, name), note, built


def _settings(
    manifest: Manifest, data: DataEntry, row: Row, value: Any, regime: Regime, options: Options
) -> dict[str, Any]:
    """The nested settings behind the configuration files."""
    settings = regime.over(merged(manifest.settings, data.settings), data, method_of(row))
    settings = merged(merged(settings, manifest.regimes.get(regime.name, {})), row.settings)
    if manifest.axis is not None:
        settings = merged(settings, _nested(manifest.axis.setting, value))
    if options.data is not None:
        settings = merged(settings, _nested("data.init_args.root", str(options.data.resolve())))
    if options.rounds is not None:
        settings = merged(settings, _nested("federation.rounds", options.rounds))
    for key, given in options.settings.items():
        settings = merged(settings, _nested(key, given))
    if options.weights is not None:
        files = [*manifest.configs, *data.configs, *row.configs]
        clip = merged(from_files(files), settings).get("clip", {})
        settings = merged(settings, {"clip": clip_settings(clip, options.weights)})
    if options.clients is not None:
        settings = merged(settings, _nested("federation.clients", options.clients))
        if data.domains:
            if options.clients % len(data.domains):
                raise UserError(
                    f"--clients is {options.clients}, but {data.label} has {len(data.domains)} domains with equally "
                    f"many clients; valid is a multiple of {len(data.domains)}."
                )
            each = options.clients // len(data.domains)
            settings = merged(settings, _nested("partition.init_args.clients_per_domain", each))
    return settings


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _runs(
    manifest: Manifest,
    data: DataEntry,
    row: Row,
    shown: float | None,
    settings: Mapping[str, Any],
    regime: Regime,
    options: Options,
) -> tuple[tuple[Run, ...], Any]:
    where = "" if regime is PAPER else f", regime {regime.name}"
    files = [f"--config={path}" for path in (*manifest.configs, *data.configs, *row.configs)]
    arguments = [*files, *as_arguments(settings)]
    if options.wandb is not None:
        arguments.append(f"--tracking.wandb={options.wandb}")
    absolute = [f"--config={ROOT / a.partition('=')[2]}" if a.startswith("--config=") else a for a in arguments]
    try:
        parsed = parser().parse_args(absolute)
        built = parser().instantiate(parsed)
    except UserError as error:
        raise UserError(f"experiments/{manifest.name}, row {row.key}, data {data.key}{where}: {error}") from error
    resolved = flat(json.loads(json.dumps(parsed.as_dict(), default=str)))
    schedule = built.method.schedule(built.federation)
    cohort = max(1, int(schedule.participation * schedule.clients))
    evaluations = 2 + schedule.rounds // schedule.evaluate_every
    work = schedule.rounds * cohort * schedule.local_epochs + 0.1 * evaluations * schedule.clients
    runs = []
    for seed in range(options.seeds or manifest.seeds):
        point = "" if shown is None or manifest.axis is None else f"-{manifest.axis.setting.split('.')[-1]}{shown:g}"
        apart = "" if regime is PAPER else f"-{regime.name}"
        name = f"{row.key}-{data.key}{point}{apart}-seed{seed}"
        cell = name.rpartition("-")[0]
        group = [f"--tracking.group={manifest.name}/{cell}"] if "tracking.group" in known_settings() else []
        folder, log = options.out / "runs" / name, options.out / "logs" / f"{name}.log"
        own, seeded = {**resolved, "seed": seed}, (*arguments, *group, f"--seed={seed}")
        runs.append(Run(name, seeded, folder, log, f"{data.key}{apart}", seed, own, schedule.rounds, work))
    return tuple(runs), built


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _what(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of flat settings that decide a run's result; null and an empty mapping are the same as none."""
    return {k: v for k, v in settings.items() if not f"{k}.".startswith(_ANY) and v is not None and v != {}}
