"""Every configuration that is shipped parses against the current settings; the README's example of a method runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedmoe.attacks import Attack
from fedmoe.cli import experiment_parser, main
from fedmoe.cli.settings import GROUPS
from fedmoe.cli.values import known_subclasses
from fedmoe.data import DataSet, Partition
from fedmoe.defences import Aggregation, Screening, Serving
from fedmoe.methods import Method

ROOT = Path(__file__).parents[1]
BASES = (Method, DataSet, Partition, Attack, Aggregation, Screening, Serving)
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("sweeps", "regimes"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_shipped_configuration_parses(path: Path) -> None:
    parser = experiment_parser()
    settings = parser.instantiate(parser.parse_args([f"--config={path}"]))
    assert settings.method is not None
    assert settings.data.name


def test_help_explains_every_setting() -> None:
    actions = [
        a for a in experiment_parser().jsonargparse._actions if a.dest.partition(".")[0] in GROUPS and "." in a.dest
    ]
    assert len(actions) > 40
    assert [a.dest for a in actions if not a.help or len(a.help.split("(type")[0]) < 10] == []


def test_titles_in_the_help_are_whole_sentences() -> None:
    classes = [*GROUPS.values(), *(cls for base in BASES for cls in known_subclasses(base))]
    ours = [cls for cls in classes if cls.__module__.startswith("fedmoe.")]  # tests make classes of their own
    assert [cls.__name__ for cls in ours if not (cls.__doc__ or "").strip().partition("\n")[0].endswith(".")] == []


def test_the_readme_example_of_a_method_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n# mymethods.py\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code is not None
    (tmp_path / "mymethods.py").write_text(code.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    small = ["--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--output.name=own"]
    args = [f"--config={ROOT / 'configs/embedded.yaml'}", "--method=mymethods.Unweighted", *small]
    assert main(["fit", *args, f"--features.cache_dir={tmp_path / 'cache'}"]) == 0
    assert (tmp_path / "runs/own/summary.json").is_file()
