"""MNIST and its relatives: IDX files written here byte by byte, up to `fit`; the reader on random files."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.cli import main
from fedmoe.data import EMNIST, KMNIST, MNIST, FashionMNIST
from fedmoe.data.base import check_dataset
from fedmoe.data.check import check
from fedmoe.errors import UserError
from fedmoe.readers.idx import read_idx

ROOT = Path(__file__).parents[1]
LABELS = {"train": [i % 10 for i in range(40)], "t10k": [i % 10 for i in range(20)]}


def idx(values: np.ndarray) -> bytes:
    """The format's own definition: two zeros, type 8, the number of axes, big-endian sizes, the bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write(folder: Path, labels: dict[str, list[int]] | None = None, packed: bool = False) -> dict[str, np.ndarray]:
    """The four files of a data set; the images by prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for seed, (prefix, found) in enumerate((labels or LABELS).items()):
        images[prefix] = np.random.default_rng(seed).integers(0, 256, (len(found), 28, 28), dtype=np.uint8)
        for name, values in (("images-idx3", images[prefix]), ("labels-idx1", np.array(found))):
            content = gzip.compress(idx(values)) if packed else idx(values)
            (folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}").write_bytes(content)
    return images


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("cls", "folder", "first"),
    [
        (MNIST, "mnist", "zero"),
        (MNIST, "MNIST/raw", "zero"),
        (FashionMNIST, "fashion-mnist", "T-shirt/top"),
        (FashionMNIST, "FashionMNIST/raw", "T-shirt/top"),
        (KMNIST, "kmnist", "o"),
    ],
)
def test_images_and_labels_are_those_of_the_files(cls, folder, first, packed, tmp_path):
    images = write(tmp_path / folder, packed=packed)
    data = cls(root=str(tmp_path))
    check_dataset(data)
    assert data.class_names[0] == first and len(data.class_names) == 10
    assert (cls.published.train, cls.published.test) == (60000, 10000)
    for split, prefix in ((data.train, "train"), (data.test, "t10k")):
        assert split.labels.tolist() == LABELS[prefix]
        for i in (0, len(split) - 1):
            image = split.image(i)
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.repeat(images[prefix][i][..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("part", "classes", "names"),
    [
        ("byclass", 62, {0: "digit zero", 10: "capital letter A", 35: "capital letter Z", 36: "small letter a"}),
        ("bymerge", 47, {10: "capital letter A", 12: "letter c", 36: "small letter a", 46: "small letter t"}),
        ("balanced", 47, {9: "digit nine", 38: "small letter d"}),
        ("letters", 26, {0: "letter a", 25: "letter z"}),
        ("digits", 10, {9: "digit nine"}),
    ],
)
def test_emnist(part, classes, names, tmp_path):
    """Its class mapping by ASCII codes (emnist-bymerge-mapping.txt); letters count from 1; images lie on their side."""
    first = 1 if part == "letters" else 0
    prefixes = [f"emnist-{part}-{name}" for name in ("train", "test")]
    images = write(tmp_path / "emnist", {prefix: [first, first + classes - 1] for prefix in prefixes})
    data = EMNIST(root=str(tmp_path), part=part)
    check_dataset(data)
    assert data.train.labels.tolist() == [0, classes - 1]
    assert len(data.class_names) == data.published.classes == classes
    assert {label: data.class_names[label] for label in names} == names
    assert np.array_equal(np.asarray(data.test.image(1))[..., 0], images[prefixes[1]][1].T)


def test_the_check_compares_sizes(tmp_path):
    write(tmp_path / "mnist")
    report = check(MNIST(root=str(tmp_path)), headers=True)
    assert "the sizes differ from its publication: 40 training examples, not 60000" in report.text
    assert "Headers: all 60 images can be read" in report.text and report.exit_code == 1


def test_the_cache_key_follows_the_pixels(tmp_path):
    write(tmp_path / "mnist")
    before = MNIST(root=str(tmp_path)).cache_key()
    path = tmp_path / "mnist/train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert MNIST(root=str(tmp_path)).cache_key() != before


def test_a_run(tmp_path, capsys):
    write(tmp_path / "data/fashion-mnist", packed=True)
    (tmp_path / "clip.json").write_text(json.dumps(tiny_config("vit")))
    args = [f"--config={ROOT / 'configs/data/fashion_mnist.yaml'}", f"--clip.model_config={tmp_path / 'clip.json'}"]
    args += ["--clip.pretrained=null", "--prompt.length=4", "--runtime.accelerator=cpu"]
    args += [f"--data.root={tmp_path / 'data'}", "--method=PromptFL", "--federation.clients=2"]
    args += ["--federation.rounds=1", "--federation.local_epochs=1", f"--features.cache_dir={tmp_path / 'cache'}"]
    args += [f"--output.dir={tmp_path / 'runs'}", "--output.name=run"]
    assert main(["fit", *args]) == 0, capsys.readouterr().err
    names = json.loads((tmp_path / "runs/run/partition.json").read_text())["class_names"]
    assert names[0] == "T-shirt/top" and names[9] == "Ankle boot"


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    start=st.sampled_from([b"", b"\0\0\x08\x01", b"\0\0\x08\x03", b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\xff"]),
    content=st.binary(max_size=64),
    packed=st.booleans(),
)
def test_any_file_is_an_array_or_a_sentence(tmp_path_factory, start, content, packed):
    path = tmp_path_factory.getbasetemp() / "any-idx"
    path.write_bytes(gzip.compress(start + content) if packed else start + content)
    try:
        array = read_idx(path, 1, 1000)
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        whole = (start + content)[:4] == b"\0\0\x08\x01"
        assert whole and array.tobytes() == (start + content)[8:]
