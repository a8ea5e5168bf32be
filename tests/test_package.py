"""The wheel, installed into an environment of its own and used in an empty folder, where no checkout is near."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from fedmoe import __version__
from fedmoe.cli import main, shipped

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, f"--wheel-dir={out}", str(ROOT)], check=True, timeout=300)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def script(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed script, in a fresh environment that finds the dependencies of this one, but not its fedmoe."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return home / "bin" / "fedmoe"


def called(script: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"COLUMNS": "200", "HOME": str(folder / "home")}
    return subprocess.run(
        [script, *args], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_the_wheel_holds_configurations_assets_and_nothing_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped_files = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.*")}
    assert {f"fedmoe/configs/{name}" for name in shipped_files} <= names
    assert {f"fedmoe/assets/{path.name}" for path in (ROOT / "fedmoe/assets").iterdir() if path.is_file()} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "fedmoe").rglob("*.html")} <= names
    assert {name.partition("/")[0] for name in names} == {"fedmoe", f"fedmoe-{__version__}.dist-info"}


def test_the_installed_script_answers(script: Path, tmp_path: Path) -> None:
    assert called(script, tmp_path, "--version").stdout == f"fedmoe {__version__}\n"
    assert called(script, tmp_path, "fit", "--help").stdout.startswith("usage: fedmoe fit ")
    listed = called(script, tmp_path, "configs").stdout
    assert "fedmoe:quickstart " in listed and "fedmoe:data/cifar10 " in listed
    assert str(ROOT) not in listed
    refused = called(script, tmp_path, "reproduce", "table2")
    assert refused.returncode == 2
    assert "valid is a checkout" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_quickstart_runs_from_the_wheel_in_an_empty_folder(script: Path, tmp_path: Path) -> None:
    small = ["--federation.rounds=1", "--federation.clients=10", "--federation.local_epochs=1"]
    done = called(script, tmp_path, "fit", "--config", "fedmoe:quickstart", *small)
    assert (done.returncode, "pFedMoAP" in done.stdout) == (0, True), done.stderr
    methods = {path.parent.name for path in (tmp_path / "runs/quickstart").glob("*/summary.json")}
    assert methods == {"ZeroShot", "CoOp", "PromptFL", "FedProx", "PFedMoAP"}
    evaluated = called(script, tmp_path, "evaluate", "runs/quickstart/PFedMoAP", "--quiet")
    assert (evaluated.returncode, evaluated.stdout) == (0, ""), evaluated.stderr
    compared = called(script, tmp_path, "compare", "runs/quickstart/PFedMoAP", "runs/quickstart/CoOp")
    assert compared.returncode == 0, compared.stderr
    assert (tmp_path / "compare/comparison.html").is_file()


def test_a_configuration_by_its_short_name_is_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", f"--config={ROOT / 'configs/smoke.yaml'}", "--print_config"])
    file = capsys.readouterr().out
    for short in (["--config=fedmoe:smoke"], ["--config", "fedmoe:smoke.yaml"]):
        with pytest.raises(SystemExit):
            main(["fit", *short, "--print_config"])
        assert capsys.readouterr().out == file
    assert main(["fit", "--config=fedmoe:data/cifar"]) == 2
    assert "did you mean 'fedmoe:data/cifar10'?" in " ".join(capsys.readouterr().err.split())


def test_every_listed_configuration_says_what_it_is() -> None:
    listed = shipped.names()
    assert listed[0] == "audit" and "embedded" in listed and "data/cifar10" in listed
    assert not any(name.startswith(("sweeps/", "regimes/")) for name in listed)
    assert [name for name in listed if len(shipped.about(name)) < 20] == []
