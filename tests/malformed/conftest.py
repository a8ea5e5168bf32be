"""Fixtures of the tests of malformed input."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmoe import cli

pytest.register_assert_rewrite("malformed.helpers", "malformed.random_input")

from malformed.helpers import EMBEDDED, Refused, check_refusal  # noqa: E402

FIT = (
    f"--config={EMBEDDED}",
    "--output.name=run",
    "--prompt.length=2",
    "--federation.clients=3",
    "--federation.rounds=2",
    "--federation.local_epochs=1",
    "--method.num_experts=1",
    "--method.evaluation_experts=held",
    "--data.subset={classes: 4, train: 60, test: 40}",
    "--runtime.threads=1",
    "--runtime.accelerator=cpu",
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature cache with the features of the digits in it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def fit_args(cache: Path) -> list[str]:
    """The arguments of ``fit`` for a run of a second: three clients, two rounds of pFedMoAP, in runs/run."""
    return ["fit", *FIT, f"--features.cache_dir={cache}"]


@pytest.fixture(scope="session")
def whole_run(fit_args: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds runs/run, finished. To be copied, not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(fit_args) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for the home folder in it, where the default cache would lie."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLCONFIGDIR", str(cache.parent / "matplotlib"))  # it keeps a list of fonts
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused, with words of the sentence; watches this folder and the feature cache."""
    return lambda args, *words: check_refusal(args, words, capfd, here, cache)


@pytest.fixture
def bounded(here: Path) -> Iterator[None]:
    """A test that may not leave the file ``canary``, nor take a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not Path("canary").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
