"""What is timed: a client of pFedMoAP with nine experts, and a local step of it on 32 images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.config import PromptConfig
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
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
