"""Data sets on disk that cannot be used: split files, lists, batches, annotations, folders, images."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from fedmoe import cli
from malformed.data_sets import BATCH, KINDS, LABELS, LIST, NAMES, PETS, SPLIT, batch, listed, paint, table
from malformed.helpers import EMBEDDED, Refused, each

PARTITION = ("partition", "--partition=IID", "--federation.clients=2")
CHECK = ("data", "check")


@dataclass(frozen=True)
class Spoilt:
    """A data set of a kind, what is done to it below the current folder, and what the sentence must say."""

    name: str
    kind: str
    spoil: Callable[..., Any]
    words: tuple[str, ...]
    command: tuple[str, ...] = CHECK

    def check(self, refused: Refused) -> None:
        KINDS[self.kind].write(Path("data"))
        self.spoil()
        refused([*self.command, *KINDS[self.kind].args], *self.words)


def writes(path: str, content: bytes | str) -> Callable[[], Any]:
    return lambda: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def cuts(path: str, share: float) -> Callable[[], Any]:
    def cut() -> None:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: int(share * len(whole))])

    return cut


# CoOp's split files


def row(value: Any, part: str = "train", number: int = 0) -> str:
    rows = table()
    rows[part][number] = value
    return json.dumps(rows)


def splits() -> list[Spoilt]:
    at = "entry 0 of 'train',"
    contents: dict[str, tuple[str | bytes, str]] = {
        "empty": ("", "is not JSON"),
        "no UTF-8": (b"\xff\xfe\x00", "is not JSON"),
        "deep": ("[" * 100_000, "is not JSON"),
        "deep objects": ('{"a":' * 100_000, "is not JSON"),
        "digits": ('{"train": [' + "9" * 5000 + "]}", "is not JSON"),
        "a page of HTML": ("<html>404</html>", "is not JSON"),
        "null": ("null", "holds null"),
        "a list": ("[]", "holds a list"),
        "a text": ('"train"', "holds a text"),
        "a number": ("3", "holds a number"),
        "an empty object": ("{}", "has no 'train'"),
        "no test": (json.dumps({**table(), "test": None}), "has null as 'test'"),
        "numbers as a part": (json.dumps({**table(), "val": 3}), "has a number as 'val'"),
        "an empty row": (row([]), f"{at} is []"),
        "a long row": (row(["a.png", 0, "banded", 1]), f"{at} is"),
        "an object as a row": (row({"path": "a.png"}), f"{at} is"),
        "null as a row": (row(None), f"{at} is null"),
        "a list as a path": (row([["a"], 0, "banded"]), f"{at} is"),
        "a number as a path": (row([3, 0, "banded"]), f"{at} is"),
        "a fraction as a label": (row(["a.png", 0.5, "banded"]), f"{at} is"),
        "a whole fraction as a label": (row(["a.png", 0.0, "banded"]), f"{at} is"),
        "no number as a label": (row(["a.png", float("nan"), "banded"]), f"{at} is"),
        "infinity as a label": (row(["a.png", float("inf"), "banded"]), f"{at} is"),
        "null as a label": (row(["a.png", None, "banded"]), f"{at} is"),
        "a negative label": (row(["a.png", -1, "banded"]), f"{at} has the label -1"),
        "a huge label": (row(["a.png", 10**30, "striped"]), "none with label 2"),
        "a label of 64 bits": (row(["a.png", 2**63, "striped"]), "none with label 2"),
        "null as a name": (row(["a.png", 0, None]), f"{at} is"),
        "a blank name": (row(["a.png", 0, " \n"]), f"{at} has an empty class name"),
        "half a character as a name": (row(["a.png", 0, "\ud800"]), at),
        "half a character in a path": (row(["\udfff.png", 0, "banded"]), at),
        "zero in a path": (row(["a\0b.png", 0, "banded"]), f"{at} has the path"),
        "the parent": (row(["..", 0, "banded"]), f"{at} has the path"),
        "a way out": (row(["banded/../../../secret.png", 0, "banded"]), f"{at} has the path"),
        "a way out with backslashes": (row(["banded\\..\\..\\secret.png", 0, "banded"]), f"{at} has the path"),
        "an absolute path": (row(["/etc/passwd", 0, "banded"]), f"{at} has the path"),
        "a path of a share": (row(["\\\\host\\share\\a.png", 0, "banded"]), f"{at} has the path"),
        "a path of a drive": (row(["C:/a.png", 0, "banded"]), f"{at} has the path"),
        "an empty path": (row(["", 0, "banded"]), f"{at} has the path"),
        "a path twice": (row(table()["test"][0]), "lists"),
        "two names": (row(["a.png", 0, "blotchy"]), "calls label 0"),
    }
    cases = [Spoilt(name, "dtd", writes(SPLIT, text), (SPLIT, words)) for name, (text, words) in contents.items()]
    cases += [Spoilt(f"cut at {s}", "dtd", cuts(SPLIT, s), (SPLIT, "is not JSON")) for s in (0.01, 0.3, 0.7, 0.99)]
    last = Spoilt("by partition", "dtd", writes(SPLIT, "{}"), (SPLIT, "has no 'train'"), PARTITION)
    no_images = Spoilt("no images", "dtd", lambda: shutil.rmtree("data/dtd/images"), ("there is no folder",))
    a_file = Spoilt("a file as the folder", "dtd", a_file_instead("data/dtd"), ("there is no folder",))
    no_rows = Spoilt("no rows", "dtd", writes(SPLIT, '{"train": [], "val": [], "test": []}'), ("no training example",))
    return [*cases, last, no_images, a_file, no_rows]


def a_file_instead(path: str) -> Callable[[], Any]:
    def replace() -> None:
        shutil.rmtree(path)
        Path(path).write_text("in the way")

    return replace


# Where there is no split file


def annotation_files() -> list[Spoilt]:
    lines = {
        "a word": "Abyssinian",
        "no number": "Abyssinian 1 1 1",
        "class 0": "Abyssinian_1 0 1 1",
        "a negative class": "Abyssinian_1 -1 1 1",
        "class of words": "Abyssinian_1 one 1 1",
        "a superscript": "Abyssinian_1 ² 1 1",
        "three fields": "Abyssinian_1 1 1",
        "five fields": "Abyssinian_1 1 1 1 1",
        "digits": f"Abyssinian_1 {'9' * 5000} 1 1",
    }
    cases = [Spoilt(f"pets: {n}", "pets", writes(PETS, f"{t}\n"), (PETS, "line 1, is")) for n, t in lines.items()]
    labels: dict[str, Any] = {
        "no labels": {"other": np.ones(3)},
        "fractions": {"labels": np.array([[1.5, 2.0]])},
        "zero": {"labels": np.array([[0, 1]])},
        "negative": {"labels": np.array([[-1, 1]])},
        "texts": {"labels": np.array(["a", "b"])},
        "none": {"labels": np.zeros((1, 0), dtype=np.uint8)},
        "unknown": {"labels": np.array([[103] * 10])},
        "beyond 64 bits": {"labels": np.array([[2**64 - 1] * 10], dtype=np.uint64)},
    }
    for name, content in labels.items():
        cases.append(Spoilt(f"flowers: {name}", "flowers", lambda content=content: savemat(LABELS, content), (LABELS,)))
    names = {"a list": "[]", "a word": '{"one": "rose"}', "cut": '{"1": "ro', "deep": "[" * 100_000, "null": "null"}
    for name, text in names.items():
        cases.append(Spoilt(f"flowers: names {name}", "flowers", writes(NAMES, text), (NAMES, "cannot be used")))
    return [
        *cases,
        Spoilt("pets: empty", "pets", writes(PETS, ""), ("oxford_pets",)),
        Spoilt("pets: no text", "pets", writes(PETS, b"\xff\xfe"), (PETS, "cannot be read")),
        Spoilt(
            "pets: way out",
            "pets",
            writes(PETS, "../../x_1 1 1 1\n" * 1 + "../../x_2 1 1 1\n../../x_3 1 1 1\n"),
            ("..",),
        ),
        Spoilt("pets: a folder", "pets", lambda: (Path(PETS).unlink(), Path(PETS).mkdir()), (PETS, "Is a directory")),
        Spoilt("pets: missing", "pets", lambda: Path(PETS).unlink(), (PETS, "No such file")),
        Spoilt("flowers: cut", "flowers", cuts(LABELS, 0.5), (LABELS, "no readable 'labels'")),
        Spoilt("flowers: empty", "flowers", writes(LABELS, b""), (LABELS, "no readable 'labels'")),
        Spoilt("flowers: other", "flowers", writes(LABELS, b"MATLAB 5.0" + b"\0" * 500), (LABELS, "no readable")),
        Spoilt("flowers: pickle", "flowers", writes(LABELS, pickle.dumps([1])), (LABELS, "no readable 'labels'")),
    ]


# FedBN's lists and CIFAR's batches; what pickles may try is in test_pickles.py


def lists() -> list[Spoilt]:
    paths, names = listed()

    def with_path(text: Any) -> Any:
        return [text, *paths[1:].tolist()], names.tolist()

    contents: dict[str, tuple[Any, str]] = {
        "null": (None, "does not hold"),
        "one column": ((paths,), "does not hold"),
        "three columns": ((paths, names, names), "does not hold"),
        "of other lengths": ((paths, names[:-1]), "does not hold"),
        "a text": ("ab", "does not hold"),
        "a dictionary": ({0: paths, 1: names}, "does not hold"),
        "numbers as names": ((paths, np.arange(len(names))), "does not hold"),
        "bytes as paths": (([p.encode() for p in paths], names), "does not hold"),
        "null as a path": (with_path(None), "does not hold"),
        "an unknown class": ((paths, np.array(["bicycle", *names[1:]])), "names the class 'bicycle'"),
        "an empty class": ((paths, np.array(["", *names[1:]])), "names the class ''"),
        "no data": (([], []), "no training example"),
        "a way out": (with_path("office_caltech_10/../../etc/passwd"), "does not lie below"),
        "a way out behind": (with_path("a/b/.."), "does not lie below"),
        "an absolute path": (with_path("/etc/passwd"), "does not lie below"),
        "a drive": (with_path("C:\\a.jpg"), "does not lie below"),
        "the folder": (with_path("office_caltech_10/"), "does not lie below"),
        "an empty path": (with_path(""), "does not lie below"),
        "zero": (with_path("amazon/bike/a\0.jpg"), "does not lie below"),
        "half a character": (with_path("amazon/bike/\ud800.jpg"), "does not lie below"),
    }
    del contents["no data"]  # a domain may have no example of a part: see the partition
    cases = [
        Spoilt(f"list: {name}", "office", writes(LIST, pickle.dumps(content)), (LIST, words))
        for name, (content, words) in contents.items()
    ]
    cases += [Spoilt(f"list cut at {s}", "office", cuts(LIST, s), (LIST, "no")) for s in (0.0, 0.2, 0.6, 0.99)]
    return [
        *cases,
        Spoilt("list: missing", "office", lambda: Path(LIST).unlink(), ("1 of 8 lists missing", "amazon_train.pkl")),
        Spoilt("list: a folder", "office", lambda: (Path(LIST).unlink(), Path(LIST).mkdir()), ("amazon_train.pkl",)),
        Spoilt("list: by partition", "office", writes(LIST, b""), (LIST,), PARTITION),
    ]


def batches() -> list[Spoilt]:
    whole = batch()
    no_batch = "is no batch of CIFAR"
    contents: dict[str, tuple[Any, str]] = {
        "null": (None, no_batch),
        "a list": ([whole], no_batch),
        "no data": ({"labels": whole["labels"]}, no_batch),
        "no labels": ({"data": whole["data"]}, no_batch),
        "fine labels": ({"data": whole["data"], "fine_labels": whole["labels"]}, no_batch),
        "a row less": ({**whole, "data": whole["data"][1:]}, no_batch),
        "a column less": ({**whole, "data": whole["data"][:, 1:]}, no_batch),
        "flat": ({**whole, "data": whole["data"].reshape(-1)}, no_batch),
        "cubes": ({**whole, "data": whole["data"].reshape(20, 3, 1024)}, no_batch),
        "floats": ({**whole, "data": whole["data"].astype(np.float32)}, no_batch),
        "signed": ({**whole, "data": whole["data"].astype(np.int8)}, no_batch),
        "objects": ({**whole, "data": whole["data"].astype(object)}, no_batch),
        "lists": ({**whole, "data": whole["data"].tolist()}, no_batch),
        "bytes": ({**whole, "data": whole["data"].tobytes()}, no_batch),
        "an array of labels": ({**whole, "labels": np.array(whole["labels"])}, no_batch),
        "a fraction as a label": ({**whole, "labels": [0.5, *whole["labels"][1:]]}, no_batch),
        "true as a label": ({**whole, "labels": [True, *whole["labels"][1:]]}, no_batch),
        "a text as a label": ({**whole, "labels": ["0", *whole["labels"][1:]]}, no_batch),
        "a negative label": ({**whole, "labels": [-1, *whole["labels"][1:]]}, no_batch),
        "a huge label": ({**whole, "labels": [10**30, *whole["labels"][1:]]}, no_batch),
        "label 10": ({**whole, "labels": [10, *whole["labels"][1:]]}, "has the label 10"),
    }
    cases = [
        Spoilt(f"batch: {name}", "cifar", writes(BATCH, pickle.dumps(content)), (words,))
        for name, (content, words) in contents.items()
    ]
    for name, content in {"null": None, "a text": "ab", "other names": {"label_names": ["a"]}, "a list": [1]}.items():
        path = BATCH.replace("data_batch_1", "batches.meta")
        words = ("batches.meta does not list the class names",)
        cases.append(Spoilt(f"meta: {name}", "cifar", writes(path, pickle.dumps(content)), words))
    cases += [Spoilt(f"batch cut at {s}", "cifar", cuts(BATCH, s), (BATCH, "no")) for s in (0.0, 0.001, 0.5, 0.9999)]
    return [
        *cases,
        Spoilt("batch: missing", "cifar", lambda: Path(BATCH).unlink(), ("has no file 'data_batch_1'",)),
        Spoilt("batch: a folder", "cifar", lambda: (Path(BATCH).unlink(), Path(BATCH).mkdir()), ("data_batch_1",)),
        Spoilt("batch: by partition", "cifar", writes(BATCH, pickle.dumps(None)), (BATCH, no_batch), PARTITION),
    ]


# Folders of images


def folders() -> list[Spoilt]:
    def tree(change: Callable[[], Any], *words: str, command: tuple[str, ...] = CHECK, name: str) -> Spoilt:
        return Spoilt(f"folder: {name}", "folder", change, words, command)

    def hollow() -> None:
        for name in ("cat", "dog"):
            shutil.rmtree(f"data/{name}")
            Path(f"data/{name}").mkdir()

    def dangling() -> None:
        hollow()
        Path("data/cat/0.png").symlink_to("nowhere.png")

    def no_images() -> None:
        hollow()
        Path("data/cat/notes.txt").write_text("no image")
        Path("data/cat/.hidden.png").write_text("no image")
        Path("data/cat/folder.png").mkdir()

    def loop() -> None:
        hollow()
        shutil.rmtree("data/cat")
        Path("data/cat").symlink_to("../data")

    def mixed() -> None:
        paint(Path("data/train/cat/0.png"))
        paint(Path("data/test/dog/0.png"))

    split = (*CHECK, "--data=ImageFolder", "--data.layout=split")
    domains = (*CHECK, "--data=ImageFolder", "--data.layout=domains")
    return [
        tree(lambda: shutil.rmtree("data"), "data.root is 'data'", "no folder data", name="missing"),
        tree(a_file_instead("data"), "data.root is 'data'", "no folder data", name="a file"),
        tree(lambda: [shutil.rmtree(f"data/{n}") for n in ("cat", "dog")], "has no folder with images", name="empty"),
        tree(hollow, "has no folder with images", name="empty classes"),
        tree(dangling, "has no folder with images", name="links to nothing"),
        tree(no_images, "has no folder with images", name="other files"),
        tree(loop, "has no folder with images", name="a link to itself"),
        tree(lambda: None, "there is no folder data/train", name="no train", command=split),
        tree(
            lambda: paint(Path("data/train/cat/0.png")), "there is no folder data/test", name="no test", command=split
        ),
        tree(mixed, "The class 'dog' has images in data/test but none in data/train", name="untrained", command=split),
        tree(
            lambda: None,
            "data.layout is 'domains'",
            "did you mean data.layout=classes?",
            name="no domains",
            command=domains,
        ),
    ]


SAVED: dict[str, tuple[str, bytes]] = {
    "state empty": ("state.json", b""),
    "state a list": ("state.json", b"[]"),
    "state deep": ("state.json", b"[" * 100_000),
    "state of other files": ("state.json", b'{"_data_files": [{"filename": "../../etc/passwd"}], "_split": null}'),
    "info empty": ("dataset_info.json", b""),
    "info a list": ("dataset_info.json", b"[]"),
    "info of no features": ("dataset_info.json", b'{"features": 3}'),
    "info of unknown features": ("dataset_info.json", b'{"features": {"image": {"_type": "os.system"}}}'),
    "rows empty": ("data-00000-of-00001.arrow", b""),
    "rows of others": ("data-00000-of-00001.arrow", b"ARROW1\0\0" + b"\xff" * 64),
}


def saved() -> list[Spoilt]:
    words = ("data.root is 'data'", "which datasets cannot load")
    cases = [Spoilt(f"saved: {n}", "saved", writes(f"data/{f}", c), words) for n, (f, c) in SAVED.items()]
    rows = "data/data-00000-of-00001.arrow"
    return [*cases, Spoilt("saved: rows cut", "saved", cuts(rows, 0.5), words)]


# Images


def pixels(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def images() -> list[Spoilt]:
    """Half of a class's images spoilt, so that some of them are for training, and encoded first."""
    command = ("features", "fill", f"--config={EMBEDDED}", "--features.cache_dir=features")

    def spoilt(name: str, change: Callable[[bytes], bytes]) -> Spoilt:
        def spoil() -> None:
            Path("features").mkdir()
            for i in range(3):
                path = Path(f"data/cat/{i}.png")
                path.write_bytes(change(path.read_bytes()))

        return Spoilt(f"image: {name}", "folder", spoil, ("image_folder / train", "data/cat/"), command)

    return [
        spoilt("zero bytes", lambda whole: b""),
        spoilt("cut in the header", lambda whole: whole[:20]),
        spoilt("cut in the pixels", lambda whole: whole[: len(whole) // 2]),
        spoilt("a text", lambda whole: b"<html>404</html>"),
        spoilt("a pickle", lambda whole: pickle.dumps([1])),
        spoilt("flipped pixels", lambda whole: whole[:100] + bytes([whole[100] ^ 0xFF]) + whole[101:]),
        spoilt("a bomb", lambda whole: pixels(60_000, 60_000)),
        spoilt("beyond 32 bits", lambda whole: pixels(2**31 - 1, 2**31 - 1)),
        spoilt("no width", lambda whole: pixels(0, 10)),
        spoilt("a vector graphic", lambda whole: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
        spoilt(
            "PostScript", lambda whole: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"
        ),
    ]


FILES = {
    "images": images(),
    "CoOp's split files": splits(),
    "annotations": annotation_files(),
    "FedBN's lists": lists(),
    "CIFAR's batches": batches(),
    "folders of images": folders(),
    "Hugging Face's folders": saved(),
}


def test_there_are_many_cases() -> None:
    counts = {kind: len(cases) for kind, cases in FILES.items()}
    assert sum(counts.values()) >= 130, counts


UNREADABLE = {
    "a.yaml": ["fit", "--config=a.yaml"],
    SPLIT: [*CHECK, *KINDS["dtd"].args],
    LIST: [*CHECK, *KINDS["office"].args],
    BATCH: [*CHECK, *KINDS["cifar"].args],
    "w.pt": ["fit", "--clip.architecture=fedmoe-tiny", "--clip.weights=w.pt"],
    "m.json": ["fit", "--clip.model_config=m.json", "--clip.pretrained=null"],
    "runs/x/rounds.jsonl": ["report", "runs/x"],
}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("path", UNREADABLE)
def test_a_file_that_may_not_be_read(path: str, refused: Refused) -> None:
    for kind in ("dtd", "office", "cifar"):
        KINDS[kind].write(Path("data"))
    for name in UNREADABLE:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    counts = {"class_names": ["a"], "counts_train": [[1]], "counts_test": [[1]], "domains": None}
    Path("runs/x/partition.json").write_text(json.dumps(counts))
    Path(path).chmod(0)
    refused(UNREADABLE[path], path, "Permission denied")


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_cases_spoil_can_be_read(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KINDS[kind].write(Path("data"))
    assert cli.main([*PARTITION, *KINDS[kind].args]) == 0
    assert cli.main([*CHECK, *KINDS[kind].args]) in (0, 1)  # 1: sizes are not those of the paper


def test_no_image_is_given_to_another_program(here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript, where it is installed, run a PostScript program, whatever the file's ending."""
    (here / "bin").mkdir()
    (here / "bin" / "gs").write_text(f"#!/bin/sh\ntouch '{here}/canary'\n")
    (here / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}")
    next(case for case in images() if case.name == "image: PostScript").check(refused)


@each([case for cases in FILES.values() for case in cases])
def test_a_data_set_is_refused(case: Spoilt, refused: Refused) -> None:
    case.check(refused)
