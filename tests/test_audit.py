"""The audit on real federations: cases whose answer is known, a broken mechanism, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from fedmoe.audit.game import make_game, members
from fedmoe.audit.judge import Judge
from fedmoe.audit.run import audit
from fedmoe.audit.settings import AuditConfig
from fedmoe.audit.threats import AverageRecipient, Outsider, Recipient, Server
from fedmoe.audit.transcript import Transcript, play
from fedmoe.cli import main
from fedmoe.cli.settings import as_experiment, experiment_parser
from fedmoe.experiment import Session
from fedmoe.models.clip import FrozenCLIP
from fedmoe.privacy.gradients import ClippedShared
from fedmoe.protocol.method import Method

CONFIG = Path(__file__).parents[1] / "configs" / "embedded.yaml"
# One prompt for each class and wrong labels: a client that trains for long knows its images by heart.
BY_HEART = [
    *("--method=PromptFL", "--partition=IID", "--prompt.class_specific=true", "--prompt.length=4"),
    *("--data.subset.train=80", "--data.subset.test=20", "--federation.clients=2", "--federation.rounds=1"),
    *("--federation.local_epochs=20", "--federation.batch_size=64", "--optim.prompt_lr=0.05", "--runtime.threads=1"),
]
PRIVATE = ["--privacy.mechanism=upload", "--privacy.epsilon=1", "--privacy.delta=1e-5", "--privacy.clip=0.0001"]
HARD = AuditConfig(
    trials=2,
    audited=2,
    mislabelled=True,
    guesses=0.5,
    property_trials=0,
    attacks=("loss threshold", "update alignment (PromptMIA)"),
)


@pytest.fixture
def session(embedded_clip: FrozenCLIP, tmp_path: Path) -> Callable[..., tuple[Session, Method]]:
    def build(*settings: str) -> tuple[Session, Method]:
        args = [f"--config={CONFIG}", *settings, f"--features.cache_dir={tmp_path / 'cache'}"]
        experiment, (method,) = as_experiment(experiment_parser().parse_args(args))
        return Session(experiment, Console(quiet=True), embedded_clip), method

    return build


def by_name(found: dict[str, Any], threat: str = "server") -> dict[str, dict[str, Any]]:
    return {row["attack"]: row for row in found["membership"] if row["threat"] == threat}


def test_the_game_keeps_all_but_the_coins(session: Callable[..., tuple[Session, Method]]) -> None:
    own, method = session(
        "--data.subset.train=90", "--data.subset.test=20", "--partition=Dirichlet", "--federation.clients=3"
    )
    whole = own.data(method)
    game = make_game(whole, 1.0, False, 7)
    coins = game.coins(1)
    assert not torch.equal(coins, game.coins(2))
    inside = members(coins)
    assert torch.equal(inside[0::2], ~inside[1::2])
    one, other = game.data(coins), game.data(1 - coins)
    targets = game.features
    for i in range(3):
        before, a, b = whole.client(i), one.client(i), other.client(i)
        assert torch.equal(before.test_features, a.test_features)
        counts = [torch.bincount(data.train_labels, minlength=10) for data in (before, a, b)]
        assert torch.equal(counts[1], counts[2])  # neither sizes nor labels tell the coins
        assert torch.equal(counts[1], counts[0] - counts[0] // 2)
        for target in (game.owner == i).nonzero().squeeze(1).tolist():
            for data, expected in ((a, bool(inside[target])), (b, not inside[target])):
                held = (data.train_features == targets[target]).all(dim=1)
                assert bool(held.any()) == expected
                assert not expected or bool((data.train_labels[held] == game.target_labels[target]).all())
    assert one.summary()["counts_train"] == [torch.bincount(one.client(i).train_labels, minlength=10).tolist()
                                             for i in range(3)]  # fmt: skip


def test_each_attacker_sees_its_own_part(session: Callable[..., tuple[Session, Method]]) -> None:
    own, method = session(
        *("--method=PFedMoAP", "--method.num_experts=1", "--data.subset.train=60", "--federation.clients=4"),
        "--data.subset.test=20",
        *("--partition=IID", "--federation.rounds=2", "--federation.local_epochs=1", "--optim.prompt_lr=0.05"),
    )
    game = make_game(own.data(method), 1.0, False, 0)
    transcript = play(own, method, game.data(game.coins(0)), 11, game.features_of)
    uploads = transcript.uploads
    assert sorted(uploads) == [(number, i) for number in (1, 2) for i in range(4)]
    server = Server().prompts(transcript)
    assert [sorted(time) for time in server] == [[0, 1, 2, 3]] * 2
    assert all(torch.equal(server[n - 1][i].prompt, sent["prompt"]) for (n, i), sent in uploads.items())
    start = server[1][0].start
    assert start is not None and torch.equal(start, transcript.shared[1]["prompt"])  # round 2 began with the average
    attacker, received = Recipient().attacker(transcript), Recipient().prompts(transcript)
    assert len(received) == 2  # before round 2, and for the evaluation
    for time, sent in enumerate(received, start=1):
        assert len(sent) == 1 and attacker not in sent  # K = 1
        assert all(torch.equal(one.prompt, uploads[time, owner]["prompt"]) for owner, one in sent.items())
    assert len(Recipient().simulated(transcript)[0]) > 1  # of its own federations it sees what anyone gets
    average = AverageRecipient().prompts(transcript)
    mean = torch.stack([uploads[1, i]["prompt"] * len(game.data(game.coins(0)).client(i).train_labels)
                        for i in range(4)]).sum(dim=0)  # fmt: skip
    mean = mean / sum(len(game.data(game.coins(0)).client(i).train_labels) for i in range(4))
    torch.testing.assert_close(average[0][0].prompt, mean, rtol=1e-5, atol=1e-7)
    judge = Judge(own.module(method, game.whole.class_names), game.features, game.target_labels)
    seen = Outsider().sees(transcript, judge)
    assert seen is not None and seen.values["confidence"].shape == (1, 1, len(game.owner))
    assert Server().sees(Transcript(1, 4, 0), judge) is None  # a method that uploads nothing


def test_what_is_known_by_heart_is_found_and_a_broken_mechanism_is_refuted(
    session: Callable[..., tuple[Session, Method]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = audit(*session(*BY_HEART, *PRIVATE), HARD)
    for attack, row in by_name(right).items():  # noise alone: nothing to find
        assert row["interval"][0] < 0.53 and row["interval"][1] > 0.47, attack
    assert right["privacy"]["claimed_epsilon"] == pytest.approx(1.0)
    assert not right["privacy"]["refuted"]
    broken = ClippedShared.__init__
    monkeypatch.setattr(
        ClippedShared, "__init__", lambda self, clip: broken(self, 1e9)
    )  # the noise is still for 0.0001
    wrong = audit(*session(*BY_HEART, *PRIVATE), HARD)
    assert wrong["privacy"]["claimed_epsilon"] == pytest.approx(1.0)
    assert by_name(wrong)["loss threshold"]["auc"] > 0.75
    assert wrong["privacy"]["refuted"]
    assert wrong["privacy"]["epsilon_at_least"] > 1


def test_the_command_audits_the_settings_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {
        "clip": {"architecture": "fedmoe-tiny", "pretrained": "glyphs"},
        "data": {"class_path": "Digits", "init_args": {"subset": {"train": 60, "test": 20}}},
        "partition": {"class_path": "Dirichlet", "init_args": {"alpha": 0.5, "min_size": 4}},
        "federation": {"clients": 3, "rounds": 1, "local_epochs": 1},
        "method": {"class_path": "PromptFL"},
        "features": {"cache_dir": str(tmp_path / "cache")},
        "runtime": {"threads": 1},
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(small))
    command = ["audit", str(run), "--audit.trials=3", "--audit.audited=1", "--audit.property_trials=4"]
    assert main(command) == 0
    (found,) = json.loads((run / "audit" / "audit.json").read_text())
    assert (found["method"], found["clients"], len(found["membership"]) > 10) == ("PromptFL", 3, True)
    assert found["properties"]["rows"][0]["shadow_clients"] == 9
    assert (run / "audit" / "roc.png").stat().st_size > 1000
    assert "Membership: was this image" in (run / "audit" / "audit.html").read_text()
    assert "loss threshold" in capsys.readouterr().out
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
    assert main([*command, "--attack=LabelFlip"]) == 2
    assert main([*command, "--audit.audited=9"]) == 2
    assert main([*command, "--audit.attacks=[LiRA onlin]"]) == 2
    said = capsys.readouterr().err
    assert "nowhere is not a run folder" in said
    assert "attack is 'LabelFlip', which an audit has no rules for" in said
    assert "audit.attacks has 'LiRA onlin'; valid is any of loss threshold, " in said
    assert "did you mean 'LiRA online'?" in said
    assert "audit.audited is 9; valid is 1 to audit.trials = 3" in said
