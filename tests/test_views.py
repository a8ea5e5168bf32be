"""Augmented views: torchvision's draws from a generator of one's own, cached or online, the same bits every time."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as T

from fedmoe.config import FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data import IID, ClientIndices, DataSet, RawData, Split, partition_dataset
from fedmoe.errors import UserError
from fedmoe.features.client_data import FeatureBatches, FederatedData, prepare
from fedmoe.features.encoders import clip_encoder, extract_features
from fedmoe.features.views import PlainInputs, View, ViewInputs, apply_view, draw_view
from fedmoe.seeds import derive


def photo(i: int) -> Image.Image:
    """Noise in blocks, of different sizes and modes."""
    pixels = np.random.Generator(np.random.PCG64(i)).integers(0, 256, (9 + i % 4, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((70 + 3 * i, 50), Image.Resampling.NEAREST)
    return image.convert("P" if i % 3 == 1 else "L" if i % 3 == 2 else "RGB")


def photos(count: int = 9) -> Split:
    return Split(np.arange(count) % 3, photo)


class Album(DataSet):
    """Nine training photos, four test photos."""

    name = "album"

    def _read(self) -> RawData:
        return RawData(("a", "b", "c"), (), photos(9), photos(4))

    def _source_key(self) -> str:
        return "album"


def torchvision_view(image: Image.Image, seed: int, scale: tuple[float, float], size: int = 32) -> Image.Image:
    """The same augmentation by torchvision's own classes, from the global generator."""
    augment = T.Compose(
        [
            T.RandomResizedCrop(size, scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return augment(image.convert("RGB"))


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    low=st.floats(0.01, 1.0),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=150, deadline=None)
def test_draws_are_torchvisions(width, height, low, share, seed):
    """Also where no crop fits (long images): then it is the central one."""
    scale = (low, low + (1.0 - low) * share)
    view = draw_view(width, height, scale, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        image = torch.empty(3, height, width)
        expected = T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
        flip = bool(torch.rand(1) < 0.5)
    top, left, cropped_height, cropped_width = expected
    assert view == View(top, left, cropped_height, cropped_width, flip=flip)


@pytest.mark.parametrize("i", range(6))
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
def test_views_are_torchvisions_to_the_bit(i, scale):
    for seed in range(20):
        view = draw_view(*photo(i).size, scale, torch.Generator().manual_seed(seed))
        ours = apply_view(photo(i), view, (32, 32))
        assert ours.size == (32, 32) and ours.mode == "RGB"
        assert ours.tobytes() == torchvision_view(photo(i), seed, scale).tobytes()


def test_cached_views_are_the_encoded_augmented_images(embedded_clip, tmp_path):
    """Drawn, cropped and normalized by torchvision, with CLIP's published mean and standard deviation."""
    normalize = T.Compose(
        [T.ToTensor(), T.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))]
    )
    config = ViewsConfig("cached", count=4, scale=(0.2, 0.9), seed=11)
    found = extract_features(
        clip_encoder(embedded_clip),
        photos(),
        ViewInputs(PlainInputs(embedded_clip.preprocess), config),
        FeatureConfig(str(tmp_path), batch_size=8),  # two images of four views
        ("album", "train"),
    ).values
    assert found.shape == (9, 4, 128)
    for i in range(9):
        augmented = [torchvision_view(photo(i), derive(11, "view", i, v), (0.2, 0.9)) for v in range(4)]
        expected = embedded_clip.encode_image(torch.stack([normalize(view) for view in augmented]))
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-6)
    assert len(found.flatten(0, 1).unique(dim=0)) == 36


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_views_do_not_depend_on_batches(embedded_clip, tmp_path, batch_size):
    inputs = ViewInputs(PlainInputs(embedded_clip.preprocess), ViewsConfig("cached", count=4))
    found = [
        extract_features(
            clip_encoder(embedded_clip), photos(), inputs, FeatureConfig(str(tmp_path / str(size)), size), ("album",)
        ).values
        for size in (batch_size, 8)
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def data(clip, tmp_path, views=None, **changes) -> FederatedData:
    config = replace(FeatureConfig(str(tmp_path), batch_size=8), **changes)
    return prepare(Album(), IID(), clip, FederationConfig(clients=2), config, seed=3, views=views)


def owned() -> list[ClientIndices]:
    return partition_dataset(Album(), IID(), 2, seed=3)


def test_prepare_gives_clients_views_for_training_and_plain_images_for_testing(embedded_clip, tmp_path):
    plain = data(embedded_clip, tmp_path)
    viewed = data(embedded_clip, tmp_path, ViewsConfig("cached", 3))
    online = data(embedded_clip, tmp_path, ViewsConfig("online"))
    assert (plain.feature_dim, viewed.feature_dim, online.feature_dim) == (128, 128, 128)
    for i, indices in enumerate(owned()):
        clients = [found.client(i) for found in (plain, viewed, online)]
        assert clients[0].train_features.shape == (len(indices.train), 128)
        assert clients[1].train_features.shape == (len(indices.train), 3, 128)
        for client in clients:
            assert torch.equal(client.test_features, clients[0].test_features)
            assert client.train_labels.tolist() == (indices.train % 3).tolist()


def epochs(client, seed: int, count: int = 3, batch_size: int = 2) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    batches = client.training_batches(batch_size, torch.Generator().manual_seed(seed))
    assert len(batches) == -(-len(client.train_labels) // batch_size)
    return [list(batches) for _ in range(count)]


def same(first, second) -> bool:
    pairs = zip(chain.from_iterable(first), chain.from_iterable(second), strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


@pytest.mark.parametrize("kind", ["none", "cached", "online"])
def test_training_batches_are_the_same_bits_each_time(embedded_clip, tmp_path, kind):
    state = torch.get_rng_state()
    first, second = (data(embedded_clip, tmp_path / name, ViewsConfig(kind, 3)).client(0) for name in "ab")
    passes = epochs(first, seed=1)
    assert same(passes, epochs(second, seed=1)) and same(passes, epochs(first, seed=1))
    assert not same(passes, epochs(first, seed=2))
    assert torch.equal(torch.get_rng_state(), state)
    for batches in passes:
        assert [len(labels) for _, labels in batches] == [2, 2, 1]
        assert all(x.shape == (len(y), 128) and x.dtype == torch.float32 for x, y in batches)
        assert not any(x.requires_grad for x, _ in batches)
    # Without augmentation each pass holds the same features; with it, other ones.
    rows = [torch.cat([x for x, _ in batches]).sort(dim=0).values for batches in passes]
    assert torch.allclose(rows[0], rows[1], atol=1e-6) == (kind == "none")


def test_cached_views_are_drawn_evenly_with_their_labels():
    """Feature (i, v) is the vector (i, v), so that it can be recognized."""
    count, views = 50, 4
    grid = torch.stack(torch.meshgrid(torch.arange(count), torch.arange(views), indexing="ij"), dim=-1).float()
    batches = FeatureBatches(grid, torch.arange(count), 16, torch.Generator().manual_seed(0), views=True)
    drawn = torch.zeros(count, views)
    for _ in range(400):
        found = list(batches)
        features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        assert [len(part) for _, part in found] == [16, 16, 16, 2]
        assert torch.equal(features[:, 0].long(), labels) and labels.sort().values.tolist() == list(range(count))
        drawn[labels, features[:, 1].long()] += 1
    assert drawn.sum() == 400 * count
    # 100 draws of each view are expected, with a standard deviation of 8.7: all within five of them.
    assert drawn.min() > 56 and drawn.max() < 144
    assert abs(float((drawn - 100).square().mean().sqrt()) - 75**0.5) < 1.5


def test_views_need_a_generator_and_features_of_views():
    with pytest.raises(ValueError, match="views need"):
        FeatureBatches(torch.zeros(3, 2, 4), torch.zeros(3), 2, views=True)
    with pytest.raises(ValueError, match="views need"):
        FeatureBatches(torch.zeros(3, 4), torch.zeros(3), 2, torch.Generator(), views=True)


def test_online_batches_are_the_encoded_views_of_their_draws(embedded_clip, tmp_path):
    """Order and seeds drawn as documented; the views by torchvision; the same bits as the encoder gives for them."""
    client, indices = data(embedded_clip, tmp_path, ViewsConfig("online", scale=(0.3, 1.0))).client(1), owned()[1].train
    generator = torch.Generator().manual_seed(9)
    for batches in epochs(client, seed=9, batch_size=3):
        order = torch.randperm(len(indices), generator=generator)
        seeds = torch.randint(2**63 - 1, (len(indices),), generator=generator)
        for k, (features, labels) in enumerate(batches):
            chosen = slice(3 * k, 3 * k + 3)
            images = indices[order[chosen].numpy()]
            drawn = zip(images, seeds[chosen].tolist(), strict=True)
            views = [torchvision_view(photo(i), seed, (0.3, 1.0)) for i, seed in drawn]
            inputs = torch.stack([embedded_clip.preprocess(view) for view in views])
            assert torch.equal(features, embedded_clip.encode_image(inputs))
            assert labels.tolist() == (images % 3).tolist()


def test_online_views_are_those_of_the_cache_for_the_same_draw(embedded_clip, tmp_path):
    """A cached view's seed, given to the online encoder, gives the cached features."""
    config = ViewsConfig("cached", 3, seed=4)
    cached = data(embedded_clip, tmp_path, config)
    online = data(embedded_clip, tmp_path, replace(config, kind="online"))
    for i, indices in enumerate(owned()):
        client = online.client(i)
        for v in range(3):
            seeds = torch.tensor([derive(4, "view", int(image), v) for image in indices.train])
            assert client.online is not None
            found = client.online(client.train_features, seeds)
            torch.testing.assert_close(found, cached.client(i).train_features[:, v], rtol=1e-5, atol=1e-6)


def test_threads_change_no_bit_of_online_views(embedded_clip, tmp_path):
    clients = [data(embedded_clip, tmp_path, ViewsConfig("online"), workers=workers).client(0) for workers in (0, 2)]
    assert same(epochs(clients[0], 5), epochs(clients[1], 5))


class Torn(Album):
    """Training photo 4 cannot be decoded."""

    def _read(self) -> RawData:
        def image(i: int) -> Image.Image:
            if i == 4:
                raise OSError("image file is truncated")
            return photo(i)

        return replace(super()._read(), train=Split(np.arange(9) % 3, image))


def test_online_training_finds_damaged_images_before_it_starts(embedded_clip, tmp_path):
    config, federation, views = FeatureConfig(str(tmp_path)), FederationConfig(clients=2), ViewsConfig("online")
    with pytest.raises(UserError, match=r"album / train has an image that cannot be read \(image 4"):
        prepare(Torn(), IID(), embedded_clip, federation, config, seed=3, views=views)
    found = prepare(Torn(), IID(), embedded_clip, federation, replace(config, damaged="skip"), seed=3, views=views)
    for i, indices in enumerate(owned()):
        kept = [int(k) for k in indices.train if k != 4]
        client = found.client(i)
        assert client.train_labels.tolist() == [k % 3 for k in kept]
        assert sum(len(labels) for _, labels in epochs(client, 0)[0]) == len(kept)
    assert sum(map(sum, found.summary()["counts_train"])) == 8 and len(found.summary()["left_out"]["train"]) == 1
