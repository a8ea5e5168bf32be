"""Image features: each image, or each of its views, is encoded once by the frozen CLIP and the result kept on disk.

What names a cache file is everything that decides its contents: the encoder (kind of features, architecture, weights,
precision), the preprocessing, the views, the images and their order, the kind of device, and the format of the file.
An image that could not be read is tried again each time.

Shape letters: n images of a split, V views, H and W height and width in pixels, M places of an image, d feature width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmoe.config import FeatureConfig, ViewsConfig
from fedmoe.data.base import DataSet, Split
from fedmoe.errors import some
from fedmoe.features.cache import FeatureCache
from fedmoe.features.extraction import Encoder, Extraction, ImageReader, Progress
from fedmoe.features.views import Inputs, PlainInputs, ReadOnlyInputs, Stamp, Stamped, ViewInputs
from fedmoe.models.image_tower import ImageTower
from fedmoe.models.spatial import SpatialEncoder

if TYPE_CHECKING:
    from fedmoe.models.clip import FrozenCLIP

FORMAT_VERSION = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a split.

    Attributes:
        values: [n, d] float32 on the CPU ([n, M, d] of places), [n, V, ...] of views; zeros for an image that cannot be
            read.
        damaged: names of the images that cannot be read, by index.
        encoded, seconds: images that were not in the cache, and the time that all took.
        file: where they are kept.
    """

    values: Tensor
    damaged: Mapping[int, str] = field(default_factory=dict)
    encoded: int = 0
    seconds: float = 0.0
    file: str = ""


def clip_encoder(clip: FrozenCLIP) -> Encoder:
    """CLIP's pooled image features [b, d], on the device where its parameters are."""
    device = next(clip.parameters()).device
    return Encoder("global", clip.fingerprint, clip.encode_image, (clip.feature_dim,), device)


def spatial_encoder(clip: FrozenCLIP) -> Encoder:
    """Features [b, M, d] of the image's M places, M times as much to keep: 200 kB an image of RN50's.

    Raises:
        UserError: as ``SpatialEncoder``.
    """
    encode = SpatialEncoder(clip)
    return replace(clip_encoder(clip), name="spatial", encode=encode, shape=encode.shape)


def token_encoder(clip: FrozenCLIP, first: int, dtype: torch.dtype = torch.float32) -> Encoder:
    """The tokens that enter block ``first`` of a VisionTransformer [b, N, w]: 605 kB an image of ViT-B/16's in float32.

    Raises:
        UserError: as ``ImageTower``.
    """
    tower = ImageTower(clip)

    def encode(images: Tensor) -> Tensor:
        return tower.lower(images, first)

    shape = (tower.tokens, tower.width)
    name = f"tokens{first}" + ("" if dtype == torch.float32 else f"-{str(dtype).removeprefix('torch.')}")
    return replace(clip_encoder(clip), name=name, encode=encode, shape=shape, dtype=dtype)


def read_only_encoder() -> Encoder:
    """No features: [b, 0]. Extracting them tells, and remembers, which images can be read."""
    return Encoder("none", "", lambda inputs: inputs, (0,), torch.device("cpu"))


def extract_features(
    encoder: Encoder,
    split: Split,
    inputs: Inputs,
    cfg: FeatureConfig,
    key_parts: Sequence[str],
    progress: Progress | None = None,
    *,
    name: str = "",
    about: Mapping[str, str] | None = None,
) -> Features:
    """The features of all images of a split, from the cache or else from the encoder.

    Args:
        inputs: what the encoder gets of an image.
        key_parts: name the images, for instance ``(dataset.cache_key(), "train")``.
        progress: called as ``progress(images done, n)`` after each batch; once with (n, n) on a cache hit.
        name: of the split, for messages.
        about: kept with the features for whoever looks into the cache.

    Raises:
        UserError: an image is damaged and ``features.damaged`` is stop; no image can be read; the cache folder cannot
            be written; or a feature is not finite.
    """
    start, count, report = time.perf_counter(), len(split), progress or (lambda done, total: None)
    about = {"images": str(count), "views": _views_text(inputs), **(about or {})}
    cache = FeatureCache(cfg.cache_dir, describe(encoder, inputs, key_parts, count), about)
    shape = (inputs.config.count, *encoder.shape) if isinstance(inputs, ViewInputs) else encoder.shape
    state = Extraction(ImageReader(split, inputs, name or " / ".join(key_parts)), encoder, shape, cfg, report)
    block = cache.load(count, shape)
    if block is None:
        with cache.work(lambda done: report(min(done, count), count)):
            block = cache.load(count, shape, warn=False)  # another run may have made it in the meantime
            if block is None:
                for part in cache.read_parts(count, shape):
                    state.add(part)
                state.run(cache.store_part)
                cache.finish(state.block())
    if block is None:
        values = state.values
    elif block.damaged:
        state.add(block)
        state.run()  # tries the damaged images again
        if state.encoded:
            cache.store(state.block())
        values = state.values
    else:
        values = block.values
        report(count, count)
    damaged = {i: f"{state.reader.label(i)} ({why})" for i, why in sorted(state.damaged.items())}
    if damaged:
        named = some(list(damaged.values()), separator="; ")
        log.warning(
            "%s: %d of %d images cannot be read and are left out: %s", state.reader.name, len(damaged), count, named
        )
    return Features(values, damaged, state.encoded, time.perf_counter() - start, str(cache.path))


def describe(encoder: Encoder, inputs: Inputs, key_parts: Sequence[str], count: int) -> dict[str, Any]:
    """What decides the features of a split of ``count`` images, as plain values; its hash names the cache file."""
    return {
        "format": FORMAT_VERSION,
        "features": encoder.name,
        "clip": encoder.identity,
        **inputs.key(),
        "images": list(key_parts),
        "count": count,
        "device": encoder.device.type,  # CPU and GPU differ in the last bits
    }


def plain_inputs(dataset: DataSet, clip: FrozenCLIP, stamp: Stamp | None = None) -> PlainInputs:
    """The data set's images, as its ``transform`` makes them from CLIP's preprocessing; ``stamp`` puts something on
    the images first, and its repr tells one from another."""
    transform = dataset.transform(clip.preprocess)
    if stamp is None:
        return PlainInputs(transform, dataset.transform_key())
    return PlainInputs(Stamped(transform, stamp), f"{dataset.transform_key()}, stamped")


def extract_dataset(
    dataset: DataSet,
    clip: FrozenCLIP,
    cfg: FeatureConfig,
    views: ViewsConfig | None = None,
    progress: Progress | None = None,
    encoder: Encoder | None = None,
    stamp: Stamp | None = None,
) -> tuple[Features, Features]:
    """The features of the training and of the test split, as a run with these settings needs them.

    Views are of training images only. For online views, which cannot be extracted, the training images are read once
    to find damaged ones; their features are [n, 0]. ``progress(done, total)`` counts both splits together.

    Raises:
        UserError: as ``extract_features``.
    """
    views = views or ViewsConfig()
    plain, encoder = plain_inputs(dataset, clip, stamp), encoder or clip_encoder(clip)
    total = len(dataset.train) + len(dataset.test)

    def part(name: str, before: int, used: Encoder, inputs: Inputs) -> Features:
        shifted = progress and (lambda done, _: progress(before + done, total))
        return _extract_part(dataset, name, clip, cfg, used, inputs, shifted)

    if views.kind == "online":
        train = part("train", 0, read_only_encoder(), ReadOnlyInputs())
    else:
        train = part("train", 0, encoder, ViewInputs(plain, views) if views.kind == "cached" else plain)
    return train, part("test", len(dataset.train), encoder, plain)


def extract_test(
    dataset: DataSet, clip: FrozenCLIP, cfg: FeatureConfig, encoder: Encoder, progress: Progress | None = None
) -> Features:
    """The features of the test split alone, from the same cache.

    Raises:
        UserError: as ``extract_features``.
    """
    return _extract_part(dataset, "test", clip, cfg, encoder, plain_inputs(dataset, clip), progress)


def _extract_part(
    dataset: DataSet,
    part: str,
    clip: FrozenCLIP,
    cfg: FeatureConfig,
    encoder: Encoder,
    inputs: Inputs,
    progress: Progress | None,
) -> Features:
    return extract_features(
        encoder,
        getattr(dataset, part),
        inputs,
        cfg,
        (dataset.cache_key(), part),
        progress,
        name=f"{dataset.name} / {part}",
        about={"dataset": dataset.name, "split": part, "model": _model_text(clip, encoder)},
    )


def _model_text(clip: FrozenCLIP, encoder: Encoder) -> str:
    """The encoder in words, for lists."""
    if not encoder.identity:
        return "none (read only)"
    kind = "" if encoder.name == "global" else f", {encoder.name}"
    return f"{clip.name} {encoder.identity[:8]}{kind}"


def _views_text(inputs: Inputs) -> str:
    if not isinstance(inputs, ViewInputs):
        return "none"
    low, high = inputs.config.scale
    return f"{inputs.config.count}, scale {low:g} to {high:g}, seed {inputs.config.seed}"
