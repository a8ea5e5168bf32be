"""The protocols: manifests in ``experiments/protocols/<name>/manifest.yaml``, as for tables and figures.

A protocol's rows are its own and after them every other method of fedmoe: a method that is added takes part at once.
The controls come last: pFedMoAP without other clients' prompts, and with noise in their place.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

from experiments.reproduce.manifest import EXPERIMENTS, ROOT, Manifest, Row, control, read_manifest
from experiments.reproduce.pending import method_of
from fedmoe.cli.yaml_files import load_file
from fedmoe.errors import UserError, did_you_mean
from fedmoe.protocol.method import Method

PROTOCOLS = EXPERIMENTS / "protocols"
CONTROLS = {"local_expert_alone": "pFedMoAP, local expert alone", "noise_experts": "pFedMoAP, noise as experts"}


def names() -> list[str]:
    """All protocols."""
    return sorted(path.parent.name for path in PROTOCOLS.glob("*/manifest.yaml"))


def load_protocol(name: str, preset: str | None = None) -> Manifest:
    """A protocol with all methods and controls as rows.

    Raises:
        UserError: there is no such protocol or preset, or its manifest is not valid.
    """
    if name not in names():
        near = did_you_mean(name, names()) or "."
        raise UserError(f"{name!r} is no protocol; valid is {', '.join(names())}{near}")
    manifest = read_manifest(PROTOCOLS / name / "manifest.yaml", preset)
    present = {method_of(row) for row in manifest.rows}
    rows = (*manifest.rows, *(row for row in _all() if method_of(row) not in present))
    return replace(manifest, rows=rows, controls=tuple(control(key, label) for key, label in CONTROLS.items()))


def _all() -> list[Row]:
    """A row for each method that comes with fedmoe, with the settings of its file in configs/methods."""
    from fedmoe import methods

    files = _files()
    rows = []
    for name in methods.__all__:
        found = getattr(methods, name)
        if inspect.isclass(found) and issubclass(found, Method) and found is not Method:
            configs = (files[name],) if name in files else ()
            settings = {} if configs else {"method": {"class_path": name}}
            rows.append(Row(name.lower(), found.label or name, configs, settings, ""))
    return rows


def _files() -> dict[str, str]:
    """The class of a method -> its file, that with the shortest name of several: others are variants."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "configs" / "methods").glob("*.yaml"), key=lambda path: (len(path.name), path.name)):
        method = str(load_file(path).get("method", {}).get("class_path", "")).rpartition(".")[2]
        found.setdefault(method, str(Path("configs/methods") / path.name))
    return found
