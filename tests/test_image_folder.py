"""A user's own images in folders, and data sets saved by Hugging Face's library, up to `fit`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from feature_helpers import paths_of
from PIL import Image

from fedmoe.cli import experiment_parser, main
from fedmoe.data.base import DataSet
from fedmoe.data.check import check
from fedmoe.data.sets.hugging_face import HuggingFace
from fedmoe.data.sets.image_folder import ImageFolder
from fedmoe.errors import UserError
from fedmoe.io import read_jsonl


def picture(number, mode="RGB"):
    pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write(root, *folders, count=4, suffix=".png", mode="RGB"):
    """``count`` images in each of the folders."""
    for f, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(100 * f + i, mode).save(root / folder / f"{i:02d}{suffix}")
    return root


def counts(split, num_classes):
    return np.bincount(split.labels, minlength=num_classes).tolist()


def test_class_folders_with_a_seeded_split(tmp_path):
    write(tmp_path, "dog", "cat", count=10)
    write(tmp_path, "one", count=1)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat/notes.txt").write_text("no image")
    (tmp_path / "cat/._00.png").write_text("no image either")
    data = ImageFolder(root=str(tmp_path))
    assert data.class_names == ("cat", "dog", "one") and data.domain_names == () and data.train.domains is None
    assert counts(data.train, 3) == [8, 8, 1] and counts(data.test, 3) == [2, 2, 0]
    for split in (data.train, data.test):
        for path, label in zip(paths_of(split), split.labels, strict=True):
            assert path.split("/")[-2] == data.class_names[label]
    assert not set(paths_of(data.train)) & set(paths_of(data.test))
    with Image.open(paths_of(data.train)[3]) as image:
        assert np.array_equal(np.asarray(image), np.asarray(data.train.image(3)))
    assert ImageFolder(root=str(tmp_path)).test.paths == paths_of(data.test)
    assert ImageFolder(root=str(tmp_path), split_seed=1).test.paths != paths_of(data.test)
    assert ImageFolder(root=str(tmp_path), split_seed=1).cache_key() != data.cache_key()
    assert counts(ImageFolder(root=str(tmp_path), test_fraction=0.5).test, 3) == [5, 5, 0]


def test_train_and_test_folders(tmp_path):
    write(tmp_path, "train/dog", "train/cat", count=3)
    write(tmp_path, "test/dog", count=2)
    data = ImageFolder(root=str(tmp_path), layout="split")
    assert data.class_names == ("cat", "dog")
    assert counts(data.train, 2) == [3, 3] and counts(data.test, 2) == [0, 2]
    assert all("/test/dog/" in path for path in paths_of(data.test))
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(ImageFolder(root=str(tmp_path), layout="split", test_folder="val").test) == 2


def test_domain_folders(tmp_path):
    write(tmp_path, "photo/dog", "photo/cat", "drawing/dog", count=5)
    data = ImageFolder(root=str(tmp_path), layout="domains")
    assert data.class_names == ("cat", "dog") and data.domain_names == ("drawing", "photo")
    for split, each in ((data.train, 4), (data.test, 1)):
        assert split.domains is not None
        pairs = list(zip(split.labels.tolist(), split.domains.tolist(), strict=True))
        assert {pair: pairs.count(pair) for pair in pairs} == {(1, 0): each, (0, 1): each, (1, 1): each}


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".PNG", "P"), (".jpeg", "L"), (".gif", "P"), (".webp", "RGB"), (".tif", "RGBA"), (".bmp", "1")],
)
def test_every_kind_of_file_becomes_rgb(tmp_path, suffix, mode):
    write(tmp_path, "a", suffix=suffix, mode=mode, count=2)
    data = ImageFolder(root=str(tmp_path))
    assert (len(data.train), len(data.test)) == (1, 1)
    assert data.train.image(0).mode == "RGB" and data.train.image(0).size == (28, 20)


def test_the_image_function_goes_to_worker_processes(tmp_path):
    import pickle

    image = ImageFolder(root=str(write(tmp_path, "a", "b"))).train.image
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(image))(2)), np.asarray(image(2)))


@pytest.mark.parametrize(
    ("folders", "settings", "sentence"),
    [
        (
            ["photo/dog"],
            {},
            "data.layout is 'classes', but .* has no folder with images .*did you mean data.layout=domains",
        ),
        (["train/dog", "test/dog"], {}, "did you mean data.layout=split?"),
        (["dog", "cat"], {"layout": "domains"}, "did you mean data.layout=classes?"),
        (["dog/inner/deep"], {}, r"valid is a tree .*/<class>/<image>\.$"),
        ([], {"layout": "domains"}, "has no folders"),
        (["train/dog"], {"layout": "split"}, "data.test_folder is 'test', but there is no folder"),
        (["train/dog", "tests/dog"], {"layout": "split"}, "did you mean 'tests'?"),
        (["train/dog", "test/dogs"], {"layout": "split"}, "The class 'dogs' has images in .* did you mean 'dog'?"),
        (["a"], {"test_folder": "train"}, "are both 'train'; valid are two folders"),
        (["a"], {"template": "a photo"}, "data.template is 'a photo'; valid is a text with {class}"),
        (["a"], {"test_fraction": 0}, "data.test_fraction is 0; valid is a number between 0 and 1."),
        (["a"], {"root": "no/such"}, "data.root is 'no/such', but there is no folder no/such; .*that exists is"),
    ],
)
def test_a_tree_that_does_not_fit_is_one_sentence(tmp_path, folders, settings, sentence):
    write(tmp_path, *folders, count=2)
    with pytest.raises(UserError, match=sentence) as error:
        ImageFolder(**{"root": str(tmp_path), **settings}).train  # noqa: B018
    assert "\n" not in str(error.value)


def test_check_of_a_user_s_own_images(tmp_path):
    report = check(ImageFolder(root=str(write(tmp_path, "a", "b"))))
    assert report.exit_code == 0 and "nothing to compare with" in report.text and "all 8 are there" in report.text
    data = ImageFolder(root=str(tmp_path))
    assert len(data.train)
    next(iter(tmp_path.glob("a/*.png"))).unlink()
    assert check(data).exit_code == 1


def fit(tmp_path, *arguments):
    (tmp_path / "tiny.json").write_text(json.dumps(tiny_config("vit")))
    common = ["fit", f"--clip.model_config={tmp_path / 'tiny.json'}", "--clip.pretrained=null", "--prompt.length=2"]
    common += ["--federation.participation=0.5", "--federation.rounds=1", "--federation.local_epochs=1"]
    common += ["--method=PromptFL", "--runtime.threads=1", f"--features.cache_dir={tmp_path / 'cache'}"]
    return main([*common, *arguments, f"--output.dir={tmp_path}", "--output.name=run"])


def test_fit_on_class_folders(tmp_path):
    write(tmp_path / "data", "cat", "dog", "fire_engine", count=8)
    data = ["--data=ImageFolder", f"--data.root={tmp_path / 'data'}", "--data.template=a drawing of a {class}."]
    assert fit(tmp_path, *data, "--partition=IID", "--federation.clients=3") == 0
    last = read_jsonl(tmp_path / "run/rounds.jsonl")[-1]
    assert last["round"] == 1 and last["accuracy_per_domain"] == {}
    assert json.loads((tmp_path / "run/partition.json").read_text())["class_names"] == ["cat", "dog", "fire_engine"]


def test_fit_on_domain_folders(tmp_path):
    write(tmp_path / "data", "photo/cat", "photo/dog", "sketch/cat", "sketch/dog", count=6)
    data = ["--data=ImageFolder", f"--data.root={tmp_path / 'data'}", "--data.layout=domains"]
    assert fit(tmp_path, *data, "--partition=OneDomainPerClient", "--federation.clients=2") == 0
    assert set(read_jsonl(tmp_path / "run/rounds.jsonl")[-1]["accuracy_per_domain"]) == {"photo", "sketch"}


def test_a_domain_partition_without_domains_is_refused(tmp_path, capsys):
    write(tmp_path / "data", "cat", "dog", count=6)
    data = ["--data=ImageFolder", f"--data.root={tmp_path / 'data'}"]
    assert fit(tmp_path, *data, "--partition=OneDomainPerClient", "--federation.clients=2") == 2
    assert "the data set 'image_folder' has no domains; valid is" in " ".join(capsys.readouterr().err.split())


# Hugging Face


def table(hf, number, labels, names=("cat", "dog"), **columns):
    features = {"image": hf.Image(), "label": hf.ClassLabel(names=list(names)) if names else hf.Value("string")}
    rows = {"image": [picture(number + i) for i in range(len(labels))], "label": labels, **columns}
    return hf.Dataset.from_dict(rows, features=hf.Features({**features, **{c: hf.Value("string") for c in columns}}))


@pytest.fixture
def hf():
    return pytest.importorskip("datasets")


def test_saved_splits(hf, tmp_path):
    splits = {"train": table(hf, 0, [0, 1, 1]), "test": table(hf, 10, [1, 0])}
    hf.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    data = HuggingFace(root=str(tmp_path / "saved"))
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1, 1] and data.test.labels.tolist() == [1, 0]
    assert np.array_equal(np.asarray(data.test.image(1)), np.asarray(picture(11)))
    alone = HuggingFace(root=str(tmp_path / "saved"), test_split=None, test_fraction=0.5)
    assert (alone.train.labels.tolist(), alone.test.labels.tolist()) == ([0, 1], [1])
    assert alone.cache_key() != data.cache_key() == HuggingFace(root=str(tmp_path / "saved")).cache_key()
    report = check(data, headers=True)
    assert report.exit_code == 0 and "all 5 images can be read" in report.text


def test_a_single_saved_table_with_texts_and_domains(hf, tmp_path):
    labels, domains = ["oak", "ash", "oak", "ash"] * 5, ["wood"] * 10 + ["park"] * 10
    table(hf, 0, labels, None, place=domains).save_to_disk(str(tmp_path / "saved"))
    data = HuggingFace(root=str(tmp_path / "saved"), domain_column="place", template="a leaf of {class}")
    assert data.class_names == ("ash", "oak") and data.domain_names == ("park", "wood")
    assert len(data.train) == 16 and len(data.test) == 4 and data.template == "a leaf of {class}"
    for split in (data.train, data.test):  # each image tells which row it was
        assert split.domains is not None
        for i in range(len(split)):
            rows = [r for r in range(20) if np.array_equal(np.asarray(picture(r)), np.asarray(split.image(i)))]
            assert labels[rows[0]] == data.class_names[split.labels[i]]
            assert domains[rows[0]] == data.domain_names[split.domains[i]]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"image_column": "images"},
            "data.image_column is 'images', .* no such column; valid is .*did you mean 'image'",
        ),
        ({"image_column": "label"}, r"data.image_column is 'label', a column of ClassLabel; valid is .*\(image\)"),
        ({"label_column": "fine"}, "data.label_column is 'fine'"),
        ({"label_column": "number"}, "The column 'number' holds int64 without names; valid is a ClassLabel column"),
        ({"domain_column": "where"}, "data.domain_column is 'where'"),
        ({"train_split": "training"}, "data.train_split is 'training', .* no such split; .*did you mean 'train'"),
        ({}, "data.test_split is 'test', .* no such split; valid is null, for a seeded share"),
        ({"test_split": "train"}, "are both 'train'"),
    ],
)
def test_what_does_not_fit_a_saved_table_is_one_sentence(hf, tmp_path, settings, sentence):
    rows = table(hf, 0, [0, 1, 1]).add_column("number", [1, 2, 3])
    hf.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    alone: dict[str, Any] = {} if not settings or "split" in str(settings) else {"test_split": None}
    with pytest.raises(UserError, match=sentence) as error:
        HuggingFace(root=str(tmp_path / "saved"), **alone, **settings).train  # noqa: B018
    assert "\n" not in str(error.value)


def test_a_missing_label_is_named(hf, tmp_path):
    table(hf, 0, [0, -1, 1]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"The column 'label' has the label -1 at example 1; .* 0 to 1."):
        HuggingFace(root=str(tmp_path / "saved")).train  # noqa: B018


def test_a_folder_that_was_not_saved_by_the_library(hf, tmp_path):
    with pytest.raises(UserError, match=r"which datasets cannot load .* valid is a folder that save_to_disk wrote."):
        HuggingFace(root=str(write(tmp_path, "a"))).train  # noqa: B018


def test_fit_on_a_saved_table(hf, tmp_path):
    table(hf, 0, [0, 1] * 12).save_to_disk(str(tmp_path / "saved"))
    data = ["--data=HuggingFace", f"--data.root={tmp_path / 'saved'}"]
    assert fit(tmp_path, *data, "--partition=IID", "--federation.clients=2") == 0
    assert json.loads((tmp_path / "run/partition.json").read_text())["class_names"] == ["cat", "dog"]


def test_without_the_library_one_sentence_says_what_to_install(tmp_path):
    """In a process that cannot import it, whether it is installed here or not."""
    script = (
        "import importlib.abc, importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'datasets' else find(name, *a)\n"
        "from fedmoe.data.sets.hugging_face import HuggingFace\n"
        f"HuggingFace(root={str(tmp_path)!r}).train\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "needs the package datasets, and it is not installed; install it with pip install" in done.stderr
    assert "fedmoe[huggingface]" in done.stderr


CONFIGS = Path(__file__).parent.parent / "configs" / "data"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_builds_and_is_in_the_guide(path):
    parser = experiment_parser()
    embedded = path.stem == "digit_domains"  # its images come with a package
    root = [] if embedded else ["--data.root=nowhere"]
    data = parser.instantiate(parser.parse_args(["--config", str(path), *root])).data
    assert isinstance(data, DataSet) and (embedded or vars(data)["root"] == "nowhere")
    guide = (CONFIGS / "README.md").read_text()
    assert f"({path.name})" in guide and f"data check --config configs/data/{path.name}" in guide
    facts = data.published
    if facts is not None:
        row = next(line for line in guide.splitlines() if f"({path.name})" in line)
        assert f"| {facts.train:,} | {facts.test:,} | {facts.classes:,} |" in row
