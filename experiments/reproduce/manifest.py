"""A table or figure as data: ``experiments/<name>/manifest.yaml``, read into frozen dataclasses.

Settings are those of ``python -m fedmoe.cli fit``, nested as in its YAML files. In a run the later of these
wins: the files under ``configs`` (of the manifest, of the data set, of the row), then the settings of the manifest,
of the data set, of the row, and the value of the axis.

A preset is another way to run the same rows: its ``configs``, ``settings`` and ``data`` take the place of the
manifest's, and under ``rows`` it may add settings to a row, or leave one out with null. ``regimes``, of a manifest
or of a preset, holds settings laid over those of a regime (see regimes.py), where the regime's do not fit.

Rows under ``controls`` are our own: no published value stands beside them, and they come last, under a heading.

A manifest with ``collect`` has no rows of its own: it is one row of several tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.reproduce.fields import Fields, Settings, merged, read_fields
from fedmoe.cli.yaml_files import load_file
from fedmoe.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
Kind = Literal["table", "curves", "attention", "cells"]


@dataclass(frozen=True)
class DataEntry:
    """A data set: one column of a table, or one for each domain and their average; one panel of a figure."""

    key: str
    label: str
    configs: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    table: str | None = None  # of a collection: the title of the table that it is from
    published: str | None = None  # of a collection: the table's section of published.yaml
    targets: tuple[DataEntry, ...] = ()  # of a benchmark's protocol: data sets that the finished run is scored on


@dataclass(frozen=True)
class Row:
    """A method with its settings: one row of a table, one line of a figure.

    ``published`` is its place in the published section, "group.row" where that has groups.
    """

    key: str
    label: str
    configs: tuple[str, ...]
    settings: Settings
    published: str
    group: str | None = None
    control: bool = False  # of our own, below the published ones

    @property
    def marked(self) -> str:
        """The label, which says of a control that it is one."""
        return f"{self.label} (control)" if self.control else self.label


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of curves: a setting, and its values as (shown, set)."""

    setting: str
    label: str
    values: tuple[tuple[float, Any], ...]


@dataclass(frozen=True)
class Manifest:
    """One table or figure."""

    name: str
    title: str
    kind: Kind
    seeds: int
    configs: tuple[str, ...]
    settings: Settings
    data: tuple[DataEntry, ...]
    rows: tuple[Row, ...]
    axis: Axis | None
    published: str | None  # section of published.yaml that stands beside the values
    notes: tuple[str, ...]
    presets: tuple[str, ...]
    preset: str | None = None
    generate: str | None = None  # data that the preset makes itself, see plan.GENERATORS
    regimes: Mapping[str, Settings] = field(default_factory=dict)  # name -> settings over those of the regime
    controls: tuple[Row, ...] = ()
    scores: tuple[str, ...] = ()  # of a benchmark's protocol: what its leaderboard shows, see experiments/benchmark

    @property
    def all_rows(self) -> tuple[Row, ...]:
        return self.rows + self.controls


def names() -> list[str]:
    """Every table and figure that has a manifest."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob("*/manifest.yaml"))


def load_manifest(name: str, preset: str | None = None) -> Manifest:
    """The manifest of a table or figure, with a preset applied.

    Raises:
        UserError: there is no such manifest or preset, or a key or value is not valid.
    """
    path = _path(name)
    if not path.is_file():
        known = names()
        raise UserError(
            f"{name!r} is no table or figure; valid is {', '.join(known)}{did_you_mean(name, known) or '.'}"
        )
    return read_manifest(path, preset)


def _path(name: str) -> Path:
    return EXPERIMENTS / name / "manifest.yaml"


@cache
def data_keys() -> frozenset[str]:
    """The data sets' keys in all manifests."""
    files = (load_file(_path(name)) for name in names())
    return frozenset(str(key) for found in files for key in found.get("data", {}))


def read_manifest(path: Path, preset: str | None = None) -> Manifest:
    """As ``load_manifest``, of a file."""
    top = read_fields(path)
    if top.raw("collect") is not None:
        return _collected(top, path, preset)
    presets = {key: top.within("presets", key) for key in top.mapping("presets")}
    _require_preset(preset, presets, path)
    own = presets.get(preset or "")
    base = own or top
    kind = top.text("kind")
    if kind not in get_args(Kind):
        raise UserError(f"{path}: kind is {kind!r}; valid is {', '.join(get_args(Kind))}.")
    data = tuple(_data(base.within("data", key), key) for key in base.mapping("data"))
    manifest = Manifest(
        name=path.parent.name,
        title=_title(top.text("title"), preset, [entry.label for entry in data]),
        kind=kind,  # type: ignore[arg-type]
        seeds=base.integer("seeds", top.integer("seeds", 3)),
        configs=base.texts("configs"),
        settings=base.mapping("settings"),
        data=data,
        rows=_rows(top, own, "rows"),
        controls=_rows(top, own, "controls"),
        axis=_axis(top, own),
        published=base.text("published", "") or None,
        notes=top.texts("notes") if own is None else own.texts("notes"),
        presets=tuple(presets),
        preset=preset,
        generate=own.text("generate", "") or None if own else None,
        regimes=_regimes(top, own),
        scores=top.texts("scores"),
    )
    top.done(["published", "seeds", "configs", "settings", "data", "notes", "axis", "presets", "controls", "regimes"])
    for fields in presets.values():
        also = ["controls", "axis", "notes", "generate", "regimes", "published"]
        fields.done(["seeds", "configs", "settings", "data", "rows", *also])
    if not manifest.data or not manifest.rows:
        raise UserError(f"{path} has no {'data' if not manifest.data else 'rows'}; valid is at least one entry.")
    if (manifest.axis is not None) != (kind == "curves"):
        raise UserError(f"{path}: kind is {kind} {'without' if kind == 'curves' else 'with'} axis; curves need one.")
    return manifest


def _require_preset(preset: str | None, presets: Iterable[str], path: Path) -> None:
    if preset is not None and preset not in presets:
        valid = ", ".join(presets) or "none"
        near = did_you_mean(preset, presets) or "."
        raise UserError(f"The preset {preset!r} is not one of {path.parent.name}; valid is {valid}{near}")


def _collected(top: Fields, path: Path, preset: str | None) -> Manifest:
    """One row of several tables: each data set with the settings of its table. A preset is that of the tables which
    have it."""
    fields = top.within("collect")
    row, tables = fields.text("row"), [load_manifest(name) for name in fields.texts("from")]
    fields.done()
    presets = tuple(dict.fromkeys(name for table in tables for name in table.presets))
    _require_preset(preset, presets, path)
    if preset is not None:
        tables = [load_manifest(table.name, preset) for table in tables if preset in table.presets]
    twice = Counter(data.key for table in tables for data in table.data)
    found = Manifest(
        name=path.parent.name,
        title=_title(top.text("title"), preset, []),
        kind="cells",
        seeds=max(table.seeds for table in tables),
        configs=(),
        settings={},
        data=tuple(
            replace(
                data,
                # With another key than its own, a preset's data set is no concern of a regime.
                key=data.key if twice[data.key] == 1 else f"{table.name}-{data.key}",
                configs=(*table.configs, *data.configs),
                settings=merged(table.settings, data.settings),
                table=table.title.partition(":")[0].partition(",")[0],
                published=table.published,
            )
            for table in tables
            for data in table.data
        ),
        rows=tuple(own for own in tables[0].rows if own.key == row),
        axis=None,
        published=None,
        notes=top.texts("notes"),
        presets=presets,
        preset=preset,
        generate=next((table.generate for table in tables if table.generate), None),
        regimes={name: settings for table in tables for name, settings in table.regimes.items()},
    )
    top.done()
    if not found.rows:
        raise UserError(f"{path}: collect.row is {row!r}, which {tables[0].name} does not have.")
    return found


def _title(title: str, preset: str | None, labels: Sequence[str]) -> str:
    """A preset's table is not the paper's: it says what it is."""
    return (
        title
        if preset is None
        else f"{title.partition(':')[0]}, preset {preset}{': ' * bool(labels)}{'; '.join(labels)}"
    )


def _data(fields: Fields, key: str) -> DataEntry:
    entry = DataEntry(
        key=key,
        label=fields.text("label"),
        configs=fields.texts("configs"),
        settings=fields.mapping("settings"),
        domains=fields.texts("domains"),
        targets=tuple(_data(fields.within("targets", target), target) for target in fields.mapping("targets")),
    )
    fields.done()
    return entry


def _regimes(top: Fields, preset: Fields | None) -> dict[str, Settings]:
    found: dict[str, Settings] = {}
    for fields in (top, preset) if preset else (top,):
        for name in fields.mapping("regimes"):
            found[name] = merged(found.get(name, {}), fields.within("regimes", name).values)
    return found


def _rows(top: Fields, preset: Fields | None, section: str) -> tuple[Row, ...]:
    """The rows of a section. A control of experiments/controls.yaml is named by its key; what stands there comes under
    the manifest's own."""
    changes = preset.mapping(section) if preset else {}
    keys = list(top.mapping(section))
    for key in changes:
        if key not in keys:
            where = preset.where if preset else ""
            raise UserError(f"{where}{section}.{key} is no row of the manifest; valid is {keys}.")
    control = section == "controls"
    rows = []
    for key in keys:
        fields = top.within(section, key)
        if control:
            fields = Fields(merged(_controls().get(key, {}), fields.values), fields.where)
        settings: Settings = fields.mapping("settings")
        if preset and changes.get(key, {}) is not None:
            settings = merged(settings, preset.within(section, key).mapping("settings") if key in changes else {})
        row = Row(
            key=key,
            label=fields.text("label"),
            configs=fields.texts("configs"),
            settings=settings,
            published="" if control else fields.text("published", key),
            group="controls" if control else fields.text("group", "") or None,
            control=control,
        )
        fields.done()
        if changes.get(key, {}) is not None:
            rows.append(row)
    return tuple(rows)


def control(key: str, label: str) -> Row:
    """A control of experiments/controls.yaml under another label."""
    fields = Fields(_controls()[key], "experiments/controls.yaml: ")
    return Row(key, label, fields.texts("configs"), fields.mapping("settings"), "", "controls", control=True)


@cache
def _controls() -> Mapping[Any, Any]:
    return load_file(EXPERIMENTS / "controls.yaml")


def _axis(top: Fields, preset: Fields | None) -> Axis | None:
    if not top.mapping("axis"):
        return None
    fields = top.within("axis")
    found: Any = fields.raw("values")
    if preset and preset.raw("axis") is not None:
        found = preset.raw("axis")
    pairs = list(found.items()) if isinstance(found, Mapping) else [(value, value) for value in found or ()]
    if not pairs or not all(isinstance(shown, int | float) for shown, _ in pairs):
        raise UserError(f"{fields.where}values is {found!r}; valid is a list of numbers, or a mapping 'shown: set'.")
    axis = Axis(fields.text("setting"), fields.text("label"), tuple((shown, value) for shown, value in pairs))
    fields.done()
    return axis
