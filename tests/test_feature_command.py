"""The features command: fill, list, inspect and clear the cache."""

from __future__ import annotations

import io
import os
from dataclasses import replace

import pytest
from feature_helpers import (
    Photos,
    counted,
    cut,
    extract,
    noise,
)
from rich.console import Console

from fedmoe.config import FeatureConfig, ViewsConfig
from fedmoe.errors import UserError
from fedmoe.features import command


@pytest.fixture
def clip(embedded_clip):
    return embedded_clip


@pytest.fixture
def config(tmp_path):
    return FeatureConfig(cache_dir=str(tmp_path / "cache"), batch_size=4)


def shown(function, *args) -> str:
    text = io.StringIO()
    function(*args, Console(file=text, width=200))
    return text.getvalue()


def test_the_command_fills_lists_inspects_and_clears(clip, config, tmp_path):
    photos = Photos(tmp_path)
    config = replace(config, damaged="skip", chunk=4)
    assert "Nothing in" in shown(command.show_list, config)
    cut(photos.files["train"][2])
    views = ViewsConfig("cached", 3)
    text = shown(command.fill, photos, clip, config, views)
    assert "photos / train: [12 x 3 x 128], 11 images in" in text and "1 damaged" in text
    assert "photos / test: [6 x 128], 6 images in" in text and "images/s" in text
    assert shown(command.fill, photos, clip, config, views).count("from the cache") == 2
    with pytest.raises(RuntimeError):
        extract(clip, counted(12, fail=9)[0], config)
    found = {entry.about.get("split", "noise"): entry for entry in command.entries(config)}
    train, test, noise_entry = found["train"], found["test"], found["noise"]
    assert (train.about["dataset"], train.about["images"], train.state) == ("photos", "12", "1 damaged")
    assert train.about["views"] == "3, scale 0.08 to 1, seed 0" and test.about["views"] == "none"
    assert train.bytes == os.path.getsize(train.path) and noise_entry.done == 8
    listed = shown(command.show_list, config)
    assert all(entry.key[:8] in listed for entry in found.values()) and "unfinished, 8 done" in listed
    text = shown(command.inspect, config, train.key[:8])
    assert "[11, 3, 128] float32, checksum right" in text and "damaged image 2" in text and clip.fingerprint in text
    shown(command.clear, config, [test.key, noise_entry.key[:10]])
    assert [entry.key for entry in command.entries(config)] == [train.key]
    assert not noise_entry.path.exists()
    shown(command.clear, config, ["all"])
    assert os.listdir(config.cache_dir) == []


def test_keys_that_fit_no_entry_or_several(clip, config):
    extract(clip, noise(2), config)
    extract(clip, noise(3), config)
    key = command.entries(config)[0].key
    with pytest.raises(UserError, match=r"No entry of .*; features list shows the keys\."):
        command.find(config, "zzzz")
    wrong = key[:7] + ("0" if key[7] != "0" else "1")
    with pytest.raises(UserError, match=f"did you mean '{key[:8]}'"):
        command.find(config, wrong)
    with pytest.raises(UserError, match="No entry"):
        command.find(config, "")
    with pytest.raises(UserError, match="at least one key"):
        shown(command.clear, config, [])


def test_files_of_another_version_are_listed_as_such(config):
    os.makedirs(config.cache_dir)
    with open(config.cache_dir + "/features-0123.safetensors", "wb") as file:
        file.write(b"not this format")
    assert [entry.state for entry in command.entries(config)] == ["cannot be read"]
    assert "cannot be used" in shown(command.inspect, config, "0123")
    shown(command.clear, config, ["0123"])
    assert os.listdir(config.cache_dir) == []
