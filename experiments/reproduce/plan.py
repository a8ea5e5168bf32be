"""The runs of a manifest, each as the arguments of ``python -m fedmoe.cli fit``, checked against its parser.

A row whose method, or whose setting, fedmoe does not have yet is *pending*: it is listed, and never run or guessed.
Where there are fewer other clients than experts, their number is lowered with a note; where it is what is compared, the
point is *left out*.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.reproduce.cifar_files import write_cifar
from experiments.reproduce.manifest import ROOT, DataEntry, Manifest, Row, merged
from fedmoe.cli.yaml_files import load_file
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
    data: str
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


@dataclass(frozen=True, eq=False)
class Plan:
    """All there is to run for a table or figure."""

    manifest: Manifest
    options: Options
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]
    experiments: Mapping[str, Any] = field(default_factory=dict)  # data -> settings as objects, of one of its runs

    @property
    def runs(self) -> list[Run]:
        """Seed by seed, so that a table fills evenly."""
        found = [run for cell in self.cells for run in cell.runs]
        return sorted(found, key=lambda run: run.seed)

    @property
    def seeds(self) -> range:
        return range(self.options.seeds or self.manifest.seeds)

    def pending(self) -> dict[str, str]:
        """Row label -> what it waits for."""
        return {cell.row.label: cell.reason for cell in self.cells if cell.state == "pending"}

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
    for row in manifest.rows:
        why = _pending(row)
        for data in manifest.data:
            for shown, value in manifest.axis.values if manifest.axis else ((None, None),):
                if why:
                    cells.append(Cell(row, data, shown, "pending", why))
                    continue
                settings = _settings(manifest, data, row, value, options)
                reason, note = _experts(settings, manifest, row, options)
                if reason:
                    cells.append(Cell(row, data, shown, "left out", reason))
                    continue
                if note and note not in notes:
                    notes.append(note)
                runs, built = _runs(manifest, data, row, shown, settings, options)
                experiments.setdefault(data.key, built)
                cells.append(Cell(row, data, shown, "run", "", runs))
    return Plan(manifest, options, tuple(cells), tuple(notes), experiments)


def _settings(manifest: Manifest, data: DataEntry, row: Row, value: Any, options: Options) -> dict[str, Any]:
    """The nested settings behind the configuration files."""
    settings: dict[str, Any] = merged(merged(manifest.settings, data.settings), row.settings)
    if manifest.axis is not None:
        settings = merged(settings, _nested(manifest.axis.setting, value))
    if options.data is not None:
        settings = merged(settings, _nested("data.init_args.root", str(options.data.resolve())))
    if options.rounds is not None:
        settings = merged(settings, _nested("federation.rounds", options.rounds))
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


def _experts(settings: dict[str, Any], manifest: Manifest, row: Row, options: Options) -> tuple[str, str]:
    """Why a cell is left out, or what was changed, where there are fewer other clients than experts."""
    base = _from_files([*manifest.configs, *row.configs])
    whole = merged(base, settings)
    clients = whole.get("federation", {}).get("clients")
    wanted = whole.get("method", {}).get("init_args", {}).get("num_experts")
    if not isinstance(wanted, int) or not isinstance(clients, int) or wanted < clients:
        return "", ""
    if _compares_experts(manifest):
        return f"needs more than {clients} clients", ""
    settings["method"] = merged(settings.get("method", {}), _nested("init_args.num_experts", clients - 1))
    return "", f"{row.label}: {clients - 1} non-local experts in place of {wanted}, as there are {clients} clients."


def _compares_experts(manifest: Manifest) -> bool:
    """Whether the number of experts is what the table or figure is about."""
    rows = sum("num_experts" in row.settings.get("method", {}).get("init_args", {}) for row in manifest.rows)
    return rows > 1 or (manifest.axis is not None and manifest.axis.setting.endswith("num_experts"))


def _runs(
    manifest: Manifest, data: DataEntry, row: Row, shown: float | None, settings: Mapping[str, Any], options: Options
) -> tuple[tuple[Run, ...], Any]:
    files = [f"--config={path}" for path in (*manifest.configs, *data.configs, *row.configs)]
    arguments = [*files, *as_arguments(settings)]
    if options.wandb is not None:
        arguments.append(f"--tracking.wandb={options.wandb}")
    parser = _parser()
    absolute = [f"--config={ROOT / a.partition('=')[2]}" if a.startswith("--config=") else a for a in arguments]
    try:
        parsed = parser.parse_args(absolute)
        built = parser.instantiate(parsed)
    except UserError as error:
        raise UserError(f"experiments/{manifest.name}, row {row.key}, data {data.key}: {error}") from error
    resolved = flat(json.loads(json.dumps(parsed.as_dict(), default=str)))
    schedule = built.method.schedule(built.federation)
    cohort = max(1, int(schedule.participation * schedule.clients))
    evaluations = 2 + schedule.rounds // schedule.evaluate_every
    work = schedule.rounds * cohort * schedule.local_epochs + 0.1 * evaluations * schedule.clients
    runs = []
    for seed in range(options.seeds or manifest.seeds):
        point = "" if shown is None or manifest.axis is None else f"-{manifest.axis.setting.split('.')[-1]}{shown:g}"
        name = f"{row.key}-{data.key}{point}-seed{seed}"
        cell = name.rpartition("-")[0]
        group = [f"--tracking.group={manifest.name}/{cell}"] if "tracking.group" in _settings_known() else []
        folder, log = options.out / "runs" / name, options.out / "logs" / f"{name}.log"
        own = {**resolved, "seed": seed}
        runs.append(
            Run(name, (*arguments, *group, f"--seed={seed}"), folder, log, data.key, seed, own, schedule.rounds, work)
        )
    return tuple(runs), built


def as_arguments(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested settings as ``--key=value``; ``class_path`` is the value of its key, ``init_args`` is passed through."""
    if "class_path" in settings:
        yield f"--{prefix.rstrip('.')}={settings['class_path']}"
    for key, value in settings.items():
        if key == "init_args":
            yield from as_arguments(value, prefix)
        elif isinstance(value, Mapping):
            yield from as_arguments(value, f"{prefix}{key}.")
        elif key != "class_path":
            yield f"--{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def _pending(row: Row) -> str:
    """What fedmoe does not have yet of what a row needs; "" where it has everything."""
    missing = [path for path in row.configs if not (ROOT / path).is_file()]
    if missing:
        return f"{missing[0]} does not exist yet"
    settings = merged(_from_files(row.configs), row.settings)
    method = settings.get("method", {})
    name, methods = str(method.get("class_path", "")).rpartition(".")[2], _methods()
    if name not in methods:
        return f"the method {name} does not exist yet"
    known = inspect.signature(methods[name].__init__).parameters  # type: ignore[misc]
    for key in method.get("init_args", {}):
        if key not in known:
            return f"{name} has no setting {key} yet"
    keys = _settings_known()
    for argument in as_arguments({key: value for key, value in settings.items() if key not in _CLASSES}):
        key = argument[2:].partition("=")[0]
        if key not in keys:
            return f"the setting {key} does not exist yet"
    return ""


_CLASSES = ("method", "data", "partition")  # their settings depend on the class


def _from_files(paths: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for path in paths:
        settings = merged(settings, load_file(ROOT / path))
    return settings


@cache
def _parser() -> Any:
    from fedmoe.cli import experiment_parser

    return experiment_parser()


@cache
def _settings_known() -> set[str]:
    return set(_parser().options)


@cache
def _methods() -> dict[str, type]:
    from fedmoe import methods

    return {name: found for name in methods.__all__ if inspect.isclass(found := getattr(methods, name))}


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
