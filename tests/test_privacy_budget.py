"""Differential privacy: what is spent, and what the command line and the run folder say about it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from federation_helpers import build_federation, work_of
from opacus.accountants.analysis import gdp
from privacy_helpers import CLIENTS, CONFIG, OPTIM, gdp_multiplier

from fedmoe.cli import main
from fedmoe.config import FeatureConfig, PrivacyConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.privacy.mechanism import DPSGD
from fedmoe.protocol.records import RoundContext, TrainJob
from fedmoe.report.run import read_run
from fedmoe.report.tables import run_table
from fedmoe.runs.folder import require_format

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


# What is spent


def test_epsilon_of_uploads_adds_up_by_composition(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    privacy = PrivacyConfig("upload", epsilon=1.0, delta=1e-5)
    federation, log = build_federation(embedded_clip, data, PromptFL(), CONFIG, privacy=privacy)
    federation.run()
    mu = 1 / gdp_multiplier(1.0, 1e-5)
    most = 0
    for record in log.records[1:]:
        most = max(sum(client in r.cohort for r in log.records[: record.round + 1]) for client in range(CLIENTS))
        assert record.privacy is not None
        expected = gdp.eps_from_mu(mu=math.sqrt(most) * mu, delta=1e-5)
        assert record.privacy["epsilon"] == pytest.approx(expected, rel=1e-6)
    found = federation.privacy.summary(max(client.rounds_seen for client in federation.server.clients.values()))
    assert found is not None and found["participations"] == found["releases"] == most
    assert found["opacus_epsilon"] > found["total_epsilon"] == pytest.approx(expected, rel=1e-6)


def test_dpsgd_spends_its_budget_on_the_client_with_the_most_rounds(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    privacy = PrivacyConfig("dpsgd", epsilon=8.0, delta=1e-5)
    config = replace(CONFIG, rounds=4, local_epochs=3)
    federation, log = build_federation(embedded_clip, data, PromptFL(), config, OPTIM, privacy=privacy)
    mechanism = federation.privacy
    assert isinstance(mechanism, DPSGD)
    federation.run()
    cohorts = [client for record in log.records for client in record.cohort]
    most = max(cohorts.count(client) for client in range(CLIENTS))
    assert most < 4  # somebody sits out, so not all rounds count
    assert mechanism.multiplier == pytest.approx(gdp_multiplier(8.0, 1e-5) * math.sqrt(3 * most), rel=1e-6)
    assert log.records[-1].privacy == {
        "epsilon": pytest.approx(8.0, rel=1e-6),
        "noise_std": pytest.approx(2 * 0.2 * mechanism.multiplier),
    }
    busiest = max(range(CLIENTS), key=cohorts.count)
    context = RoundContext(5, (busiest,), federation.seed)
    downlink = federation.method.configure(federation.server, busiest, context)
    job = TrainJob(busiest, 5, federation.server.known(busiest).version, downlink)
    with pytest.raises(UserError, match=f"would train in {most + 1} rounds, but the noise .* was set for {most}"):
        work_of(federation).train(job, federation.state.clients[busiest])


# The command line and the run folder


def fit(tmp_path: Path, *args: str) -> int:
    small = ["--federation.rounds=2", "--federation.local_epochs=1", "--output.name=run", f"--output.dir={tmp_path}"]
    cache = f"--features.cache_dir={tmp_path / 'cache'}"
    return main(["fit", f"--config={ROOT / 'configs/smoke.yaml'}", *small, cache, *args])


def test_summary_report_and_logs_say_what_was_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, f"--config={ROOT / 'configs/privacy/upload.yaml'}") == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())["privacy"]
    assert (summary["mechanism"], summary["epsilon"], summary["delta"], summary["clip"]) == ("upload", 50.0, 0.05, 0.2)
    assert summary["noise_multiplier"] == pytest.approx(gdp_multiplier(50.0, 0.05), rel=1e-6)
    rounds = [json.loads(line)["privacy"] for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    assert rounds[0] is None and rounds[-1]["epsilon"] == summary["total_epsilon"]
    assert "ε = 50 for each upload, δ = 0.05; spent by the client with the most rounds" in capsys.readouterr().out
    assert any(summary["text"] in note for note in run_table(read_run(tmp_path / "run")).notes)


def test_a_run_from_before_privacy_is_read_and_gone_on_with(tmp_path: Path) -> None:
    assert fit(tmp_path) == 0
    folder = tmp_path / "run"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings.pop("privacy")["mechanism"] == "none"
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert {record.pop("privacy") for record in records} == {None}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop("privacy") is None
    (folder / "summary.json").write_text(json.dumps(summary))
    require_format(folder)
    assert read_run(folder).finished
    assert fit(tmp_path, "--federation.rounds=3") == 0
    assert read_run(folder).rounds[-1].round == 3


def test_privacy_may_not_change_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, f"--config={ROOT / 'configs/privacy/dpsgd.yaml'}") == 0
    for change in ("--privacy.epsilon=9", "--privacy.mechanism=none", "--federation.rounds=3"):
        assert fit(tmp_path, f"--config={ROOT / 'configs/privacy/dpsgd.yaml'}", change) == 2
        assert f"holds a run with {change[2:].partition('=')[0]} = " in capsys.readouterr().err


def test_a_comparison_is_refused_before_its_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = '--methods=[{"class_path": "PromptFL"}, {"class_path": "FedAMP"}]'
    assert fit(tmp_path, methods, "--privacy.mechanism=upload") == 2
    assert "a client of FedAMP does not train" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("mechanism=uplod", "privacy.mechanism is 'uplod'; valid is none, upload or dpsgd; did you mean 'upload'?"),
        ("epsilon=0", "privacy.epsilon is 0.0; valid is a finite number above 0, or null for no noise."),
        ("delta=1", "privacy.delta is 1.0; valid is a number in (0, 1)."),
        ("clip=-1", "privacy.clip is -1.0; valid is a finite number above 0, or null for no clipping."),
        ("clip=null", "privacy.clip is None; valid is a number above 0 with privacy.epsilon = 50.0."),
    ],
)
def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], argument: str, said: str) -> None:
    assert main(["fit", f"--privacy.{argument}"]) == 2
    assert capsys.readouterr().err.strip() == f"Error: {said}"
