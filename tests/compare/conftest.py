"""The runs that tests of compare have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe.cli import main

pytest.register_assert_rewrite("compare.helpers")

from compare.helpers import METHODS, SEEDS, SMALL  # noqa: E402


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, three seeds each, in folders a0 to b2. To be copied, not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, method in METHODS.items():
        for seed in SEEDS:
            where = [f"--output.dir={folder}", f"--output.name={name}{seed}", f"--features.cache_dir={folder}-cache"]
            assert main(["fit", *SMALL, *method, *where, f"--seed={seed}"]) == 0
    return folder
