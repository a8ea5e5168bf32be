"""A table or figure as data: ``experiments/<name>/manifest.yaml``, read into frozen dataclasses.

Settings are those of ``python -m fedmoe.cli fit``, nested as in its YAML files. In a run the later of these
wins: the files under ``configs`` (of the manifest, of the data set, of the row), then the settings of the manifest,
of the data set, of the row, and the value of the axis.

A preset is another way to run the same rows: its ``configs``, ``settings`` and ``data`` take the place of the
manifest's, and under ``rows`` it may add settings to a row, or leave one out with null. ``regimes`` holds settings
that it lays over those of a regime (see regimes.py), where the regime's do not fit its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from fedmoe.cli.yaml_files import load_file
from fedmoe.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
Kind = Literal["table", "curves", "attention"]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class DataEntry:
    """A data set: one column of a table, or one for each domain and their average; one panel of a figure."""

    key: str
    label: str
    configs: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    domains: tuple[str, ...] = ()


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


def names() -> list[str]:
    """Every table and figure that has a manifest."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob("*/manifest.yaml"))


def load_manifest(name: str, preset: str | None = None) -> Manifest:
    """The manifest of a table or figure, with a preset applied.

    Raises:
        UserError: there is no such manifest or preset, or a key or value is not valid.
    """
    path = EXPERIMENTS / name / "manifest.yaml"
    if not path.is_file():
        known = names()
        raise UserError(
            f"{name!r} is no table or figure; valid is {', '.join(known)}{did_you_mean(name, known) or '.'}"
        )
    return read_manifest(path, preset)


@cache
def data_keys() -> frozenset[str]:
    """The data sets' keys in all manifests."""
    files = (load_file(EXPERIMENTS / name / "manifest.yaml") for name in names())
    return frozenset(str(key) for found in files for key in found.get("data", {}))


def read_fields(path: Path) -> Fields:
    """The keys of a YAML file, to be checked off."""
    return Fields(load_file(path), f"{path}: ")


def read_manifest(path: Path, preset: str | None = None) -> Manifest:
    """As ``load_manifest``, of a file."""
    top = read_fields(path)
    presets = {key: top.within("presets", key) for key in top.mapping("presets")}
    if preset is not None and preset not in presets:
        valid = ", ".join(presets) or "none"
        near = did_you_mean(preset, presets) or "."
        raise UserError(f"The preset {preset!r} is not one of {path.parent.name}; valid is {valid}{near}")
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
        rows=_rows(top, own),
        axis=_axis(top, own),
        published=base.text("published", "") or None,
        notes=top.texts("notes") if own is None else own.texts("notes"),
        presets=tuple(presets),
        preset=preset,
        generate=own.text("generate", "") or None if own else None,
        regimes=own.mapping("regimes") if own else {},
    )
    top.done(["published", "seeds", "configs", "settings", "data", "notes", "axis", "presets"])
    for fields in presets.values():
        fields.done(
            ["seeds", "configs", "settings", "data", "rows", "axis", "notes", "generate", "regimes", "published"]
        )
    if not manifest.data or not manifest.rows:
        raise UserError(f"{path} has no {'data' if not manifest.data else 'rows'}; valid is at least one entry.")
    if (manifest.axis is not None) != (kind == "curves"):
        raise UserError(f"{path}: kind is {kind} {'without' if kind == 'curves' else 'with'} axis; curves need one.")
    return manifest


def _title(title: str, preset: str | None, labels: Sequence[str]) -> str:
    """A preset's table is not the paper's: it says what it is."""
    return title if preset is None else f"{title.partition(':')[0]}, preset {preset}: {'; '.join(labels)}"


def _data(fields: Fields, key: str) -> DataEntry:
    entry = DataEntry(
        key=key,
        label=fields.text("label"),
        configs=fields.texts("configs"),
        settings=fields.mapping("settings"),
        domains=fields.texts("domains"),
    )
    fields.done()
    return entry


def _rows(top: Fields, preset: Fields | None) -> tuple[Row, ...]:
    changes = preset.mapping("rows") if preset else {}
    keys = list(top.mapping("rows"))
    for key in changes:
        if key not in keys:
            raise UserError(f"{preset.where if preset else ''}rows.{key} is no row of the manifest; valid is {keys}.")
    rows = []
    for key in keys:
        fields = top.within("rows", key)
        settings: Settings = fields.mapping("settings")
        if preset and changes.get(key, {}) is not None:
            settings = merged(settings, preset.within("rows", key).mapping("settings") if key in changes else {})
        row = Row(
            key=key,
            label=fields.text("label"),
            configs=fields.texts("configs"),
            settings=settings,
            published=fields.text("published", key),
            group=fields.text("group", "") or None,
        )
        fields.done()
        if changes.get(key, {}) is not None:
            rows.append(row)
    return tuple(rows)


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


def merged(first: Settings, second: Settings) -> dict[str, Any]:
    """Nested settings with those of ``second`` over those of ``first``; another class drops the former's settings."""
    result = dict(first)
    switched = "class_path" in second and first.get("class_path", second["class_path"]) != second["class_path"]
    if switched:
        result.pop("init_args", None)
    for key, value in second.items():
        old = result.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "init_args" in value:
            old = {"class_path": old}  # a class that was named alone
        result[str(key)] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


class Fields:
    """A mapping of the file, whose keys are checked off as they are read."""

    def __init__(self, values: Mapping[Any, Any], where: str) -> None:
        self.values, self.where, self.read = values, where, set[str]()

    def raw(self, key: str) -> Any:
        self.read.add(key)
        return self.values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise UserError(f"{self.where}{key} is {value!r}; valid is a text.")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw(key) or []
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{self.where}{key} is {value!r}; valid is a list of texts.")
        return tuple(value)

    def integer(self, key: str, default: int) -> int:
        value = self.raw(key)
        if value is None:
            return default
        if type(value) is not int or value < 1:
            raise UserError(f"{self.where}{key} is {value!r}; valid is an integer of at least 1.")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.raw(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise UserError(f"{self.where}{key} is {value!r}; valid is a mapping.")
        return _plain(value)

    def within(self, key: str, *more: str) -> Fields:
        values: Any = self.values
        for part in (key, *more):
            self.read.add(key)
            values = values.get(part)
            if not isinstance(values, Mapping):
                raise UserError(f"{self.where}{'.'.join((key, *more))} is {values!r}; valid is a mapping.")
        return Fields(values, f"{self.where}{'.'.join((key, *more))}.")

    def done(self, optional: Sequence[str] = ()) -> None:
        """Refuse a key that nothing has read; ``optional`` ones are valid all the same."""
        valid = sorted(self.read | set(optional))
        for key in self.values:
            if key not in valid:
                near = did_you_mean(str(key), valid) or "."
                raise UserError(f"{self.where}{key} is not known; valid is {', '.join(valid)}{near}")


def _plain(value: Any) -> Any:
    """The value with plain texts as keys: the reader's know their line."""
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, str) else key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
