"""pFedMoAP: personalized federated mixture of adaptive prompts (Luo, Chen, Wu; ICLR 2025, arXiv 2410.10114).

A client downloads other clients' prompts as fixed experts; a local attention gate mixes the experts' text features
for each image, next to the client's own prompt. Algorithm 1, eq. 6 to 11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.models.functional import combine, local_logits
from fedmoe.models.gating import AttentionGate, Gate, LinearGate
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import ClientState, ClientUpdate, Downlink, Loadout, RoundContext, Tensors
from fedmoe.seeds import derive
from fedmoe.server.state import Assignment, ServerState, nearest_experts, random_experts, weighted_mean

if TYPE_CHECKING:
    from fedmoe.client.module import ClientModule  # Lightning takes seconds to import


def _attention_gate(method: PFedMoAP, feature_dim: int, generator: torch.Generator) -> Gate:
    return AttentionGate(
        feature_dim, method.gating_dim, method.heads, method.attention_scale, generator, method.pooling
    )


def _linear_gate(method: PFedMoAP, feature_dim: int, generator: torch.Generator) -> Gate:
    return LinearGate(feature_dim, method.gating_dim, method.num_experts, generator, method.pooling)


class PFedMoAP(Method):
    """Mixture of the client's own prompt and K other clients' prompts, weighted by a local gate.

    The gate of the method is attention, and it is local. Table 7 of the paper compares it with two others:

    - ``gate: linear``, a linear projection of the image to the weights of a fixed number of experts. How it is built
      is our reading, see ``fedmoe.models.gating.LinearGate``.
    - ``gate_sharing: averaged``, a gate that goes up with the prompt, is averaged (weighted by n_i) over those of the
      cohort that trained one, and comes down for training and for evaluation. Its start is common to all clients. The
      paper says no more than that it is averaged. Who predicts with a gate stays the same: a client that has trained
      one.

    Args:
        num_experts: number K of non-local experts; fewer are used while the pool has fewer.
        lmbda: weight lambda of the local prompt's own logits (eq. 10).
        assignment: nearest (in l2, the paper) or random (the released code) prompts of the pool.
        evaluation_experts: fresh assigns experts anew from the current pool before each evaluation (the release);
            held uses those of the client's last participation, which it has already.
        gating_dim: width the features are pooled to; must divide CLIP's feature width. At that width nothing is pooled.
        heads: attention heads of the gate; must divide gating_dim. Of the attention gate only.
        attention_scale: factor on query . key before the softmax; the release uses 10 in place of 1 / sqrt(d_head).
            Of the attention gate only.
        gate: attention (eq. 9 to 11), or linear (table 7), where experts have fixed places.
        pooling: stride keeps every n-th coordinate of a feature (the release), average takes the mean of each n
            neighbouring ones; n = CLIP's feature width / gating_dim.
        gate_sharing: local, where the gate never leaves the client (the method), or averaged over clients (table 7).
    """

    label = "pFedMoAP"
    _assignments: ClassVar[Mapping[str, Assignment]] = {"nearest": nearest_experts, "random": random_experts}
    _gates: ClassVar[Mapping[str, Callable[[PFedMoAP, int, torch.Generator], Gate]]] = {
        "attention": _attention_gate,
        "linear": _linear_gate,
    }

    def __init__(
        self,
        num_experts: int = 9,
        lmbda: float = 0.5,
        assignment: Literal["nearest", "random"] = "nearest",
        evaluation_experts: Literal["fresh", "held"] = "fresh",
        gating_dim: int = 128,
        heads: int = 8,
        attention_scale: float = 10.0,
        gate: Literal["attention", "linear"] = "attention",
        pooling: Literal["stride", "average"] = "stride",
        gate_sharing: Literal["local", "averaged"] = "local",
    ) -> None:
        if num_experts < 0:
            raise UserError(f"method.num_experts is {num_experts}; valid is an integer of at least 0.")
        self.num_experts = num_experts
        self.lmbda = lmbda
        self.assignment = assignment
        self.evaluation_experts = evaluation_experts
        self.gating_dim = gating_dim
        self.heads = heads
        self.attention_scale = attention_scale
        self.gate = gate
        self.pooling = pooling
        self.gate_sharing = gate_sharing

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        if self.num_experts >= federation.clients:
            raise UserError(
                f"method.num_experts is {self.num_experts}, but of federation.clients = {federation.clients} a client "
                f"has only {federation.clients - 1} others; valid is 0 to {federation.clients - 1}."
            )
        self._build_gate(feature_dim, seed=0)  # refuses widths that do not divide each other

    def build_personal(self, prompt_shape: torch.Size, feature_dim: int, seed: int) -> nn.Module:
        return self._build_gate(feature_dim, seed)

    def _build_gate(self, feature_dim: int, seed: int) -> Gate:
        return self._gates[self.gate](self, feature_dim, torch.Generator().manual_seed(seed))

    def _experts(self, server: ServerState, client_id: int, *seed: int | str) -> tuple[Tensor | None, tuple[int, ...]]:
        """The client's experts from the current pool [K, l, w] and their ids; none for a client without an entry."""
        if client_id not in server.pool:
            return None, ()
        ids = self._assignments[self.assignment](server.pool, client_id, self.num_experts, seed)
        return (torch.stack([server.pool[i] for i in ids]) if ids else None), tuple(ids)

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        # Steps 2 and 3: a client without a pool entry gets no experts and trains the plain local objective.
        experts, ids = self._experts(server, client_id, context.seed, "train", context.round, client_id)
        gated = experts is not None and self.gate_sharing == "averaged"
        return Downlink(server.prompt, experts, ids, self._shared_gate(server, context.seed) if gated else {})

    def _shared_gate(self, server: ServerState, seed: int) -> Tensors:
        """The averaged gate; the common start while there is none."""
        # The width of CLIP's features is in no parameter of a gate.
        return server.extras or self._build_gate(self.gating_dim, derive(seed, "gate")).state_dict()

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> None:
        super().aggregate(server, updates)
        gated = [update for update in updates if update.extras]
        if gated:
            weights = [update.num_examples for update in gated]
            names = gated[0].extras
            server.extras = {name: weighted_mean([u.extras[name] for u in gated], weights) for name in names}

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        return replace(super().start(state, downlink), personal=downlink.extras or state.personal or None)

    def logits(self, client: ClientModule, image_features: Tensor) -> Tensor:
        text = client.text_features()  # [C, d]
        if client.experts is None:
            return local_logits(image_features, text, client.logit_scale)
        tokens = torch.cat([text.unsqueeze(0), client.experts])  # [K + 1, C, d], the local expert first
        similarity = _gate(client).similarity(image_features, tokens)  # pool(I) . T_MoE [b, C], eq. 9 and 11
        return combine(similarity, image_features, text, client.logit_scale, self.lmbda)  # eq. 10

    def finish(
        self, client: ClientModule, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[ClientUpdate, ClientState]:
        update, kept = super().finish(client, state, downlink, num_examples)
        if self.evaluation_experts == "fresh":  # only held experts are used again, and they weigh as much as a gate
            kept = replace(kept, experts=None)
        if downlink.experts is None:  # the gate took no part in training
            return update, replace(kept, personal=state.personal)
        shared = kept.personal if self.gate_sharing == "averaged" else {}
        return replace(update, extras=shared), kept

    def deploy(self, server: ServerState, state: ClientState, client_id: int, context: RoundContext) -> Downlink:
        if not state.personal:
            return Downlink(prompt=None)
        if self.evaluation_experts == "held":
            # These experts are on the client already: listed for the record, they cost nothing.
            return Downlink(None, None, state.expert_ids, server.extras)
        experts, ids = self._experts(server, client_id, context.seed, "evaluate", context.round, client_id)
        return Downlink(None, experts, ids, server.extras)

    def inference(self, server: ServerState, state: ClientState, downlink: Downlink) -> Loadout:
        # Step 6: own last prompt, own (or the averaged) gate, own experts; without a trained gate the prompt alone.
        if not state.took_part:
            return Loadout(server.prompt)
        if not state.personal:
            return Loadout(state.prompt)
        experts = state.experts if self.evaluation_experts == "held" else downlink.experts
        return Loadout(state.prompt, downlink.extras or state.personal, experts)

    def analyse(self, client: ClientModule, image_features: Tensor) -> Mapping[str, Tensor]:
        if client.experts is None:
            return {}
        tokens = torch.cat([client.text_features().unsqueeze(0), client.experts])
        weights = _gate(client).attention(image_features, tokens)  # [b, C, h, K + 1]
        return {"attention": weights.mean(dim=(0, 1, 2))}


def _gate(client: ClientModule) -> Gate:
    assert isinstance(client.personal, Gate)
    return client.personal
