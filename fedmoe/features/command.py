"""What ``python -m fedmoe.cli features`` does: fill the feature cache, list it, inspect an entry, clear entries."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.table import Table

from fedmoe.config import FeatureConfig, ViewsConfig
from fedmoe.data.base import DataSet
from fedmoe.display import plain, say
from fedmoe.errors import UserError, did_you_mean
from fedmoe.features.cache import PARTS, PREFIX, WHOLE, images_in, part_files, read_block, read_metadata
from fedmoe.features.encoders import extract_dataset
from fedmoe.features.extraction import Encoder
from fedmoe.features.progress import extraction_progress
from fedmoe.io import locked

if TYPE_CHECKING:
    from fedmoe.models.clip import FrozenCLIP


@dataclass(frozen=True)
class CacheEntry:
    """What the cache holds under one key: a finished file, or an unfinished folder of parts."""

    key: str
    path: Path
    about: dict[str, str]  # dataset, split, model, views, images; empty where the file cannot be read
    description: dict[str, Any]
    damaged: dict[str, str]  # why an image cannot be read, by index
    done: int | None  # images of an unfinished extraction that are written down; None: finished
    bytes: int
    seconds: float  # age

    @property
    def state(self) -> str:
        """In words, for the list."""
        if self.done is not None:
            return f"unfinished, {self.done} done"
        if not self.about:
            return "cannot be read"
        return f"{len(self.damaged)} damaged" if self.damaged else "whole"


def entries(cfg: FeatureConfig) -> list[CacheEntry]:
    """All entries of the cache, the newest first. Reads no features."""
    folder = Path(cfg.cache_dir).expanduser()
    found = [_entry(path) for path in folder.glob(f"{PREFIX}*") if path.suffix in (WHOLE, PARTS)]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.seconds, entry.key))


def _entry(path: Path) -> CacheEntry | None:
    """The entry of a file or folder; None where it has just gone."""
    unfinished = path.suffix == PARTS
    told: dict[str, dict[str, Any]] = {"about": {}, "description": {}, "damaged": {}}
    try:
        metadata = read_metadata(part_files(path)[0] if unfinished else path)  # all parts say the same
        read = {name: json.loads(metadata[name]) for name in told}
        texts = [*read["about"].values(), *read["damaged"].values()]
        if isinstance(read["description"], dict) and all(isinstance(text, str) for text in texts):
            told = read
    except (OSError, ValueError, LookupError, AttributeError, RecursionError):
        pass  # another version's, damaged, or just gone
    files = list(path.iterdir()) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.exists()]
    if not stats:
        return None
    return CacheEntry(
        path.stem.removeprefix(PREFIX),
        path,
        **told,
        done=images_in(path) if unfinished else None,
        bytes=sum(stat.st_size for stat in stats),
        seconds=max(0.0, time.time() - max(stat.st_mtime for stat in stats)),
    )


def fill(
    dataset: DataSet,
    clip: FrozenCLIP,
    cfg: FeatureConfig,
    views: ViewsConfig,
    console: Console,
    encoder: Encoder | None = None,
) -> None:
    """Extract the features that a run with these settings needs, and print what that took.

    ``encoder`` makes another kind of features than CLIP's pooled ones.

    Raises:
        UserError: as ``extract_features``.
    """
    with extraction_progress(console) as progress:
        parts = extract_dataset(dataset, clip, cfg, views, progress, encoder)
    for name, found in zip(("train", "test"), parts, strict=True):
        shape = " x ".join(str(size) for size in found.values.shape)
        took = "from the cache"
        if found.encoded:
            rate = found.encoded / found.seconds
            took = f"{found.encoded:,} images in {found.seconds:.1f} s, {rate:,.0f} images/s"
        damaged = f", {len(found.damaged)} damaged and left out" if found.damaged else ""
        line = f"{dataset.name} / {name}: [{shape}], {took}{damaged}; {found.file}"
        say(console, line)


def show_list(cfg: FeatureConfig, console: Console) -> None:
    """Print a table of the cache's entries."""
    found = entries(cfg)
    if not found:
        say(console, f"Nothing in {cfg.cache_dir}.")
        return
    table = Table(title=plain(f"{len(found)} in {cfg.cache_dir}, {size_text(sum(entry.bytes for entry in found))}"))
    for heading in ("key", "data set", "split", "model", "views", "images", "size", "age", "state"):
        table.add_column(heading, justify="right" if heading in ("images", "size", "age") else "left")
    for entry in found:
        told = [entry.about.get(name, "?") for name in ("dataset", "split", "model", "views", "images")]
        cells = (entry.key[:8], *told, size_text(entry.bytes), age_text(entry.seconds), entry.state)
        table.add_row(*(plain(cell) for cell in cells))
    console.print(table)


def inspect(cfg: FeatureConfig, key: str, console: Console) -> None:
    """Print everything about one entry and check its contents against its checksum.

    Raises:
        UserError: no entry, or several, begin with ``key``.
    """
    entry = find(cfg, key)
    lines = {
        "file": str(entry.path),
        "key": entry.key,
        "size": f"{entry.bytes:,} bytes",
        "age": age_text(entry.seconds),
    }
    lines |= {**entry.about, "state": entry.state}
    if entry.done is None:
        try:
            block = read_block(entry.path)
            lines["features"] = "gone" if block is None else f"{list(block.values.shape)} float32, checksum right"
        except ValueError as error:
            lines["features"] = f"cannot be used: {error}"
    lines |= {f"key covers {name}": json.dumps(value) for name, value in entry.description.items()}
    lines |= {f"damaged image {index}": why for index, why in entry.damaged.items()}
    for name, text in lines.items():
        say(console, f"{name}: {text}")


def clear(cfg: FeatureConfig, keys: Sequence[str], console: Console) -> None:
    """Delete the entries of these keys, each the beginning of one key; ``all`` stands for every entry.

    Raises:
        UserError: no key is given; a key fits no entry, or several; a run is extracting the entry now.
    """
    if not keys:
        raise UserError("features clear needs at least one key; valid are keys that features list shows, or all.")
    chosen = {entry.path: entry for entry in (entries(cfg) if "all" in keys else [find(cfg, key) for key in keys])}
    for entry in chosen.values():
        if entry.done is None:
            entry.path.unlink(missing_ok=True)
            continue
        try:
            with locked(entry.path):
                shutil.rmtree(entry.path, ignore_errors=True)
        except BlockingIOError as error:
            raise UserError(f"A run is extracting {entry.key} now; end it before clearing that key.") from error
    freed = size_text(sum(entry.bytes for entry in chosen.values()))
    say(console, f"Cleared {len(chosen)} of {cfg.cache_dir}, {freed}.")


def find(cfg: FeatureConfig, key: str) -> CacheEntry:
    """The one entry whose key begins with ``key``.

    Raises:
        UserError: there is none, or there are several.
    """
    known = entries(cfg)
    found = [entry for entry in known if key and entry.key.startswith(key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"The key {key!r} fits {len(found)} entries of {cfg.cache_dir}; valid is more of one of them.")
    near = did_you_mean(key, [entry.key[: max(len(key), 8)] for entry in known])
    raise UserError(
        f"No entry of {cfg.cache_dir} has a key that begins with {key!r}" + (near or "; features list shows the keys.")
    )


def size_text(count: int) -> str:
    """Bytes in words."""
    factor, unit = pick_unit_and_suffix(count, ["B", "KiB", "MiB", "GiB"], 1024)
    return f"{count} B" if unit == "B" else f"{count / factor:.1f} {unit}"


def age_text(seconds: float) -> str:
    """An age in words."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
