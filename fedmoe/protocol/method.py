"""The protocol of a method: what goes down, what is trained, what comes up, what predicts.

A new method is one file with a subclass of ``Method`` that overrides what differs. The defaults are FedAvg of
prompts (PromptFL) with the plain local objective. A method has settings (its constructor's arguments) and no state:
what lasts between rounds lives in ``ServerState`` and ``ClientState``.

Shape letters: b images, C classes, l context tokens, w token width, d feature width, K non-local experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmoe.config import FederationConfig
from fedmoe.features.encoders import clip_encoder
from fedmoe.features.extraction import Encoder
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.functional import local_logits
from fedmoe.protocol.records import ClientState, ClientUpdate, Downlink, Loadout, RoundContext
from fedmoe.server.state import ServerState, weighted_mean

if TYPE_CHECKING:
    from fedmoe.client.module import ClientModule  # Lightning takes seconds to import


class Method:
    """Base of all methods. Override what differs from FedAvg of prompts."""

    label: ClassVar[str] = "method"  # the name in tables and plots
    fine_tune_epochs: int = 0  # passes over the client's training data before each of its evaluations; nothing is kept

    # Before the first round

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        """Raise ``UserError`` where the settings do not fit the federation or CLIP's feature width."""

    def schedule(self, federation: FederationConfig) -> FederationConfig:
        """The rounds, participation and epochs this method runs with, given those of the configuration."""
        return federation

    def encoder(self, clip: FrozenCLIP) -> Encoder:
        """The kind of image features that the method works with, instead of CLIP's pooled ones [b, d]."""
        return clip_encoder(clip)

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        """Fixed tensors every client can compute from CLIP and the class names, available as ``client.constants``."""
        return {}

    # On the server

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        """What the server sends to a client of the cohort at the start of a round."""
        return Downlink(prompt=server.prompt)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> None:
        """Take the cohort's uploads: the pool entries are overwritten, the global prompt is their mean (eq. 6, 7)."""
        prompts = {update.client_id: update.prompt for update in updates if update.prompt is not None}
        server.pool.update(prompts)
        weights = [update.num_examples for update in updates if update.prompt is not None]
        if prompts:
            server.prompt = weighted_mean(list(prompts.values()), weights)

    # On the client

    def build_personal(self, prompt_shape: torch.Size, feature_dim: int, seed: int) -> nn.Module | None:
        """Parameters that never leave the client (the gate), drawn from ``seed``; None where there are none.

        ``prompt_shape`` is [l, w], or [C, l, w] with class-specific prompts.
        """
        return None

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        """What local training starts from."""
        prompt = state.prompt if downlink.prompt is None else downlink.prompt
        return Loadout(prompt, state.personal or None, downlink.experts, reference=downlink.prompt)

    def loss(self, client: ClientModule, image_features: Tensor, labels: Tensor) -> Tensor:
        """The local objective on a batch: cross-entropy of the logits. Features [b, d], labels [b] -> scalar."""
        return cross_entropy(self.logits(client, image_features), labels)

    def logits(self, client: ClientModule, image_features: Tensor) -> Tensor:
        """Class logits [b, C] of image features [b, d]."""
        return local_logits(image_features, client.text_features(), client.logit_scale)

    def finish(
        self, client: ClientModule, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[ClientUpdate, ClientState]:
        """What a client uploads after training, and what it keeps."""
        prompt = client.export_prompt()
        kept = ClientState(
            prompt=prompt,
            personal=client.export_personal(),
            experts=downlink.experts,
            expert_ids=downlink.expert_ids,
            rounds_seen=state.rounds_seen + 1,
        )
        return ClientUpdate(client.client_id, prompt, num_examples), kept

    # Evaluation

    def deploy(self, server: ServerState, state: ClientState, client_id: int, context: RoundContext) -> Downlink:
        """What a client that is evaluated downloads for it. The default sends nothing new."""
        return Downlink(prompt=None)

    def inference(self, server: ServerState, state: ClientState, downlink: Downlink) -> Loadout:
        """What a client predicts with: here the global prompt, for everybody."""
        return Loadout(server.prompt)

    def analyse(self, client: ClientModule, image_features: Tensor) -> Mapping[str, Tensor]:
        """Quantities for analysis, averaged over the images [b, d]; ``attention`` [K + 1] is the local expert's mean
        weight and then each non-local expert's."""
        return {}
