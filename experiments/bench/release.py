"""The released code of pFedMoAP as something to measure against: its own model, from a checkout that the user names.

Nothing of it is kept here. The checkout's ``trainers/pfedmoap.py`` and ``clip`` are imported as they are, with the
packages that they need (yacs and others), and get random weights of RN50 in float32, its class names, and a
configuration with the values of its own command line.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmoe.errors import UserError
from fedmoe.protocol.records import Tensors

GATE = {
    "query": "W_q",
    "key": "W_k",
    "value": "W_v",
    "output": "W_o",
}  # our names of the gate's maps, and the release's
TRAINER = Path("trainers") / "pfedmoap.py"


class Released:
    """A client of the release, on the CPU: one model that becomes each client in turn.

    Args:
        checkout: folder of the release.
        state: CLIP's weights by OpenAI's names.
        class_names: with underscores between words, as in the release.

    Raises:
        UserError: the folder is no such checkout, or a package that it needs is missing.
    """

    def __init__(self, checkout: Path, state: Tensors, class_names: Sequence[str]) -> None:
        trainer, clip = _imported(checkout, "trainers.pfedmoap"), _imported(checkout, "clip.model")
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            extra = [_WITHOUT_PROMPTS] if len(inspect.signature(clip.build_model).parameters) > 1 else []
            self.clip: nn.Module = clip.build_model(dict(state), *extra).float()
            self.model: Any = trainer.CustomCLIP(_settings(), list(class_names), self.clip).eval()
        self.model.requires_grad_(False)
        for part in (self.model.prompt_learner, self.model.gating):
            part.requires_grad_(True)

    def weights(self) -> dict[str, Tensor]:
        """CLIP's weights as the release uses them: it rounds them to float16 on their way."""
        return {name: value.detach().clone() for name, value in self.clip.state_dict().items()}

    def become(self, prompt: Tensor, experts: Sequence[Tensor], gate: Tensors | None = None) -> None:
        """Take a client's prompt and, if given, its gate; download other clients' prompts and compute their features.

        Args:
            gate: by our names, such as ``gate.query.weight``; None: the one that is there.
        """
        if gate is not None:
            maps = ((name.removeprefix("gate.").split("."), value) for name, value in gate.items())
            self.model.gating.load_state_dict({f"{GATE[layer]}.{kind}": value for (layer, kind), value in maps})
        self.model.load_ctx(prompt)
        self.model.nonlocal_ctx = list(experts)
        self.model._compute_nonlocal_text_features()

    def logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(images)
        return logits

    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """One for the prompt, one for the gate."""
        return tuple(
            torch.optim.SGD(part.parameters(), lr=0.002, momentum=0.9)
            for part in (self.model.prompt_learner, self.model.gating)
        )

    def step(self, optimizers: Sequence[torch.optim.Optimizer], images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.model(images), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def prompt(self) -> Tensor:
        value: Tensor = self.model.prompt_learner.ctx.detach().clone()
        return value


# The CLIP of several releases can hold learned tokens in its towers; without any it is OpenAI's.
_WITHOUT_PROMPTS = {"trainer": "PFEDMOAP", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}


def _settings() -> SimpleNamespace:
    """The release's configuration object, as far as its model reads it: RN50 at 224 px, and its own defaults."""
    method = SimpleNamespace(
        N_CTX=16,
        CTX_INIT=False,
        CSC=False,
        CLASS_TOKEN_POSITION="end",
        PREC="fp32",
        GATING_HEADS=8,
        GATING_EMBED_DIM=128,
        LMBDA=0.5,
        SCALING=10.0,
    )
    return SimpleNamespace(TRAINER=SimpleNamespace(PFEDMOAP=method), INPUT=SimpleNamespace(SIZE=(224, 224)))


def _imported(checkout: Path, name: str) -> ModuleType:
    if not (checkout / TRAINER).is_file():
        raise UserError(f"--release is {checkout}, where there is no {TRAINER}; expected is a checkout of the release.")
    folder = str(checkout.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--release is {checkout}, whose {name} cannot be imported here ({error}).") from error
