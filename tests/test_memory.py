"""What a thousand clients cost: at most 0.5 MB each, and not one more copy of CLIP."""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from federation_helpers import build_federation
from torch import Tensor

from fedmoe.config import ClipConfig, FederationConfig
from fedmoe.data.base import DataSet, RawData, Split
from fedmoe.data.partition import ClientIndices
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.fleet import LocalFleet
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.seeds import torch_generator

CLIENTS, MEGABYTE = 1000, 1e6


class TwoColours(DataSet):
    """Two examples for each client. Its images are never looked at: the features are given."""

    name = "colours"

    def _read(self) -> RawData:
        labels = np.tile([0, 1], CLIENTS)
        return RawData(("red", "blue"), (), Split(labels, self._image), Split(labels, self._image))

    def _source_key(self) -> str:
        return "colours"

    def _image(self, index: int):
        raise AssertionError("no image is needed")


@pytest.fixture(scope="module")
def wide_clip(tmp_path_factory: pytest.TempPathFactory) -> FrozenCLIP:
    """RN50's widths (token 512, feature 1024) with one layer each and random weights."""
    config = {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1},
    }
    path = tmp_path_factory.mktemp("clip") / "wide.json"
    path.write_text(json.dumps(config))
    return FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind the tensors, shared memory counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def resident() -> float:
    """Peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
def test_a_client_costs_half_a_megabyte_at_most(wide_clip: FrozenCLIP) -> None:
    """All 1,000 clients train with gates and nine experts each, at the paper's sizes: prompts [16, 512], gate 128."""
    pairs = [np.array([2 * i, 2 * i + 1]) for i in range(CLIENTS)]
    clients = [ClientIndices(pair, pair[:0] if i else pair) for i, pair in enumerate(pairs)]
    features = torch.nn.functional.normalize(torch.randn(2 * CLIENTS, 1024, generator=torch_generator(0)), dim=-1)
    data = FederatedData(TwoColours(), clients, features, features)
    config = FederationConfig(clients=CLIENTS, rounds=2, local_epochs=1)
    federation, _ = build_federation(wide_clip, data, PFedMoAP(9), config)
    federation.rounds_done = 1  # as if each had uploaded a prompt in the first round
    pool = torch.randn(CLIENTS, 16, 512, generator=torch_generator(1))
    federation.server.pool["prompt"] = {i: prompt.clone() for i, prompt in enumerate(pool)}
    del pool
    gc.collect()
    towers = sum(type(thing) is FrozenCLIP for thing in gc.get_objects())
    before = resident()
    federation.round(2)
    grown = resident() - before
    state = federation.state
    assert len(state.clients) == CLIENTS
    assert all(client.took_part and "gate.query.weight" in client.parameters for client in state.clients.values())
    tensors, _ = state.flatten()
    kept = storage_bytes(tensors.values())
    # The prompt, and the gate's 66,048 parameters: the pool entry is the same tensor as the client's prompt.
    assert kept >= CLIENTS * 4 * (16 * 512 + 66_048)
    assert kept <= CLIENTS * 0.5 * MEGABYTE, f"{kept / CLIENTS / MEGABYTE:.3f} MB a client"
    assert grown <= CLIENTS * 0.5 * MEGABYTE, f"{grown / CLIENTS / MEGABYTE:.3f} MB a client"
    gc.collect()
    assert sum(type(thing) is FrozenCLIP for thing in gc.get_objects()) == towers
    clip_parameters = {parameter.data_ptr() for parameter in wide_clip.parameters()}
    assert not clip_parameters & {tensor.data_ptr() for tensor in tensors.values()}
    assert isinstance(federation.fleet, LocalFleet)
    module = federation.fleet.work.module
    assert not any(parameter.data_ptr() in clip_parameters for parameter in module.parameters())
    print(f"a client: {kept / CLIENTS / MEGABYTE:.3f} MB of state, {grown / CLIENTS / MEGABYTE:.3f} MB of the process")
