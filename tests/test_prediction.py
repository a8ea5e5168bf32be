"""``predict``: a client of a finished run and image files, through the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

import fedmoe
from fedmoe.cli import main
from fedmoe.data import partition_dataset
from fedmoe.data.partition import Dirichlet
from fedmoe.data.sets.digits import Digits
from fedmoe.errors import UserError
from fedmoe.io import read_jsonl

CONFIGS = Path(__file__).parents[1] / "configs"
CLIENT = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of short runs over the same four clients, one for each of three methods."""
    folder = tmp_path_factory.mktemp("runs")
    shared = [
        f"--config={CONFIGS / 'embedded.yaml'}",
        f"--features.cache_dir={tmp_path_factory.getbasetemp() / 'features'}",
        f"--output.dir={folder}",
        "--federation.clients=4",
        "--federation.participation=1",
        "--federation.rounds=2",
        "--federation.local_epochs=1",
        "--optim.prompt_lr=0.02",
        "--runtime.threads=1",
        "--runtime.accelerator=cpu",
    ]
    assert main(["fit", *shared, "--output.name=PFedMoAP", "--method.num_experts=2"]) == 0
    for method in ("PromptFLFT", "FedOTP"):
        assert main(["fit", *shared, f"--output.name={method}", f"--method={method}"]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's test images as PNG files, named by their index in the data set, half of them in a folder below."""
    folder, data = tmp_path_factory.mktemp("images"), Digits()
    (folder / "below").mkdir()
    own = partition_dataset(data, Dirichlet(), 4, 0)[CLIENT].test
    for place, index in enumerate(own.tolist()):
        data.test.image(index).save(folder / ("below" if place % 2 else "") / f"{index}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["predict", *args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("method", ["PFedMoAP", "PromptFLFT", "FedOTP"])
def test_a_client_is_as_right_as_in_the_runs_last_evaluation(
    method: str, runs: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(printed([str(runs / method), "--client", str(CLIENT), str(images), "--format=json"], capsys))
    data = Digits()
    right = [
        one["classes"][0]["class"] == data.class_names[data.test.labels[int(Path(one["image"]).stem)]] for one in found
    ]
    logged = [line for line in read_jsonl(runs / method / "clients.jsonl") if line["client"] == CLIENT][-1]
    assert (sum(right), len(right)) == (logged["correct"], logged["total"])


def test_the_weights_are_those_of_the_experts_of_the_last_evaluation(
    runs: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "PFedMoAP"
    found = json.loads(printed([str(run), "--client=2", str(images), "--format=json"], capsys))
    last = read_jsonl(run / "rounds.jsonl")[-1]
    names = ["own", *(f"client {i}" for i in last["experts"][str(CLIENT)])]
    assert len(names) == 3
    for one in found:
        assert [expert["expert"] for expert in one["experts"]] == names
        assert sum(expert["weight"] for expert in one["experts"]) == pytest.approx(1)
    assert len({one["experts"][0]["weight"] for one in found}) > 1  # each image has its own


def test_csv_says_what_json_says(runs: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(sorted(images.glob("*.png"))[0])
    args = [str(runs / "PFedMoAP"), image, "--client=2", "--top=3"]
    (told,) = json.loads(printed([*args, "--format=json"], capsys))
    lines = list(csv.DictReader(io.StringIO(printed([*args, "--format=csv"], capsys))))
    assert [line["rank"] for line in lines] == ["1", "2", "3"]
    assert [line["class"] for line in lines] == [entry["class"] for entry in told["classes"]]
    assert [float(line["probability"]) for line in lines] == [entry["probability"] for entry in told["classes"]]
    for expert in told["experts"]:
        assert {float(line[f"weight of {expert['expert']}"]) for line in lines} == {expert["weight"]}


def test_all_probabilities_sum_to_one_and_fall(runs: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(sorted(images.glob("*.png"))[0])
    (told,) = json.loads(printed([str(runs / "FedOTP"), image, "--client=0", "--top=99", "--format=json"], capsys))
    shares = [entry["probability"] for entry in told["classes"]]
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    assert shares == sorted(shares, reverse=True)
    assert told["experts"] == []


def test_text_names_images_classes_and_experts_and_obeys_no_file_name(
    runs: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # a path in one line
    Image.open(sorted(images.glob("*.png"))[0]).save(tmp_path / "[red]\x1b[31m.png")
    text = printed([str(runs / "PFedMoAP"), str(tmp_path), "--client=2", "--top=1"], capsys)
    assert "\x1b" not in text
    flat = "".join(text.split())
    assert "pFedMoAP,client2afterround2" in flat
    assert "[red]" in flat
    assert "own" in flat


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["IMAGES"], ["client is not given", "--client=0 to --client=3"]),
        (["IMAGES", "--client=4"], ["client is 4", "4 clients", "0 to 3"]),
        (["IMAGES", "--client=-1"], ["client is -1", "0 to 3"]),
        (["EMPTY", "--client=0"], ["holds no image", ".png"]),
        (["EMPTY/none.png", "--client=0"], ["none.png does not exist"]),
        (["IMAGES/notes.txt", "--client=0"], ["notes.txt cannot be read", "PNG"]),
        (["CUT", "--client=0"], ["cut.png cannot be read"]),
        (["IMAGES", "--client=0", "--top=0"], ["top is 0", "at least 1"]),
        (["IMAGES", "--client=0", "--format=xml"], ["format", "xml", "json"]),
        (["--client=0"], ["predict needs images"]),
    ],
)
def test_mistakes_are_one_sentence(
    args: list[str], words: list[str], runs: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sorted(images.glob("*.png"))[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": str(images), "EMPTY": str(tmp_path / "empty"), "CUT": str(tmp_path / "cut.png")}
    for name, place in places.items():
        args = [arg.replace(name, place) for arg in args]
    sentence = fails([str(runs / "PFedMoAP"), *args], capsys)
    assert all(word in sentence for word in words), sentence


def test_a_run_without_a_checkpoint_and_what_is_no_run(
    runs: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.yaml", "run.json"):
        (bare / name).write_bytes((runs / "PFedMoAP" / name).read_bytes())
    assert "holds no checkpoint" in fails([str(bare), str(images), "--client=0"], capsys)
    assert "not a run folder" in fails([str(images), str(images), "--client=0"], capsys)
    best = fails([str(runs / "PFedMoAP"), str(images), "--client=0", "--best=true"], capsys)
    assert "no checkpoint chosen by validation" in best


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["predict", *args]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_python_predicts_as_the_command_does(runs: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "PFedMoAP"
    said = json.loads(printed([str(run), str(images), f"--client={CLIENT}", "--top=3", "--format=json"], capsys))
    frame = fedmoe.load(run).predict(images, CLIENT, top=3)
    assert frame.index.names == ["image", "rank"]
    assert len(frame) == 3 * len(said)
    assert frame.filter(like="weight/").shape[1] == 3  # its own prompt and two experts
    assert frame.filter(like="weight/").sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    own = {i: Digits().class_names[label] for i, label in enumerate(Digits().test.labels)}
    first = frame.xs(1, level="rank")
    right = [own[int(Path(image).stem)] == name for image, name in first["class"].items()]
    recorded = [row for row in read_jsonl(run / "clients.jsonl") if row["client"] == CLIENT][-1]
    assert 100 * sum(right) / len(right) == pytest.approx(recorded["accuracy"], abs=0.01)


def test_python_refuses_a_client_that_is_not_there(runs: Path, images: Path) -> None:
    with pytest.raises(UserError, match="client is 4, but the run has 4 clients; valid is 0 to 3"):
        fedmoe.load(runs / "PFedMoAP").predict([images], 4)
