"""evaluate --classes and late clients, compared with CLIP used by hand on a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedmoe.cli import main
from fedmoe.config import PromptConfig
from fedmoe.data import DigitDomains, Digits, Dirichlet
from fedmoe.data.partition import partition_dataset
from fedmoe.data.subset import SubsetConfig
from fedmoe.federation.restore import read_state
from fedmoe.federation.state import FederationState
from fedmoe.io import read_jsonl
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.functional import moe_logits
from fedmoe.models.gating import AttentionGate
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.parameters import select
from fedmoe.runs.checkpoint import StateStore

BASE, CLIENTS, LATE = 6, 6, 2
NAMES = Digits().class_names
Images = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def test_images(embedded_clip: FrozenCLIP) -> Images:
    """Features and labels of all test images, encoded here."""
    split = Digits().test
    pixels = torch.stack([embedded_clip.preprocess(split.image(i)) for i in range(len(split))])
    return embedded_clip.encode_image(pixels), torch.from_numpy(split.labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def fit(folder: Path, method: str, *more: str, name: str = "", base: int = BASE) -> Path:
    """A finished run on the first digits with two late clients; made once."""
    run = folder / (name or method)
    if not run.exists():
        settings = ["--config=configs/embedded.yaml", f"--data.subset.classes={base}", f"--method={method}"]
        settings += [f"--federation.clients={CLIENTS}", f"--federation.late_clients={LATE}", "--federation.rounds=3"]
        settings += ["--federation.local_epochs=2", "--optim.prompt_lr=0.02", "--optim.gating_lr=0.05"]
        settings += [
            f"--features.cache_dir={folder / 'features'}",
            f"--output.dir={folder}",
            f"--output.name={run.name}",
        ]
        assert main(["fit", *settings, *more]) == 0
    return run


def evaluation(run: Path, *more: str) -> dict:
    assert main(["evaluate", str(run), *more]) == 0
    return json.loads((run / "evaluation.json").read_text())


def kept(run: Path) -> FederationState:
    state = read_state(StateStore(run / "state"))
    assert state is not None
    return state


def share(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(dim=1) == labels).double().mean())


def harmonic(*values: float) -> float:
    return len(values) / sum(1 / value for value in values)


def test_zero_shot_on_base_and_novel_classes(folder: Path, embedded_clip: FrozenCLIP, test_images: Images) -> None:
    found = evaluation(fit(folder, "ZeroShot"), "--classes=true")
    features, labels = test_images
    tokens = embedded_clip.tokenize([Digits.template.replace("{class}", name) for name in NAMES])
    with torch.no_grad():
        text = normalize(embedded_clip.model.encode_text(tokens), dim=-1)  # open_clip's own way
    base, novel = labels < BASE, labels >= BASE
    on_base = share(features[base] @ text[:BASE].T, labels[base])
    on_novel = share(features[novel] @ text[BASE:].T, labels[novel] - BASE)
    classes = found["classes"]
    assert classes["base"]["mean"] == pytest.approx(on_base)
    assert classes["novel"]["mean"] == pytest.approx(on_novel)
    assert classes["base"]["std"] == classes["novel"]["std"] == 0  # the same model on every client
    assert classes["harmonic_mean"] == pytest.approx(harmonic(on_base, on_novel))
    own = classes["own"]["mean"]
    assert classes["harmonic_mean_of_three"] == pytest.approx(harmonic(own, on_base, on_novel))
    assert found["late"]["as_they_come"] == found["late"]["joined"]  # nothing is trained


def test_pfedmoap_on_base_and_novel_classes(folder: Path, embedded_clip: FrozenCLIP, test_images: Images) -> None:
    """Each client's prompt, gate and nearest experts, put into sentences about the novel classes."""
    run = fit(folder, "PFedMoAP", "--method.num_experts=2")
    found, state = evaluation(run, "--classes=true")["classes"], kept(run)
    features, labels = test_images
    scores: dict[str, list[float]] = {"base": [], "novel": []}
    for client_id in range(CLIENTS - LATE):
        own = state.clients[client_id]
        gate = AttentionGate(embedded_clip.feature_dim)
        trained = {name.removeprefix("gate."): tensor for name, tensor in select(own.parameters, ["gate"]).items()}
        gate.load_state_dict(trained)
        entries = state.server.pool["prompt"]
        pool = {i: prompt for i, prompt in entries.items() if i != client_id}
        nearest = sorted(pool, key=lambda i: float((pool[i] - entries[client_id]).norm()))[:2]
        prompts = torch.stack([own.parameters["prompt"], *(pool[i] for i in nearest)])
        for name, first, last in (("base", 0, BASE), ("novel", BASE, 10)):
            chosen = (labels >= first) & (labels < last)
            learner = PromptLearner(embedded_clip, NAMES[first:last], PromptConfig(text_pass="full"))
            with torch.no_grad():
                text = learner(prompts)  # [K + 1, C, d]
                mixed = gate(features[chosen], text)
                logits = moe_logits(features[chosen], text[0], mixed, embedded_clip.logit_scale, 0.5)
            scores[name].append(share(logits, labels[chosen] - first))
    for name, values in scores.items():
        # One image on the border between two classes may fall either way in float32.
        assert found[name]["mean"] == pytest.approx(sum(values) / len(values), abs=100 / 4 / 200)
        assert found[name]["max"] - found[name]["min"] > 1  # the models are personal


def test_own_classes_are_those_a_client_trained_on(
    folder: Path, embedded_clip: FrozenCLIP, test_images: Images
) -> None:
    """With disjoint classes, choosing among the own ones is easier than among all: checked on each client's counts."""
    run = fit(folder, "PromptFL", "--partition=Pathological", name="pathological")
    found, state = evaluation(run, "--classes=true"), kept(run)
    counts = torch.tensor(json.loads((run / "partition.json").read_text())["counts_train"])  # [N, C]
    features, labels = test_images
    learner = PromptLearner(embedded_clip, NAMES[:BASE], PromptConfig())
    with torch.no_grad():
        text = learner(state.server.shared["prompt"])
    expected = []
    for client_id in range(CLIENTS - LATE):
        classes = counts[client_id].nonzero()[:, 0]
        mine = torch.isin(labels, classes)  # with disjoint classes, a client's test split is all images of its classes
        expected.append(share(features[mine] @ text[classes].T, torch.searchsorted(classes, labels[mine])))
    assert found["classes"]["own"]["mean"] == pytest.approx(sum(expected) / len(expected))
    assert found["classes"]["own"]["mean"] >= found["accuracy"]["mean"]


def test_local_is_among_all_base_classes(
    folder: Path, embedded_clip: FrozenCLIP, test_images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    """FedPGP's and FedMGP's Local, and the composites that papers print, from the global prompt by hand."""
    run = fit(folder, "PromptFL", "--partition=Pathological", name="skewed")
    found, state = evaluation(run, "--classes=true")["classes"], kept(run)
    counts = torch.tensor(json.loads((run / "partition.json").read_text())["counts_train"])  # [N, C]
    features, labels = test_images
    with torch.no_grad():
        text = PromptLearner(embedded_clip, NAMES[:BASE], PromptConfig())(state.server.shared["prompt"])
    expected = []
    for client_id in range(CLIENTS - LATE):
        mine = torch.isin(labels, counts[client_id].nonzero()[:, 0])
        expected.append(share(features[mine] @ text.T, labels[mine]))
    local, base, novel = (found[name]["mean"] for name in ("local", "base", "novel"))
    assert local == pytest.approx(sum(expected) / len(expected))
    assert found["clients"]["local"] == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert f"HM = 2 · base · novel / (base + novel) = {harmonic(base, novel):.2f} %" in printed
    assert f"CM = (Local + HM) / 2 = {(local + harmonic(base, novel)) / 2:.2f} %" in printed
    assert found["harmonic_mean_with_local"] == pytest.approx(harmonic(local, base, novel))
    assert found["combined"] == pytest.approx((local + harmonic(base, novel)) / 2)


def test_late_clients_take_no_part(folder: Path) -> None:
    run = fit(folder, "PFedMoAP", "--method.num_experts=2")
    rounds, state = read_jsonl(run / "rounds.jsonl"), kept(run)
    late = {CLIENTS - 2, CLIENTS - 1}
    assert all(not late & set(record["cohort"]) for record in rounds)
    assert all(record["cohort"] == [0, 1, 2, 3] for record in rounds[1:])
    assert set(state.server.pool["prompt"]) == {0, 1, 2, 3}
    last = [line for line in read_jsonl(run / "clients.jsonl") if line["round"] == 3]
    assert [line["accuracy"] is None for line in last] == [False] * 4 + [True] * 2
    mean = sum(line["accuracy"] for line in last[:4]) / 4
    assert rounds[-1]["accuracy"]["mean"] == pytest.approx(mean)


def test_a_client_that_joins(folder: Path, embedded_clip: FrozenCLIP) -> None:
    """It predicts with the global prompt as it comes; joining changes its score and nothing on disk."""
    run = fit(folder, "PFedMoAP", "--method.num_experts=2")
    before = {path: path.read_bytes() for path in (run / "state").iterdir()}
    one, two = evaluation(run)["late"], evaluation(run, "--join_rounds=2")["late"]
    assert one["clients"] == [4, 5]
    assert (one["rounds"], one["epochs"], two["rounds"]) == (1, 2, 2)
    assert one["as_they_come"] == two["as_they_come"]
    assert len({one["as_they_come"]["mean"], one["joined"]["mean"], two["joined"]["mean"]}) > 1
    assert evaluation(run)["late"] == one
    assert before == {path: path.read_bytes() for path in (run / "state").iterdir()}
    # As it comes, a client is what one that never took part was in a round: the global prompt alone.
    state = kept(run)
    learner = PromptLearner(embedded_clip, NAMES[:BASE], PromptConfig())
    with torch.no_grad():
        text = learner(state.server.shared["prompt"])
    split = Digits(subset=SubsetConfig(classes=BASE)).test
    parts = partition_dataset(Digits(subset=SubsetConfig(classes=BASE)), Dirichlet(), CLIENTS, seed=0)
    shares = []
    for client_id in (4, 5):
        mine = parts[client_id].test
        pixels = torch.stack([embedded_clip.preprocess(split.image(int(i))) for i in mine])
        shares.append(share(embedded_clip.encode_image(pixels) @ text.T, torch.from_numpy(split.labels[mine])))
    assert one["as_they_come"]["mean"] == pytest.approx(sum(shares) / 2)
    assert one["each"] == pytest.approx(shares)


def test_other_data_sets_as_targets(
    folder: Path, embedded_clip: FrozenCLIP, test_images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learned on six classes, scored on all test images of two data sets of ten, each among its own class names."""
    run, files = fit(folder, "FedPer"), [folder / "inverted.yaml", folder / "digits.yaml"]
    files[0].write_text("data: {class_path: DigitDomains, init_args: {domains: [inverted], subset: {test: 60}}}")
    files[1].write_text("data: {class_path: Digits}")
    found, state = evaluation(run, f"--targets={files[0]},{files[1]}")["transfer"], kept(run)
    split = DigitDomains(domains=("inverted",), subset=SubsetConfig(test=60)).test
    pixels = torch.stack([embedded_clip.preprocess(split.image(i)) for i in range(60)])
    images = {"inverted": (embedded_clip.encode_image(pixels), torch.from_numpy(split.labels)), "digits": test_images}
    learner, expected = PromptLearner(embedded_clip, NAMES, PromptConfig()), []
    for client_id in range(CLIENTS - LATE):
        own = state.clients[client_id].parameters["own"]
        with torch.no_grad():
            text = learner(torch.cat([state.server.shared["prompt"], own]))
        expected.append([share(features @ text.T, labels) for features, labels in images.values()])
    for place, name in enumerate(images):
        assert found["targets"][name]["mean"] == pytest.approx(sum(each[place] for each in expected) / len(expected))
    assert found["clients"] == pytest.approx([sum(each) / 2 for each in expected])
    assert len(set(found["clients"])) > 1  # the models are personal
    assert f"mean of the targets {sum(map(sum, expected)) / 2 / len(expected):.2f} %" in capsys.readouterr().out
    whole = fit(folder, "PFedPrompt", base=10)  # its prompt is the same for all clients; their stored images are not
    assert len(set(evaluation(whole, f"--targets={files[1]}")["transfer"]["clients"])) == CLIENTS - LATE
    capsys.readouterr()
    assert main(["evaluate", str(run), f"--targets={files[0]},{folder / 'x' / files[0].name}"]) == 2
    assert "targets has two files named inverted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "more", "sentence"),
    [
        (10, [], "data.subset.classes is 10, so the run held no class of 'digits' out"),
        (BASE, ["--prompt.class_specific=true"], "prompt.class_specific is true: such prompts know no novel classes"),
    ],
)
def test_runs_without_novel_classes_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str], base: int, more: list[str], sentence: str
) -> None:
    run = fit(folder, "PromptFL", *more, "--federation.rounds=0", name=f"run-{base}", base=base)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--classes=true"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("--federation.late_clients=6", "federation.late_clients is 6; valid is 0 to 5."),
        ("--federation.late_clients=-1", "federation.late_clients is -1; valid is 0 to 5."),
    ],
)
def test_somebody_has_to_take_part(capsys: pytest.CaptureFixture[str], setting: str, sentence: str) -> None:
    assert main(["fit", "--federation.clients=6", setting]) == 2
    assert sentence in capsys.readouterr().err


def test_joining_takes_a_round(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(folder, "PFedMoAP", "--method.num_experts=2")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--join_rounds=0"]) == 2
    assert "join_rounds is 0; valid is an integer of at least 1." in capsys.readouterr().err
