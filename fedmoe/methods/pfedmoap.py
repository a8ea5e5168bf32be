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
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext, Tensors, Update
from fedmoe.server.experts import ASSIGNMENTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.models.gating import Gate
    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


def _attention_gate(method: PFedMoAP, feature_dim: int, generator: torch.Generator | None) -> Gate:
    from fedmoe.models.gating import ATTENTIONS

    return ATTENTIONS[method.attention](
        *(feature_dim, method.gating_dim, method.heads, method.attention_scale, generator),
        pooling=method.pooling,
        start=method.gate_start,
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

    Further settings are controls, which tell what the mixture contributes: other ``assignment``s, ``num_experts: 0``,
    ``gate: none``, ``attention: uniform`` and ``train_gate: false``. With each of them a client's gate takes part in
    the same rounds as it does in the method: from the client's second round on, once somebody else is in the pool too.

    Args:
        num_experts: number K of non-local experts; fewer are used while the pool has fewer. With 0, the gate sees the
            local expert alone (to have no gate either: gate none).
        lmbda: weight lambda of the local prompt's own logits (eq. 10).
        assignment: which prompts are the experts: nearest (in l2, as in the paper), random (as in the released code) or
            farthest of the pool; same_domain, drawn among clients of the client's domain (an oracle, which only a
            simulation has); own, K copies of the client's own last prompt, which it makes itself; global, K copies of
            the global prompt, which is downloaded for it once; or noise, normal noise with the l2 norm of each prompt
            that nearest would have given.
        evaluation_experts: fresh assigns experts again from the current pool before each evaluation (as in the
            release); held uses those of the client's last participation, which it already has.
        gating_dim: width that features are pooled to; must divide CLIP's feature width. At that width nothing is
            pooled.
        heads: number of heads of the attention gate; must divide gating_dim.
        attention_scale: factor on query . key before the softmax of the attention gate; the release uses 10 in place of
            1 / sqrt(d_head).
        gate: attention (eq. 9 to 11), linear (table 7), where experts have fixed positions, or none: the client's own
            prompt predicts alone, and no experts are sent.
        attention: learned, or uniform: each of the K + 1 experts has weight 1 / (K + 1), while the attention gate's
            value and output maps are as before.
        gate_start: random (torch.nn.Linear's own start, as in the release), or identity: the attention gate's query and
            key maps start as the identity, so that experts are weighed by their similarity to the image from the first
            step on. It takes a larger attention_scale, such as CLIP's logit scale of 100.
        train_gate: whether the gate is trained; otherwise it stays at its start.
        pooling: stride keeps every n-th coordinate of a feature (as in the release), average takes the mean of every n
            neighbouring ones; n = CLIP's feature width / gating_dim.
        gate_sharing: local, where the gate never leaves the client (the method), or averaged over clients (table 7).
    """

    label = "pFedMoAP"
    _copied: ClassVar[frozenset[str]] = frozenset({"own", "global"})  # assignments of which the client makes K copies
    _gates: ClassVar[Mapping[str, Callable[[PFedMoAP, int, torch.Generator | None], Gate]]] = {
        "attention": _attention_gate,
        "linear": _linear_gate,
    }

    def __init__(
        self,
        num_experts: int = 9,
        lmbda: float = 0.5,
        assignment: Literal["nearest", "random", "farthest", "same_domain", "own", "global", "noise"] = "nearest",
        evaluation_experts: Literal["fresh", "held"] = "fresh",
        gating_dim: int = 128,
        heads: int = 8,
        attention_scale: float = 10.0,
        gate: Literal["attention", "linear", "none"] = "attention",
        pooling: Literal["stride", "average"] = "stride",
        gate_sharing: Literal["local", "averaged"] = "local",
        attention: Literal["learned", "uniform"] = "learned",
        gate_start: Literal["random", "identity"] = "random",
        train_gate: bool = True,
    ) -> None:
        if num_experts < 0:
            raise UserError(f"method.num_experts is {num_experts}; valid is an integer of at least 0.")
        for name, value, usual in (("attention", attention, "learned"), ("gate_start", gate_start, "random")):
            if gate != "attention" and value != usual:
                raise UserError(
                    f"method.{name} is {value!r}, which only method.gate = attention has; valid is {usual}."
                )
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
        self.attention = attention
        self.gate_start = gate_start
        self.train_gate = train_gate

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        if self.num_experts >= federation.clients:
            raise UserError(
                f"method.num_experts is {self.num_experts}, but of federation.clients = {federation.clients} a client "
                f"has only {federation.clients - 1} others; valid is 0 to {federation.clients - 1}."
            )
        if self.gate != "none":
            self._gate(feature_dim)  # refuses widths that do not divide each other

    def check_clients(self, server: ServerState) -> None:
        if self.assignment == "same_domain" and not server.domains:
            raise UserError(
                "method.assignment is 'same_domain', but the data has no domains; valid is data with domains "
                "(DomainNet, OfficeCaltech10, or ImageFolder with layout domains), or another assignment."
            )

    def _gate(self, feature_dim: int, generator: torch.Generator | None = None) -> Gate:
        return self._gates[self.gate](self, feature_dim, generator)

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        def gate(generator: torch.Generator) -> Gate:
            return self._gate(model.feature_dim, generator).requires_grad_(self.train_gate)

        held = self.evaluation_experts == "held"
        scope = Scope.PERSONAL if self.gate_sharing == "local" else Scope.SHARED
        # Shared: averaged into the global prompt, from which each round starts. Kept: a client predicts with its own
        # last one. Pooled: it serves others as an expert.
        prompt = Parameter("prompt", Scope.SHARED, fixed(model.prompt), keep=True, pool=True)
        mixture = [Parameter("gate", scope, gate, rate="gating_lr"), Parameter("experts", Scope.EXPERT, keep=held)]
        return [prompt, *(mixture if self.gate != "none" else [])]

    def _experts(self, server: ServerState, client_id: int, *seed: int | str) -> tuple[Tensors, tuple[int, ...]]:
        """What is sent as the client's experts [n, l, w], and whose prompts they are.

        The gate takes part where there is an entry, also if nothing is sent (n = 0). There is none for a client that is
        not in the pool, or alone in it.
        """
        pool = server.pooled("prompt")
        if self.gate == "none" or client_id not in pool or len(pool) < 2:
            return {}, ()
        found = ASSIGNMENTS[self.assignment](server, client_id, self.num_experts, seed)
        missing = self.num_experts > 0 and not len(found.prompts) and not found.ids
        return ({} if missing else {"prompt": found.prompts}), found.ids

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        # Steps 2 and 3: a client without a pool entry gets no experts and trains the plain local objective.
        experts, ids = self._experts(server, client_id, context.seed, "train", context.round, client_id)
        return Downlink(dict(server.shared) if experts else _without_gate(server.shared), experts, expert_ids=ids)

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        downlink = super().deploy(server, client_id, context)
        known = server.known(client_id)
        if not known.has_gate:  # its gate, if it has one, was never trained
            return replace(downlink, parameters=_without_gate(downlink.parameters))
        if self.evaluation_experts == "held":  # on the client already: named for the record, they cost nothing
            return replace(downlink, expert_ids=known.expert_ids)
        experts, ids = self._experts(server, client_id, context.seed, "evaluate", context.round, client_id)
        return replace(downlink, experts=experts, expert_ids=ids)

    def _whole(self, state: ClientState, downlink: Downlink) -> Downlink:
        """The download with all of the client's experts: it makes the copies of its own or of the global prompt."""
        if self.assignment not in self._copied or not downlink.experts:
            return downlink
        sent = downlink.experts["prompt"]
        prompt = sent[0] if len(sent) else state.parameters["prompt"]
        copies = prompt.unsqueeze(0).repeat_interleave(self.num_experts, dim=0)  # [K, l, w]
        return replace(downlink, experts={"prompt": copies})

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        return super().start(state, self._whole(state, downlink))

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
        update, kept = super().finish(client, state, self._whole(state, downlink), num_examples)
        if downlink.experts:
            return update, kept
        # The gate took no part in training: it is neither sent nor kept.
        return (
            replace(update, parameters=_without_gate(update.parameters)),
            replace(kept, parameters=_without_gate(kept.parameters)),
        )

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        from fedmoe.models.functional import combine, normalized_entropy, top_share

        if client.expert_text is None:
            return {}
        text = client.text_features()
        gate: Gate = client.gate
        weights = gate.attention(image_features, _tokens(text, client))  # [b, C, h, K + 1]
        found = {"attention": weights.mean(dim=(0, 1, 2))}
        if not len(client.expert_text):  # nothing to weigh
            return found
        # Weights over copies of one feature sum to one, whatever they are: one copy does.
        alone = gate.similarity(image_features, text.unsqueeze(0))  # [b, C]
        logits = combine(alone, image_features, text, client.logit_scale, self.lmbda)
        shares = {"entropy": normalized_entropy(weights), "top_share": top_share(weights)}
        return found | shares | {"without_experts": logits}


def _tokens(local: Tensor, client: Client) -> Tensor:
    """Text features [K + 1, C, d]: the local ones [C, d] first, then the experts'."""
    import torch

    assert client.expert_text is not None
    return torch.cat([local.unsqueeze(0), client.expert_text])


def _without_gate(parameters: Tensors) -> Tensors:
    return {name: tensor for name, tensor in parameters.items() if part_of(name) != "gate"}
