"""CIFAR-10 and CIFAR-100 in torchvision's layout, their preprocessing, and the pickles that they come in."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import tarfile
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from local_server import serve

from fedmoe.cli import main
from fedmoe.data import CIFAR10, CIFAR100
from fedmoe.errors import UserError
from fedmoe.readers.array_pickle import load_arrays

BOTH = (CIFAR10, CIFAR100)
TORCHVISION: dict[type, Any] = {CIFAR10: torchvision.datasets.CIFAR10, CIFAR100: torchvision.datasets.CIFAR100}
NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The twenty superclasses of the data set's page, five classes each.
SUPERCLASSES = """
    beaver dolphin otter seal whale, aquarium_fish flatfish ray shark trout, orchid poppy rose sunflower tulip,
    bottle bowl can cup plate, apple mushroom orange pear sweet_pepper, clock keyboard lamp telephone television,
    bed chair couch table wardrobe, bee beetle butterfly caterpillar cockroach, bear leopard lion tiger wolf,
    bridge castle house road skyscraper, cloud forest mountain plain sea, camel cattle chimpanzee elephant kangaroo,
    fox porcupine possum raccoon skunk, crab lobster snail spider worm, baby boy girl man woman,
    crocodile dinosaur lizard snake turtle, hamster mouse rabbit shrew squirrel,
    maple_tree oak_tree palm_tree pine_tree willow_tree, bicycle bus motorcycle pickup_truck train,
    lawn_mower rocket streetcar tank tractor
"""
NAMES_100 = sorted(name for group in SUPERCLASSES.split(",") for name in group.split())
NAMES: dict[type, list[str]] = {CIFAR10: NAMES_10, CIFAR100: NAMES_100}
FILES: dict[type, tuple[str, list[str], str]] = {
    CIFAR10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], "batches.meta"),
    CIFAR100: ("cifar-100-python", ["train", "test"], "meta"),
}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def write_cifar(root: Path, cls: type, each: int = 20, protocol: int = 2) -> Path:
    """A small data set as torchvision extracts it; each file has ``each`` images, with labels that go round."""
    folder, names, meta = FILES[cls]
    (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        labels = [i % len(NAMES[cls]) for i in range(each)]
        batch = {"data": rng.integers(0, 256, (each, 3072), dtype=np.uint8), "batch_label": name}
        batch |= {"labels": labels} if cls is CIFAR10 else {"fine_labels": labels, "coarse_labels": [0] * each}
        (root / folder / name).write_bytes(pickle.dumps(batch, protocol))
    content = {"label_names" if cls is CIFAR10 else "fine_label_names": NAMES[cls]}
    (root / folder / meta).write_bytes(pickle.dumps(content, protocol))
    return root / folder


def torchvisions(root: Path, cls: type, train: bool):
    """torchvision's own reading of the same files, which the test has made; only the checksums are left out."""
    own: Any = type(cls.__name__, (TORCHVISION[cls],), {"_check_integrity": lambda self: True})
    folder, _, meta = FILES[cls]
    own.meta = {**own.meta, "md5": md5((root / folder / meta).read_bytes()).hexdigest()}
    return own(str(root), train=train)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("cls", BOTH)
def test_images_and_labels_are_those_that_torchvision_reads(cls, protocol, tmp_path):
    write_cifar(tmp_path, cls, each=7, protocol=protocol)
    data = cls(root=str(tmp_path))
    for train, split in ((True, data.train), (False, data.test)):
        expected = torchvisions(tmp_path, cls, train)
        assert len(split) == len(expected) == (7 * (len(FILES[cls][1]) - 1) if train else 7)
        assert split.labels.tolist() == expected.targets and list(data.class_names) == expected.classes
        for i, (image, _) in enumerate(expected):
            assert split.image(i).mode == "RGB" and split.image(i).tobytes() == image.tobytes()


@pytest.mark.parametrize("cls", BOTH)
def test_published_facts(cls):
    assert (cls.published.train, cls.published.test, cls.published.classes) == (50000, 10000, len(NAMES[cls]))
    assert list(cls.classes) == NAMES[cls]
    assert len(NAMES_100) == 100


def test_images_stay_in_their_file(tmp_path):
    """In files as CIFAR's own are written, the images of a batch are a view of the file, not of memory."""
    folder = write_cifar(tmp_path, CIFAR10, protocol=4)
    for name in FILES[CIFAR10][1]:
        batch = load_arrays(folder / name)
        (folder / name).write_bytes(python2_batch(batch["data"], batch["labels"]))
    split = CIFAR10(root=str(tmp_path)).train
    images: Any = split.image
    for batch in images.batches:
        assert batch.memory is None and isinstance(batch.rows(), np.memmap)
    expected = torchvisions(tmp_path, CIFAR10, train=True)
    assert all(split.image(i).tobytes() == image.tobytes() for i, (image, _) in enumerate(expected))
    sent = pickle.dumps(split)
    assert len(sent) < 3072 + 8 * len(split)  # what a worker process receives is less than an image and the labels
    assert pickle.loads(sent).image(99).tobytes() == split.image(99).tobytes()


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("preprocessing", ["clip", "released"])
def test_a_run_on_each(cls, preprocessing, tmp_path, capsys):
    """From the settings file to the table, with a tiny CLIP of random weights."""
    write_cifar(tmp_path / "data", cls)
    (tmp_path / "clip.json").write_text(json.dumps(tiny_config("vit")))
    data = {"root": str(tmp_path / "data"), "preprocessing": preprocessing, "subset": {"classes": 5}}
    settings = {
        "clip": {"model_config": str(tmp_path / "clip.json"), "pretrained": None},
        "prompt": {"length": 4},
        "data": {"class_path": cls.__name__, "init_args": data},
        "partition": {"class_path": "Dirichlet", "init_args": {"min_size": 1}},
        "federation": {"clients": 2, "rounds": 1, "local_epochs": 1, "batch_size": 4},
        "method": {"class_path": "PFedMoAP", "init_args": {"num_experts": 1, "gating_dim": 16, "heads": 2}},
        "features": {"cache_dir": str(tmp_path / "cache")},
        "runtime": {"threads": 1, "accelerator": "cpu"},
        "output": {"dir": str(tmp_path / "runs"), "name": "run"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tmp_path / "settings.yaml")]) == 0, capsys.readouterr().err
    partition = json.loads((tmp_path / "runs/run/partition.json").read_text())
    assert partition["class_names"] == NAMES[cls][:5]
    # Labels go round: of 100 (CIFAR-10) and of 20 (CIFAR-100) training images, each class has 10 and 1.
    assert np.sum(partition["counts_train"], axis=0).tolist() == [10 if cls is CIFAR10 else 1] * 5
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["rounds"] == 1


@pytest.mark.parametrize("cls", BOTH)
def test_the_shipped_settings_name_the_data_set(cls):
    path = Path(__file__).parents[1] / f"configs/data/{cls.name}.yaml"
    settings = yaml.safe_load(path.read_text())["data"]
    assert settings["class_path"] == cls.__name__
    cls(**settings["init_args"])


# What the paper's released code scales by, per channel.
STATISTICS = {
    CIFAR10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    CIFAR100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("cls", BOTH)
def test_released_preprocessing(cls, tmp_path, golden_clips):
    """Scaled by the data set's mean and standard deviation, then resized by torch's bilinear interpolation."""
    write_cifar(tmp_path, cls)
    data = cls(root=str(tmp_path), preprocessing="released")
    image = data.train.image(3)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[cls])
    pixels = (torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 - mean) / std
    for clip in golden_clips.values():
        size = clip.image_size
        assert size == 64
        expected = torch.nn.functional.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(data.transform(clip.preprocess)(image), expected)


def test_clips_own_preprocessing_is_the_default(embedded_clip):
    data = CIFAR10()
    assert data.transform(embedded_clip.preprocess) is embedded_clip.preprocess
    keys = [cls(preprocessing=p).transform_key() for cls in BOTH for p in ("clip", "released")]
    assert keys[0] == keys[2] == "clip" and len(set(keys)) == 3


@pytest.mark.parametrize("cls", BOTH)
def test_missing_files_are_named(cls, tmp_path):
    with pytest.raises(UserError) as error:
        cls(root=str(tmp_path)).train  # noqa: B018
    for part in ("data.root", FILES[cls][0], str(tmp_path), "data.download=true"):
        assert part in str(error.value)
    folder = write_cifar(tmp_path, cls)
    (folder / FILES[cls][1][0]).unlink()
    with pytest.raises(UserError, match=f"has no file '{FILES[cls][1][0]}'; valid is .* Python version"):
        cls(root=str(tmp_path)).train  # noqa: B018


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"labels": [0]},
        {"data": np.zeros((1, 3072), np.uint8)},
        {"data": np.zeros((1, 3072)), "labels": [0]},
        {"data": np.zeros((1, 3071), np.uint8), "labels": [0]},
        {"data": np.zeros(3072, np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["0"]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": 0},
    ],
)
def test_a_file_that_is_no_batch(content, tmp_path):
    folder = write_cifar(tmp_path, CIFAR10)
    (folder / "data_batch_2").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"data_batch_2 is no batch of CIFAR; valid is a pickle with 'data', uint8"):
        CIFAR10(root=str(tmp_path)).train  # noqa: B018


def test_other_class_names_are_refused(tmp_path):
    folder = write_cifar(tmp_path, CIFAR10)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES_10[::-1]}))
    with pytest.raises(UserError, match=r"batches\.meta does not list the class names of cifar10"):
        CIFAR10(root=str(tmp_path)).train  # noqa: B018


def test_the_cache_key_follows_the_images(tmp_path):
    folder = write_cifar(tmp_path, CIFAR10)
    first = CIFAR10(root=str(tmp_path)).cache_key()
    assert CIFAR10(root=str(tmp_path)).cache_key() == first
    batch = load_arrays(folder / "test_batch")
    batch["data"][3, 100] ^= 1
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    assert CIFAR10(root=str(tmp_path)).cache_key() != first


@pytest.mark.parametrize("cls", BOTH)
def test_download(cls, tmp_path, monkeypatch):
    """torchvision's own download and check of the archive, from this machine."""
    folder = write_cifar(tmp_path / "made", cls)
    archive = tmp_path / "offered" / TORCHVISION[cls].filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = str(tmp_path / "data")
    with serve(archive.parent) as address:
        monkeypatch.setattr(TORCHVISION[cls], "url", f"{address}/{archive.name}")
        monkeypatch.setattr(TORCHVISION[cls], "tgz_md5", "0" * 32)
        with pytest.raises(UserError, match=f"torchvision could not download {cls.__name__} "):
            cls(root=root, download=True).train  # noqa: B018
        monkeypatch.setattr(TORCHVISION[cls], "tgz_md5", md5(archive.read_bytes()).hexdigest())
        assert len(cls(root=root, download=True).test) == 20
    assert len(cls(root=root, download=True).test) == 20  # there is no server any more


# Pickles


class Harm:
    """What a malicious pickle holds: loading it calls a function."""

    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_arrays(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_malicious_pickle_does_nothing(protocol, tmp_path):
    """The file would make a file; torchvision's reader runs it, ours names what it asks for."""
    mark = tmp_path / "mark"
    harm = Harm(os.mkdir, str(mark))
    for number, content in enumerate([harm, {"data": harm}, [np.array([harm], dtype=object)], {harm: 1}]):
        message = refused(tmp_path / "file", pickle.dumps(content, protocol))
        assert f"asks for {os.mkdir.__module__}.mkdir, which is refused" in message, number
    assert not mark.exists()
    pickle.loads(pickle.dumps(harm, protocol))
    assert mark.exists()


@pytest.mark.parametrize("function", [builtins.eval, builtins.exec, builtins.getattr, builtins.__import__, np.load])
def test_no_function_can_be_named(function, tmp_path):
    assert f".{function.__name__}, which is refused" in refused(tmp_path / "file", pickle.dumps(Harm(function, "1")))


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray\n(I1000000000000\ntR.",  # a huge array, by numpy's own constructor
        b"cnumpy\nndarray\n.",  # the constructor itself
        b"cnumpy\ndtype\n(}S'__code__'\nI1\nsb.",  # attributes given to a name
        b"cnumpy\ndtype\n(NS'x'\ntb.",
        b"cnumpy\ndtype\n(S'O'\ntR.",  # a number format alone
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'12345678'\ntR.",  # an object at an address
        b"c_codecs\nencode\n(S'0102'\nS'hex'\ntR.",  # another codec
        b"c__builtin__\nbytes\n(I1000000000000\ntR.",
        b"Pelsewhere\n.",  # something outside of the file
        pickle.dumps({1, 2}),
        pickle.dumps(np.zeros(2, dtype=[("a", "i4")])),
        pickle.dumps(np.arange(100))[:-30],
        b"no pickle",
        b"",
    ],
)
def test_what_is_no_array_is_refused(content, tmp_path):
    refused(tmp_path / "file", content)


def test_a_list_that_holds_itself(tmp_path):
    itself: list = []
    itself.append(itself)
    refused(tmp_path / "file", pickle.dumps(itself))


def test_a_part_that_occurs_often_is_read_once(tmp_path):
    """Sixty levels of ten references each: 10**60 values if every one were walked through."""
    nested: list = [1]
    for _ in range(60):
        nested = [nested] * 10
    (tmp_path / "file").write_bytes(pickle.dumps(nested))
    found = load_arrays(tmp_path / "file")
    for _ in range(60):
        assert len(found) == 10
        found = found[0]
    assert found == [1]


kinds = st.one_of(
    arrays.integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?", sizes=(32, 64)),
    arrays.boolean_dtypes(),
    arrays.unicode_string_dtypes(max_len=4),
    arrays.byte_string_dtypes(max_len=4),
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.one_of(st.text(), st.binary()), inner)
    ),
    max_leaves=10,
)


@given(arrays.arrays(kinds, arrays.array_shapes(min_dims=0, min_side=0)), st.booleans(), st.sampled_from(PROTOCOLS))
def test_arrays_come_back(tmp_path_factory, array, fortran, protocol):
    array = np.asfortranarray(array) if fortran else array
    path = tmp_path_factory.getbasetemp() / "array"
    path.write_bytes(pickle.dumps([array, array], protocol))
    for found in load_arrays(path):
        assert found.dtype == array.dtype and found.shape == array.shape
        assert found.tobytes() == array.tobytes()


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_values_come_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain"
    path.write_bytes(pickle.dumps(value, protocol))
    assert load_arrays(path) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_and_scalars_come_back(protocol, tmp_path):
    """FedBN's lists hold arrays of texts, which numpy may have made arrays of objects."""
    pairs = (np.array([["a/b.jpg", "c"], ["d", 1]], dtype=object), [np.str_("bird"), np.int64(3), np.float32(0.5)])
    (tmp_path / "file").write_bytes(pickle.dumps(pairs, protocol))
    table, scalars = load_arrays(tmp_path / "file")
    assert table.dtype == object and table.tolist() == [["a/b.jpg", "c"], ["d", 1]]
    assert scalars == ["bird", 3, 0.5] and [type(value) for value in scalars] == [str, int, float]


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote CIFAR's own: texts of bytes, and numpy's old module name; opcode by opcode."""
    rows, width = data.shape
    contents = data.tobytes()
    state = b"(I1\n(I%d\nI%d\nt" % (rows, width)  # version and shape, then the number format
    state += b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntb"
    state += b"I00\nT" + len(contents).to_bytes(4, "little") + contents + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR" + state
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + b"".join(b"K%c" % label for label in labels) + b"eu."


def test_a_pickle_of_python_2(tmp_path):
    data = np.array([[0, 1, 2], [253, 254, 255]], dtype=np.uint8)
    (tmp_path / "file").write_bytes(python2_batch(data, [1, 2]))
    found = load_arrays(tmp_path / "file")
    assert found["data"].dtype == np.uint8 and found["data"].tolist() == data.tolist()
    assert found["labels"] == [1, 2]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing cannot be read: No such file"):
        load_arrays(tmp_path / "nothing")
