"""A regime: settings of every run of every table and figure, such as those of the paper's released code.

``configs/regimes/<name>.yaml`` has up to three keys: ``settings`` (of every run), ``data`` (a data set's key in the
manifests -> settings) and ``methods`` (a method's class -> settings), each nested as in fit's YAML files. In a run they
come after the settings of the manifest and of its data set, in this order, and before those of the row and of the axis.
``paper`` is the manifest as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.reproduce.fields import Settings, merged, read_fields
from experiments.reproduce.manifest import ROOT, DataEntry, data_keys
from fedmoe.errors import UserError, did_you_mean

REGIMES = ROOT / "configs" / "regimes"


@dataclass(frozen=True)
class Regime:
    """Settings that are laid over those of a manifest."""

    name: str
    settings: Settings = field(default_factory=dict)
    data: Mapping[str, Settings] = field(default_factory=dict)
    methods: Mapping[str, Settings] = field(default_factory=dict)

    def over(self, settings: Settings, data: DataEntry, method: str) -> dict[str, Any]:
        """The settings of a run, with this regime's laid over them; ``method`` is the class's name."""
        own = (self.settings, self.data.get(data.key, {}), self.methods.get(method, {}))
        result = dict(settings)
        for one in own:
            result = merged(result, one)
        return result


PAPER = Regime("paper")


def regime_names() -> list[str]:
    """paper, and every regime that has a file."""
    return [PAPER.name, *sorted(path.stem for path in REGIMES.glob("*.yaml"))]


def load_regimes(text: str) -> tuple[Regime, ...]:
    """The regimes in a text such as "paper", "release", "paper,release" or "both" (all there are).

    Raises:
        UserError: one does not exist, is there twice, or its file has a mistake.
    """
    known = regime_names()
    wanted = known if text == "both" else [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in known:
            near = did_you_mean(name, [*known, "both"]) or "."
            raise UserError(f"--regime is {text!r}; valid is {', '.join(known)}, several with commas, or both{near}")
    if len(set(wanted)) < len(wanted):
        raise UserError(f"--regime is {text!r}; valid is each regime once.")
    if text == "both" and len(known) < 2:
        raise UserError(f"--regime is 'both', but {REGIMES} has no regime beside the paper's; valid is paper.")
    return tuple(PAPER if name == PAPER.name else read_regime(REGIMES / f"{name}.yaml") for name in wanted)


def read_regime(path: Path) -> Regime:
    """A regime's file.

    Raises:
        UserError: it has another key, or names a data set or a method that does not exist.
    """
    from fedmoe import methods

    fields = read_fields(path)
    found = Regime(path.stem, fields.mapping("settings"), fields.mapping("data"), fields.mapping("methods"))
    fields.done()
    for section, names, valid in (("data", found.data, data_keys()), ("methods", found.methods, methods.__all__)):
        for name, own in names.items():
            if name not in valid:
                near = did_you_mean(name, valid) or "."
                raise UserError(f"{path}: {section}.{name} is not known; valid is {', '.join(sorted(valid))}{near}")
            if not isinstance(own, Mapping):
                raise UserError(f"{path}: {section}.{name} is {own!r}; valid is a mapping of settings.")
    return found
