"""What is timed: a client of pFedMoAP with nine experts, a local step of it on 32 images, and whole federations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientWork
from fedmoe.config import FederationConfig, PromptConfig, RuntimeConfig
from fedmoe.data import IID, DataSet, Split, partition_dataset
from fedmoe.data.base import RawData
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.callbacks import Callback
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.state import fresh_server
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import Loadout
from fedmoe.seeds import torch_generator

BATCH = 32
EXPERTS = 9
ADJECTIVES = ["red", "green", "blue", "tall", "small", "round", "wild", "old", "young", "grey"]
NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def class_names(count: int) -> tuple[str, ...]:
    """CIFAR-10's names; beyond ten, with an adjective, so that names have different lengths."""
    names = NAMES + [f"{adjective}_{animal}" for adjective in ADJECTIVES for animal in NAMES]
    return tuple(names[:count])


def client(clip: FrozenCLIP, names: tuple[str, ...], text_pass: str) -> ClientModule:
    """A client in a gated round, on CLIP's device: its own prompt, a gate, and nine experts."""
    config = PromptConfig(text_pass=text_pass)  # type: ignore[arg-type]
    learner = PromptLearner(clip, names, config, torch_generator(0))
    module = ClientModule(clip, learner, method=PFedMoAP(EXPERTS)).to(clip.text.device)
    experts = 0.02 * torch.randn(EXPERTS, *learner.start.shape, generator=torch_generator(1))
    module.load(0, Loadout(experts={"prompt": experts}))
    return module


def step(module: ClientModule, optimizer: Any, features: Tensor, labels: Tensor) -> None:
    loss = module.method.loss(module, features, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True, eq=False, kw_only=True)
class RandomFeatures(DataSet):
    """Labels without images: so many training examples for each client, and 32 test examples."""

    classes: int
    clients: int
    train_examples: int = 64

    name = "random features"

    def _read(self) -> RawData:
        generator = torch_generator(3)
        train, test = (
            Split(torch.randint(self.classes, (count * self.clients,), generator=generator).numpy(), _no_image)
            for count in (self.train_examples, 32)
        )
        return RawData(class_names(self.classes), (), train, test)

    def _source_key(self) -> str:
        return self.name


def _no_image(index: int) -> Image:
    raise LookupError("these examples are features only")


def federation(
    clip: FrozenCLIP,
    method: Method,
    dataset: RandomFeatures,
    config: FederationConfig,
    callbacks: Sequence[Callback] = (),
    *,
    runtime: RuntimeConfig | None = None,
    kind: type[ClientModule] = ClientModule,
) -> Federation:
    """A federation on random image features of CLIP's width.

    Args:
        kind: the class of the clients' module.
    """
    clients = partition_dataset(dataset, IID(), config.clients, seed=0)
    train, test = (
        F.normalize(torch.randn(len(split), clip.feature_dim, generator=torch_generator(4)), dim=-1)
        for split in (dataset.train, dataset.test)
    )
    learner = PromptLearner(clip, dataset.class_names, PromptConfig(), torch_generator(0))
    module = kind(clip, learner, method=method).to(clip.text.device)
    fleet = LocalFleet(
        ClientWork(module, FederatedData(dataset, clients, train, test), config, seed=0, runtime=runtime)
    )
    return Federation(method, fleet, config, fresh_server(module.declared, module.shared_start()), callbacks=callbacks)
