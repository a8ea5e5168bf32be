"""What the tests of image features share: small data sets that count, fail and break."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fedmoe.data import Split
from fedmoe.data.base import DataSet, RawData
from fedmoe.features.encoders import clip_encoder, extract_features
from fedmoe.features.views import PlainInputs

KEY = ("noise", "train")


def noise(count: int) -> Split:
    """Images of noise, of different sizes and modes."""

    def image(i: int) -> Image.Image:
        pixels = np.random.Generator(np.random.PCG64(i)).integers(0, 256, (40 + i, 52, 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert("L" if i % 3 == 2 else "RGB")

    return Split(np.zeros(count, dtype=np.int64), image)


def unreadable(count: int) -> Split:
    def image(i: int) -> Image.Image:
        raise AssertionError("the features should come from the cache")

    return Split(np.zeros(count, dtype=np.int64), image)


def extracted(clip, split, config, key=KEY, progress=None):
    return extract_features(clip_encoder(clip), split, PlainInputs(clip.preprocess), config, key, progress)


def extract(*args):
    return extracted(*args).values


def paths_of(split: Split) -> Sequence[str]:
    """The files of a split's images, which must lie in files."""
    assert split.paths is not None
    return split.paths


class Counting:
    """An image function that notes what is asked for, and fails where it is told to."""

    def __init__(self, split: Split, fail: int | None = None) -> None:
        self.inner, self.fail = split.image, fail
        self.seen: list[int] = []

    def __call__(self, i: int) -> Image.Image:
        if i == self.fail:
            raise RuntimeError("the power went out")
        self.seen.append(i)
        return self.inner(i)


def counted(count: int, fail: int | None = None) -> tuple[Split, Counting]:
    split = noise(count)
    image = Counting(split, fail)
    return Split(split.labels, image), image


def files(config):
    return sorted(os.path.join(root, name) for root, _, names in os.walk(config.cache_dir) for name in names)


def only_file(config):
    (name,) = os.listdir(config.cache_dir)
    return os.path.join(config.cache_dir, name)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


class Photos(DataSet):
    """Noise as files: 12 training images of 3 classes, 6 test images."""

    name = "photos"

    def __init__(self, folder) -> None:
        self.folder = folder
        self.files = {
            part: [folder / f"{part}{i:02d}.png" for i in range(n)] for part, n in (("train", 12), ("test", 6))
        }
        for paths in self.files.values():
            for i, path in enumerate(paths):
                noise(12).image(i).save(path)

    def _read(self) -> RawData:
        def split(part: str) -> Split:
            paths = self.files[part]
            labels = np.arange(len(paths)) % 3
            return Split(labels, lambda i: Image.open(paths[i]), paths=[str(path) for path in paths])

        return RawData(("a", "b", "c"), (), split("train"), split("test"))

    def _source_key(self) -> str:
        return "photos"


COMMON = """
import os, signal, sys
import numpy as np, torch
from PIL import Image
from fedmoe.config import ClipConfig, FeatureConfig
from fedmoe.data import Split
from fedmoe.features.encoders import clip_encoder, extract_features
from fedmoe.features.views import PlainInputs, digest
from fedmoe.models.clip import FrozenCLIP
torch.set_num_threads(1)
clip = FrozenCLIP.load(ClipConfig(architecture="fedmoe-tiny", pretrained="glyphs"))
encoder, inputs = clip_encoder(clip), PlainInputs(clip.preprocess)
def image(i):
    return Image.new("RGB", (40, 40), (i, 2 * i, 255 - i))
def run(image, progress=None):
    config = FeatureConfig(sys.argv[1], batch_size=4, chunk=4)
    return extract_features(encoder, Split(np.zeros(20, int), image), inputs, config, ("x", "train"), progress)
"""


def in_process(script: str, *args: object) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMON + script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def colours(count: int = 20) -> Split:
    return Split(np.zeros(count, dtype=np.int64), lambda i: Image.new("RGB", (40, 40), (i, 2 * i, 255 - i)))
