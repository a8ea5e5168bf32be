"""pFedMoAP: personalized federated mixture of adaptive prompts (Luo, Chen, Wu; ICLR 2025, arXiv 2410.10114).

A client downloads other clients' prompts as fixed experts; a local attention gate mixes the experts' text features
for each image, next to the client's own prompt. Algorithm 1, eq. 6 to 11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed, part_of
from fedmoe.protocol.records import ClientState, Downlink, RoundContext, Tensors, Update
from fedmoe.server.experts import Assignment, nearest_experts, random_experts, shuffled_experts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.models.gating import Gate
    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


def _attention_gate(method: PFedMoAP, feature_dim: int, generator: torch.Generator | None) -> Gate:
    from fedmoe.models.gating import AttentionGate

    return AttentionGate(
        feature_dim, method.gating_dim, method.heads, method.attention_scale, generator, method.pooling
    )


def _linear_gate(method: PFedMoAP, feature_dim: int, generator: torch.Generator | None) -> Gate:
    from fedmoe.models.gating import LinearGate

    return LinearGate(feature_dim, method.gating_dim, method.num_experts, generator, method.pooling)


class PFedMoAP(Method):
    """Mixture of the client's own prompt and K other clients' prompts, weighted by a local gate.

    The method's gate is attention, and it is local. Table 7 of the paper compares it with two variants:

    - ``gate: linear``, a linear projection of the image to the weights of a fixed number of experts. The construction
      is our interpretation, see ``fedmoe.models.gating.LinearGate``.
    - ``gate_sharing: averaged``, a gate that is sent up with the prompt, averaged (weighted by n_i) over the clients of
      the cohort that trained one, and sent down for training and evaluation. Its initial value is common to all
      clients. The paper says only that it is averaged. As before, only clients that have trained a gate predict with
      one.

    Args:
        num_experts: number K of non-local experts; fewer are used while the pool has fewer.
        lmbda: weight lambda of the local prompt's own logits (eq. 10).
        assignment: prompts of the pool: nearest (in l2, as in the paper), random, drawn anew for each client and round,
            or shuffled, the first ones in a shuffle of all clients that stays the same for the run (the released code).
        evaluation_experts: fresh assigns experts again from the current pool before each evaluation; held uses those of
            the client's last participation, which it already has (as the released code does for the round's clients).
        gating_dim: width that features are pooled to; must divide CLIP's feature width. At that width nothing is
            pooled.
        heads: number of heads of the attention gate; must divide gating_dim.
        attention_scale: factor on query . key before the softmax of the attention gate; the release uses 10 in place of
            1 / sqrt(d_head).
        gate: attention (eq. 9 to 11), or linear (table 7), where experts have fixed positions.
        pooling: stride keeps every n-th coordinate of a feature (as in the release), average takes the mean of every n
            neighbouring ones; n = CLIP's feature width / gating_dim.
        gate_sharing: local, where the gate never leaves the client (the method), or averaged over clients (table 7).
        pool_update: when an upload replaces the client's entry in the pool: at the end of the round (Algorithm 1), or
            immediate, as in the released code, where later clients of a round may get prompts of the same round. Then
            clients train one after the other, and their order matters.
    """

    label = "pFedMoAP"
    _assignments: ClassVar[Mapping[str, Assignment]] = {
        "nearest": nearest_experts,
        "random": random_experts,
        "shuffled": shuffled_experts,
    }
    _gates: ClassVar[Mapping[str, Callable[[PFedMoAP, int, torch.Generator | None], Gate]]] = {
        "attention": _attention_gate,
        "linear": _linear_gate,
    }

    def __init__(
        self,
        num_experts: int = 9,
        lmbda: float = 0.5,
        assignment: Literal["nearest", "random", "shuffled"] = "nearest",
        evaluation_experts: Literal["fresh", "held"] = "fresh",
        gating_dim: int = 128,
        heads: int = 8,
        attention_scale: float = 10.0,
        gate: Literal["attention", "linear"] = "attention",
        pooling: Literal["stride", "average"] = "stride",
        gate_sharing: Literal["local", "averaged"] = "local",
        pool_update: Literal["round", "immediate"] = "round",
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
        self.pool_update = pool_update
        self.admits_at_once = pool_update == "immediate"

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        if self.num_experts >= federation.clients:
            raise UserError(
                f"method.num_experts is {self.num_experts}, but of federation.clients = {federation.clients} a client "
                f"has only {federation.clients - 1} others; valid is 0 to {federation.clients - 1}."
            )
        self._gate(feature_dim)  # refuses widths that do not divide each other

    def _gate(self, feature_dim: int, generator: torch.Generator | None = None) -> Gate:
        return self._gates[self.gate](self, feature_dim, generator)

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        def gate(generator: torch.Generator) -> Gate:
            return self._gate(model.feature_dim, generator)

        held = self.evaluation_experts == "held"
        scope = Scope.PERSONAL if self.gate_sharing == "local" else Scope.SHARED
        return [
            # Shared: averaged into the global prompt, from which each round starts. Kept: a client predicts with its
            # own last one. Pooled: it serves others as an expert.
            Parameter("prompt", Scope.SHARED, fixed(model.prompt), keep=True, pool=True),
            Parameter("gate", scope, gate, rate="gating_lr"),
            Parameter("experts", Scope.EXPERT, keep=held),
        ]

    def _experts(self, server: ServerState, client_id: int, *seed: int | str) -> tuple[Tensors, tuple[int, ...]]:
        """The client's experts from the current pool [K, l, w] and their ids; none for a client without an entry."""
        import torch

        pool = server.pooled("prompt")
        if client_id not in pool:
            return {}, ()
        ids = self._assignments[self.assignment](pool, client_id, self.num_experts, seed)
        return ({"prompt": torch.stack([pool[i] for i in ids])} if ids else {}), tuple(ids)

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        # Steps 2 and 3: a client without a pool entry gets no experts and trains the plain local objective.
        experts, ids = self._experts(server, client_id, context.seed, "train", context.round, client_id)
        return Downlink(dict(server.shared) if experts else _without_gate(server.shared), experts, expert_ids=ids)

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        downlink = super().deploy(server, client_id, context)
        held = server.known(client_id).expert_ids
        if not held:  # its gate, if it has one, was never trained
            return replace(downlink, parameters=_without_gate(downlink.parameters))
        if self.evaluation_experts == "held":  # on the client already: named for the record, they cost nothing
            return replace(downlink, expert_ids=held)
        experts, ids = self._experts(server, client_id, context.seed, "evaluate", context.round, client_id)
        return replace(downlink, experts=experts, expert_ids=ids)

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        from fedmoe.models.functional import combine

        # Step 6: a client without experts, whose gate has not been trained yet, predicts with its prompt alone.
        if client.expert_text is None:
            return super().logits(client, image_features)
        text = client.text_features()  # [C, d]
        gate: Gate = client.gate
        similarity = gate.similarity(image_features, _tokens(text, client))  # pool(I) . T_MoE [b, C], eq. 9 and 11
        return combine(similarity, image_features, text, client.logit_scale, self.lmbda)  # eq. 10

    def finish(
        self, client: Client, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[Update, ClientState]:
        update, kept = super().finish(client, state, downlink, num_examples)
        if downlink.experts:
            return update, kept
        # The gate took no part in training: it is neither sent nor kept.
        return (
            replace(update, parameters=_without_gate(update.parameters)),
            replace(kept, parameters=_without_gate(kept.parameters)),
        )

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        if client.expert_text is None:
            return {}
        tokens = _tokens(client.text_features(), client)
        gate: Gate = client.gate
        weights = gate.attention(image_features, tokens)  # [b, C, h, K + 1]
        return {"attention": weights.mean(dim=(0, 1, 2))}


def _tokens(local: Tensor, client: Client) -> Tensor:
    """Text features [K + 1, C, d]: the local ones [C, d] first, then the experts'."""
    import torch

    assert client.expert_text is not None
    return torch.cat([local.unsqueeze(0), client.expert_text])


def _without_gate(parameters: Tensors) -> Tensors:
    return {name: tensor for name, tensor in parameters.items() if part_of(name) != "gate"}
