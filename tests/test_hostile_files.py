"""Files and surroundings that would hang, exhaust or crash a run: each is one sentence, or is survived.

What is a full disk to a program is here a limit on the size of its files.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_helpers import COMMON, colours, extract, noise, only_file
from PIL import Image

from fedmoe.config import FeatureConfig
from fedmoe.data import Split
from fedmoe.data.base import check_dataset
from fedmoe.data.sets.coop_layout import _load
from fedmoe.data.sets.flowers102 import read_labels
from fedmoe.data.sets.image_files import file_split, find_folder, images_in, subfolders
from fedmoe.data.sets.image_folder import ImageFolder
from fedmoe.errors import UserError
from fedmoe.features.cache import Block, FeatureCache
from fedmoe.io import DamagedFile, open_regular, read_jsonl, read_regular, write_tensors_atomic
from fedmoe.readers.array_pickle import load_arrays
from fedmoe.readers.weights import read_weights


@pytest.fixture
def clip(embedded_clip):
    return embedded_clip


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(30 * 10**9)


READERS = [read_jsonl, load_arrays, _load, read_labels]


@pytest.mark.parametrize("place", [pipe, device, sparse])
@pytest.mark.parametrize("read", READERS)
def test_a_file_that_would_block_or_never_end_is_refused(tmp_path: Path, place, read) -> None:
    place(tmp_path / "x")
    with pytest.raises(UserError, match=r"not a regular file|30,000,000,000 bytes exceed the limit|is missing"):
        read(tmp_path / "x")


@pytest.mark.parametrize("place", [pipe, device])
def test_weights_and_cache_files_are_regular(tmp_path: Path, place, caplog: pytest.LogCaptureFixture) -> None:
    place(tmp_path / "w")
    with pytest.raises(UserError, match="it is not a regular file"):
        read_weights(tmp_path / "w")
    cache = FeatureCache(str(tmp_path), {"a": 1})
    place(cache.path)
    assert cache.load(3, (2,)) is None and "it is not a regular file" in caplog.text


def test_what_is_regular(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    for path, most, number in (("x", 4, errno.EFBIG), (".", 9, errno.EISDIR), ("a\0b", 9, errno.ENOENT)):
        with pytest.raises(OSError) as error:
            open_regular(tmp_path / path, most)
        assert error.value.errno == number
    with pytest.raises(DamagedFile, match="it is not a regular file"):
        read_jsonl("/dev/null")


@pytest.mark.parametrize("place", [pipe, device])
def test_a_listed_image_that_is_no_regular_file_is_damaged(clip, tmp_path: Path, place) -> None:
    place(tmp_path / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    split = file_split([str(tmp_path / "a.png"), str(tmp_path / "b.png"), str(tmp_path / ("x" * 300))], [0, 0, 0])
    config = FeatureConfig(str(tmp_path / "cache"), damaged="skip")
    assert extract(clip, split, config).abs().sum(dim=1).gt(0).tolist() == [False, True, False]


def test_a_safetensors_header_that_takes_minutes_is_refused(tmp_path: Path) -> None:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % i for i in range(100_000)) + b"}"
    for text, length in ((header, len(header)), (b"{", 2**60)):
        (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + text)
        with pytest.raises(UserError, match="truncated, damaged or of no known format"):
            read_weights(tmp_path / "w")


def test_labels_that_unpack_to_far_more_are_refused(tmp_path: Path) -> None:
    from scipy.io import savemat

    savemat(tmp_path / "l.mat", {"labels": np.ones((1, 120_000_000), np.uint8)}, do_compression=True)
    with pytest.raises(UserError, match="exceed the limit of 100,000"):
        read_labels(tmp_path / "l.mat")


def test_links_that_lead_nowhere_or_to_themselves_are_left_out(tmp_path: Path) -> None:
    for name in ("self", "s.png"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert subfolders(tmp_path) == [] and images_in(tmp_path) == []


def test_an_overlong_root_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"data\.root is '/x+', but there is no folder"):
        find_folder("/" + "x" * 280, "", "images")


def test_a_class_whose_name_is_not_text_is_refused(tmp_path: Path) -> None:
    for name in (b"cat", b"c\xff"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        for i in range(3):
            Image.new("RGB", (9, 9)).save(os.path.join(os.fsdecode(folder), f"{i}.png"))
    with pytest.raises(UserError, match="which is not text"):
        check_dataset(ImageFolder(root=str(tmp_path)))


def test_a_crafted_cache_file_is_not_used(clip, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its checksum is right, but the rest is not what this program writes."""
    config = FeatureConfig(str(tmp_path / "cache"), batch_size=4)
    good = extract(clip, noise(3), config)
    path = Path(only_file(config))
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        texts = file.metadata()
    for block in (
        Block(torch.arange(3), torch.ones(3, 7)),
        Block(torch.arange(3), torch.ones(3)),
        Block(torch.tensor([0, 1, 9]), torch.ones(3, 128)),
        Block(torch.tensor([0, 1, -1]), torch.ones(3, 128)),
    ):
        cache = FeatureCache(config.cache_dir, json.loads(texts["description"]))
        assert cache.path == path
        cache.store(block)
        assert torch.equal(extract(clip, noise(3), config), good)
    assert caplog.text.count("cannot be used") == 4


# A disk without room


def limited(script: str, *args: object, **limits: int) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)


def test_tensors_that_do_not_fit_are_an_os_error(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors_atomic(path, {"a": torch.zeros(3)})
    before = path.read_bytes()
    script = """
import sys, torch
from fedmoe.io import write_tensors_atomic
try:
    write_tensors_atomic(sys.argv[1], {"a": torch.ones(100_000)})
except OSError as error:
    print(error.errno)
"""
    assert limited(script, path, RLIMIT_FSIZE=10_000).stdout == f"{errno.EFBIG}\n"
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["t.safetensors"]


def test_a_cache_without_room_is_one_sentence_and_continues_once_there_is(embedded_clip, tmp_path: Path) -> None:
    script = (
        COMMON
        + """
from fedmoe.errors import UserError
try:
    run(image)
except UserError as error:
    print(error)
"""
    )
    result = limited(script, tmp_path / "cache", RLIMIT_FSIZE=6_000)  # a part has 2.5 kB, the whole 11
    assert result.stderr == "" and result.stdout.startswith(f"features.cache_dir is '{tmp_path / 'cache'}'")
    assert os.strerror(errno.EFBIG) in result.stdout and "the same command continues from there" in result.stdout
    seen: list[int] = []
    split = Split(colours().labels, lambda i: seen.append(i) or colours().image(i))
    found = extract(embedded_clip, split, FeatureConfig(str(tmp_path / "cache"), 4), ("x", "train"))
    assert seen == []  # all parts were kept
    assert torch.equal(found, extract(embedded_clip, colours(), FeatureConfig(str(tmp_path / "b"), 4), ("x", "train")))
