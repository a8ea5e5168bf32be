"""Extraction: goes on where it was interrupted, shares its work with other runs, and with worker processes."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_helpers import (
    KEY,
    colours,
    counted,
    extract,
    extracted,
    files,
    in_process,
    noise,
    only_file,
    unreadable,
)
from PIL import Image
from rich.console import Console

from fedmoe.config import FeatureConfig, ViewsConfig
from fedmoe.data import Digits, Split
from fedmoe.errors import UserError
from fedmoe.features.cache import Block, FeatureCache
from fedmoe.features.encoders import clip_encoder, extract_features
from fedmoe.features.extraction import ImageReader, require_picklable
from fedmoe.features.progress import _Lines
from fedmoe.features.views import PlainInputs, ViewInputs


@pytest.fixture
def clip(embedded_clip):
    return embedded_clip


@pytest.fixture
def config(tmp_path):
    return FeatureConfig(cache_dir=str(tmp_path / "cache"), batch_size=4)


@pytest.mark.parametrize("chunk", [1, 8, 2048])
def test_an_interrupted_extraction_goes_on_behind_its_last_batch(clip, config, tmp_path, chunk):
    config = replace(config, chunk=chunk)
    whole = extract(clip, noise(30), replace(config, cache_dir=str(tmp_path / "other")))
    with pytest.raises(RuntimeError, match="power"):
        extract(clip, counted(30, fail=14)[0], config)
    split, image = counted(30)
    calls = []
    again = extracted(clip, split, config, KEY, lambda *call: calls.append(call))
    assert image.seen == list(range(12, 30)) and again.encoded == 18
    assert calls[0] == (12, 30) and calls[1] == (16, 30) and calls[-1] == (30, 30)
    assert torch.equal(again.values, whole)
    assert torch.equal(extract(clip, unreadable(30), config), whole)
    assert files(config) == [only_file(config)]


def test_ctrl_c_leaves_what_was_done(clip, config):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(clip, noise(6), config, KEY, stop)
    split, image = counted(6)
    extract(clip, split, config)
    assert image.seen == [4, 5]


def test_an_interruption_before_the_first_batch_leaves_nothing(clip, config):
    with pytest.raises(RuntimeError):
        extract(clip, counted(6, fail=2)[0], config)
    assert os.listdir(config.cache_dir) == []


def test_a_damaged_part_is_encoded_again(clip, config, caplog):
    config = replace(config, chunk=4)
    with pytest.raises(RuntimeError):
        extract(clip, counted(12, fail=8)[0], config)
    first = next(path for path in files(config) if "part-000000000" in path)
    with open(first, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    split, image = counted(12)
    found = extract(clip, split, config)
    assert image.seen == [0, 1, 2, 3, 8, 9, 10, 11] and first in caplog.text
    assert torch.equal(found, extract(clip, noise(12), replace(config, cache_dir=config.cache_dir + "-other")))


def test_a_killed_extraction_goes_on(embedded_clip, tmp_path):
    script = """
def dying(i):
    if i == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return image(i)
run(dying)
"""
    process = in_process(script, tmp_path / "cache")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    config, seen = FeatureConfig(str(tmp_path / "cache"), batch_size=4, chunk=4), []
    split = Split(colours().labels, lambda i: seen.append(i) or colours().image(i))
    found = extract(embedded_clip, split, config, ("x", "train"))
    assert seen == list(range(12, 20))
    assert torch.equal(found, extract(embedded_clip, colours(), FeatureConfig(str(tmp_path / "b"), 4), ("x", "train")))


def test_a_second_run_waits_for_the_first_and_takes_its_features(embedded_clip, tmp_path):
    """The second starts while the first is in its second batch. It may not clear what the first is working on."""
    script = """
from rich.console import Console
from fedmoe.features.command import clear
from fedmoe.errors import UserError
try:
    clear(FeatureConfig(sys.argv[1]), ["all"], Console())
except UserError as error:
    print(error, flush=True)
def say(done, total):
    print(done, total, flush=True)
found = run(image, say)
print(found.encoded, digest(found.values), flush=True)
"""
    config, others = FeatureConfig(str(tmp_path / "cache"), batch_size=4, chunk=4), []

    def image(i: int) -> Image.Image:
        if i == 5:
            others.append(in_process(script, tmp_path / "cache"))
            assert others[0].stdout is not None
            assert others[0].stdout.readline().startswith("A run is extracting ")
            assert others[0].stdout.readline() == "4 20\n"  # what the first has written down
        return colours().image(i)

    found = extracted(embedded_clip, Split(colours().labels, image), config, ("x", "train"))
    output, errors = others[0].communicate()
    assert found.encoded == 20 and others[0].returncode == 0, errors
    array = found.values.numpy()
    digest = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=16)
    digest.update(array.tobytes())
    assert output.splitlines()[-2:] == ["20 20", f"0 {digest.hexdigest()}"]
    assert "Another run is extracting the same features" in errors
    assert files(config) == [only_file(config)]


def test_two_processes_share_a_folder(tmp_path, caplog):
    """Both store the same file again and again, as where there are no locks; each load finds it whole."""
    script = """
import logging, sys, torch
from fedmoe.features.cache import Block, FeatureCache
logging.basicConfig(level=logging.WARNING)
cache = FeatureCache(sys.argv[1], {"images": ["x"]})
features = torch.arange(60_000, dtype=torch.float32).reshape(2000, 30)
print("ready", flush=True)
for _ in range(30):
    cache.store(Block(torch.arange(2000), features))
    assert torch.equal(cache.load(2000, (30,)).values, features)
"""
    cache, rounds = FeatureCache(str(tmp_path), {"images": ["x"]}), 0
    features = torch.arange(60_000, dtype=torch.float32).reshape(2000, 30)
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None or not rounds:
            cache.store(Block(torch.arange(2000), features))
            found = cache.load(2000, (30,))
            assert found is not None and torch.equal(found.values, features)
            rounds += 1
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert "cannot be used" not in errors + caplog.text and len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["plain", "views"])
def test_worker_processes_change_no_bit(clip, config, kind):
    state = torch.get_rng_state()
    inputs: PlainInputs | ViewInputs = PlainInputs(clip.preprocess)
    if kind == "views":
        inputs = ViewInputs(PlainInputs(clip.preprocess), ViewsConfig("cached", 3))
    found = [
        extract_features(
            clip_encoder(clip),
            noise(11),
            inputs,
            FeatureConfig(f"{config.cache_dir}-{workers}", 4, workers=workers, chunk=8),
            KEY,
        ).values
        for workers in (0, 2)
    ]
    assert torch.equal(*found) and found[0].abs().sum() > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_worker_that_dies_is_one_sentence_and_the_work_goes_on(clip, config):
    main = os.getpid()

    def dying(i: int) -> Image.Image:
        if i == 9 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return noise(12).image(i)

    split = Split(np.zeros(12, dtype=np.int64), dying)
    with pytest.raises(UserError, match=r"features\.workers = 1"):
        extract(clip, split, replace(config, workers=1))
    assert torch.equal(
        extract(clip, split, config), extract(clip, noise(12), replace(config, cache_dir=config.cache_dir + "-other"))
    )


def test_a_worker_that_dies_while_a_batch_is_encoded_is_the_same_sentence(clip, config):
    plain = clip_encoder(clip)

    def encode(images: torch.Tensor) -> torch.Tensor:
        for worker in [child.pid for child in multiprocessing.active_children() if child.pid]:
            os.kill(worker, signal.SIGKILL)
            os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # until it is dead; torch's signal says so here
        return plain.encode(images)

    inputs, deadly = PlainInputs(clip.preprocess), replace(plain, encode=encode)
    with pytest.raises(UserError, match=r"features\.workers = 1"):
        extract_features(deadly, noise(12), inputs, replace(config, workers=1), KEY)
    whole = replace(config, cache_dir=config.cache_dir + "-other")
    assert torch.equal(extract(clip, noise(12), config), extract(clip, noise(12), whole))


def test_workers_that_are_no_copies_need_a_data_set_that_can_be_sent(clip):
    inputs = PlainInputs(clip.preprocess)
    require_picklable(ImageReader(Digits().train, inputs, "digits / train"), 2)
    with pytest.raises(UserError, match=r"features\.workers is 2, but noise / train cannot be sent"):
        require_picklable(ImageReader(noise(2), inputs, "noise / train"), 2)


def test_progress_lines_tell_images_per_second():
    times = iter([0.0, 4.0, 12.0, 12.0, 32.0, 32.0])
    text = io.StringIO()
    lines = _Lines(Console(file=text, width=200), "image features", lambda: next(times))
    for done in (100, 1200, 3200):
        lines(done, 5000)
    assert text.getvalue().splitlines() == [
        "image features: 1,200 of 5,000, 100 images/s",
        "image features: 3,200 of 5,000, 100 images/s",
    ]
