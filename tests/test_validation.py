"""Validation splits, what is said beside the mean over clients, and where a result comes from."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_helpers import build_federation
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error

from fedmoe.cli import main
from fedmoe.client.counts import calibration, confusion
from fedmoe.config import FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.data.partition import ClientIndices
from fedmoe.data.validation import held_out, split_clients
from fedmoe.features.client_data import prepare
from fedmoe.federation.accuracy import per_class, quality
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.runs.provenance import provenance
from fedmoe.runs.records import RoundRecord, best_by_validation, last_five

ROOT = Path(__file__).parents[1]
DIGITS = Digits(subset=SubsetConfig(train=120, test=60))


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_share_of_each_class_is_held_out_and_never_everything(labels: list[int], share: float, seed: int) -> None:
    values = np.array(labels)
    mask = held_out(values, share, np.random.default_rng(seed))
    assert mask.sum() == min(round(share * len(labels)), len(labels) - 1)
    for label, size in zip(*np.unique(values, return_counts=True), strict=True):
        assert abs(mask[values == label].sum() - share * size) < 1 + 1e-9  # its share, rounded down or up


def test_whose_remainder_is_larger_gives_one_more() -> None:
    # 0.3 of 5, 4 and 1 examples: 1.5, 1.2 and 0.3; together 3: one each of the first two, and one more of the first.
    labels = np.array([0] * 5 + [1] * 4 + [2])
    mask = held_out(labels, 0.3, np.random.default_rng(0))
    assert [int(mask[labels == label].sum()) for label in range(3)] == [2, 1, 0]


def test_each_clients_draw_is_its_own() -> None:
    labels = np.array([0, 1] * 20)
    clients = [ClientIndices(np.arange(20), np.arange(0)), ClientIndices(np.arange(20, 40), np.arange(0))]
    remaining, held = split_clients(clients, labels, 0.25, seed=3)
    for client, rest, own in zip(clients, remaining, held, strict=True):
        assert sorted([*rest.train, *own]) == list(client.train)
        assert len(own) == 5
    alone, held_alone = split_clients(clients[:1], labels, 0.25, seed=3)
    assert list(held_alone[0]) == list(held[0]) and list(alone[0].train) == list(remaining[0].train)
    assert any(
        list(own) != list(other) for own, other in zip(held, split_clients(clients, labels, 0.25, 4)[1], strict=True)
    )


def test_counts_are_those_of_scikit_learn_and_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(500, 4, generator=generator), torch.randint(3, (500,), generator=generator)
    parts = [(logits[:130], labels[:130]), (logits[130:131], labels[130:131]), (logits[131:], labels[131:])]
    counted = sum((confusion(*part) for part in parts), torch.zeros(4, 4, dtype=torch.int64))
    bins = sum((calibration(*part) for part in parts), torch.zeros(15, 3, dtype=torch.float64))
    predicted = logits.argmax(dim=1)
    assert counted.tolist() == confusion_matrix(labels, predicted, labels=range(4)).tolist()
    found = quality(counted, bins)
    assert found["weighted"] == pytest.approx(100 * float((predicted == labels).double().mean()))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):  # class 3 never occurs
        assert found["balanced"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    ece = multiclass_calibration_error(logits.double().softmax(dim=1), labels, num_classes=4, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(100 * float(ece), rel=1e-6)
    assert per_class(counted.tolist())[3] is None


def test_the_best_round_is_chosen_by_validation_alone() -> None:
    def record(number: int, test: float, validation: float | None) -> RoundRecord:
        accuracy = {"mean": test, "std": 0.0, "min": test, "max": test, "worst_decile": test}
        return RoundRecord(
            round=number,
            evaluated=True,
            accuracy=accuracy,
            validation=None if validation is None else {"mean": validation},
            seconds={"train": 0.0, "evaluate": 0.0, "other": 0.0},
            bytes={"down": 0, "up": 0, "evaluate_down": 0},
        )

    tests, validations = [10.0, 20, 90, 40, 50, 60, 70], [5.0, 30, 20, 80, 80, 10, 10]
    rounds = [record(i, *pair) for i, pair in enumerate(zip(tests, validations, strict=True))]
    assert best_by_validation(rounds) == {"round": 3, "validation": 80.0, "accuracy": 40.0}  # the earlier of equals
    assert last_five(rounds) == {"accuracy": (90 + 40 + 50 + 60 + 70) / 5, "rounds": 5}
    assert last_five(rounds[:3]) == {"accuracy": 55.0, "rounds": 2}  # round 0 is before training
    assert best_by_validation([record(1, 50.0, None)]) is None


@pytest.mark.parametrize("views", ["none", "cached", "online"])
def test_held_out_images_are_neither_trained_on_nor_augmented(
    embedded_clip: FrozenCLIP, tmp_path: Path, views: Any
) -> None:
    config = FederationConfig(clients=3, validation=0.25)
    cache = FeatureConfig(cache_dir=str(tmp_path))
    plain = prepare(DIGITS, Dirichlet(0.5, 10), embedded_clip, FederationConfig(clients=3), cache, seed=1)
    data = prepare(
        DIGITS, Dirichlet(0.5, 10), embedded_clip, config, cache, seed=1, views=ViewsConfig(kind=views, count=2)
    )
    counts = data.summary()
    for client_id in range(3):
        whole, own = plain.client(client_id), data.client(client_id)
        size = len(whole.train_labels)
        assert len(own.validation_labels) == round(size / 4) and len(own.train_labels) == size - round(size / 4)
        together = [
            a + b
            for a, b in zip(counts["counts_train"][client_id], counts["counts_validation"][client_id], strict=True)
        ]
        assert together == plain.summary()["counts_train"][client_id]
        assert torch.equal(own.test_features, whole.test_features)
        # Each validation feature is one of the client's own images, without augmentation, of the same label.
        distances = torch.cdist(own.validation_features, whole.train_features)
        nearest = distances.argmin(dim=1)
        assert float(distances.min(dim=1).values.max()) < 1e-3
        assert torch.equal(whole.train_labels[nearest], own.validation_labels)
        if views == "none":
            assert float(torch.cdist(own.train_features, own.validation_features).min()) > 1e-3


def test_validation_accuracy_is_of_the_held_out_images(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    config = FederationConfig(clients=3, rounds=1, local_epochs=1, validation=0.25)
    data = prepare(DIGITS, Dirichlet(0.5, 10), embedded_clip, config, FeatureConfig(cache_dir=str(tmp_path)), seed=1)
    federation, log = build_federation(embedded_clip, data, PromptFL(), config)
    federation.run()
    text = federation.fleet.work.module.prompts(federation.server.shared["prompt"])  # type: ignore[attr-defined]
    shares, right, total = [], 0, 0
    for client_id in range(3):
        own = data.client(client_id)
        hits = (own.validation_features @ text.T).argmax(dim=1) == own.validation_labels
        shares.append(100 * float(hits.double().mean()))
        test_hits = (own.test_features @ text.T).argmax(dim=1) == own.test_labels
        right, total = right + int(test_hits.sum()), total + len(test_hits)
    last = log.records[-1]
    assert last.validation is not None and last.quality is not None
    assert last.validation["mean"] == pytest.approx(math.fsum(shares) / 3)
    assert last.quality["weighted"] == pytest.approx(100 * right / total)
    assert sum(map(sum, log.evaluations[-1].confusion)) == total


def test_a_run_keeps_the_checkpoint_that_validation_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--federation.clients=3", "--federation.rounds=6", "--federation.local_epochs=1", "--data.subset.train=90"]
    where = [f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={tmp_path / 'cache'}"]
    shaky = ["--optim.prompt_lr=0.5", "--federation.validation=0.3", "--method=PromptFL"]  # accuracy goes up and down
    assert main(["fit", f"--config={ROOT / 'configs/embedded.yaml'}", *small, *where, *shaky]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    rounds = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    best = max(range(7), key=lambda i: (rounds[i]["validation"]["mean"], -i))
    assert 0 < best < 5  # or the test would not tell the last two rounds' checkpoints from the pinned one
    assert summary["best_by_validation"]["round"] == best
    assert summary["best_by_validation"]["accuracy"] == rounds[best]["accuracy"]["mean"]
    assert main(["evaluate", str(tmp_path / "run"), "--best=true"]) == 0
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert (found["round"], found["accuracy"]) == (best, rounds[best]["accuracy"])
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["accuracy"] == rounds[-1]["accuracy"]
    written = json.loads((tmp_path / "run/confusion.json").read_text())
    assert sum(map(sum, written["confusion"])) == sum(
        json.loads(line)["total"] for line in (tmp_path / "run/clients.jsonl").read_text().splitlines()[-3:]
    )


def test_best_without_validation_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--data.subset.train=60"]
    where = [f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={tmp_path / 'cache'}"]
    assert main(["fit", f"--config={ROOT / 'configs/embedded.yaml'}", *small, *where, "--method=PromptFL"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--best=true"]) == 2
    assert "holds no checkpoint chosen by validation" in " ".join(capsys.readouterr().err.split())


def test_provenance_names_commit_and_method_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mymethod.py"
    file.write_text("from fedmoe.methods import PromptFL\nclass Mine(PromptFL):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mymethod  # type: ignore[import-not-found]

    found = provenance(mymethod.Mine)
    assert found["method_file"] == {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert provenance(PromptFL)["method_file"] is None
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert found["git"]["commit"] == head.stdout.strip() and type(found["git"]["dirty"]) is bool
