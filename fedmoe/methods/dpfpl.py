"""DP-FPL: a global and a local prompt; the local one is trained through noisy low-rank factors and a residual.

Tran, Sun, Patterson, Milanova, "Privacy-Preserving Personalized Federated Prompt Learning for Multimodal Large Language
Models", ICLR 2025 (arXiv 2501.13904). The context of client i is

    p_i = G + U_i V_i + R_i,

with factors U [l, r] and V [r, w] that are made anew from the local prompt L_i in each pass and the residual
R = L - U V. The gradients of G, U and V are clipped, those of U and V get noise on the client, that of G on the server.

Shape letters: l context tokens, w token width, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed, normal
from fedmoe.protocol.records import RoundContext, Update
from fedmoe.seeds import torch_generator

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


class DPFPL(Method):
    """The global prompt G is averaged over the cohort (weighted by n_i), the local prompt L stays; both are used.

    Each step: gU and gV, the gradients of the factors, are clipped to ``clip`` and get N(0, noise^2) per coordinate;
    L's gradient is gU V + U gV - U U^T gU V (eq. 4). So one step changes L only within its factors' directions. G's
    gradient is clipped to ``clip``, too, and the server adds N(0, server_noise^2) to each coordinate of the mean of G
    in each round. G is trained with ``optim.prompt_lr``, L with ``optim.gating_lr`` (the paper has one rate). At full
    rank and without clipping and noise, L's gradient is the plain one.

    The paper's clients send a gradient after each step and the server steps; here they send G after local training.
    With one full batch in each round and without momentum the two are the same, and the paper's noise of s / N in the
    mean gradient of N clients is server_noise = optim.prompt_lr * s / N.

    The noise is the paper's, not a guarantee. Its s for a budget (epsilon, delta) over T rounds with batches of B is
    clip / B * sqrt(T ln(1 / delta)) / epsilon: 26.5 for epsilon = 0.4, delta = 1e-5, T = 100, B = 32 and clip = 10. But
    an example can change a batch's clipped gradient by up to 2 clip and not by clip / B, each batch is a release and
    not each round, and U and V are two. For a guarantee that is proven, leave both kinds of noise at 0 and choose
    ``privacy.mechanism``: upload protects G, dpsgd both prompts.

    The clipping stays where ``noise`` is 0, as the algorithm has it; the release leaves both out then, which is
    ``clip: null`` here. The release also steps each client with the last client's local gradient, keeps one momentum
    buffer for all, and subtracts nothing (``reconstruction``). All but the last are left out here.

    Args:
        rank: r, at most the prompt's length.
        noise: standard deviation s of the noise in each coordinate of gU and gV; 0: none.
        server_noise: standard deviation of the noise that the server adds to each coordinate of the mean of G; 0: none.
        clip: bound of the l2 norm of each of the gradients of G, U and V of a batch; null: no clipping.
        residual: whether the context has R; without it, it is G + U V, and U V has lost L's scale (the ablation).
        reconstruction: paper is eq. 4; release adds the last term instead of subtracting it and divides by 10.
        std: standard deviation of the local prompt's initial value, which is always random.
    """

    label = "DP-FPL"
    half_precision = False

    def __init__(
        self,
        rank: int = 8,
        noise: float = 0.0,
        server_noise: float = 0.0,
        clip: float | None = 10.0,
        residual: bool = True,
        reconstruction: Literal["paper", "release"] = "paper",
        std: float = 0.02,
    ) -> None:
        if rank < 1:
            raise UserError(f"method.rank is {rank}; valid is an integer of at least 1.")
        for name, value in {"noise": noise, "server_noise": server_noise, "std": std}.items():
            if value < 0:
                raise UserError(f"method.{name} is {value}; valid is a number of at least 0.")
        if clip is not None and clip <= 0:
            raise UserError(f"method.clip is {clip}; valid is a number above 0, or null.")
        if clip is None and (noise or server_noise):
            raise UserError("method.clip is null, so that the noise is in no proportion; valid is a number above 0.")
        self.rank = rank
        self.noise = noise
        self.server_noise = server_noise
        self.clip = clip
        self.residual = residual
        self.reconstruction = reconstruction
        self.std = std

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        most = min(model.prompt.shape[-2:])
        if self.rank > most:
            raise UserError(f"method.rank is {self.rank}, but a prompt's rank is at most {most}; valid is 1 to {most}.")
        local = normal(model.prompt.shape, self.std)
        return [
            Parameter("prompt", Scope.SHARED, fixed(model.prompt)),
            Parameter("local", Scope.PERSONAL, local, rate="gating_lr"),
        ]

    def prompt(self, client: Client) -> Tensor:
        import torch

        from fedmoe.models.factors import RULES, Clipped, Factored

        shared, local = client.prompts["prompt"], client.prompts["local"]
        training = torch.is_grad_enabled()
        if self.residual and not training:
            return shared + local
        # In training a new probe in each pass, from the global generator, which each fit seeds; then always the same.
        shape = (*local.shape[:-2], local.shape[-1], self.rank)
        generator = None if training else torch_generator(0, "DP-FPL")
        probe = torch.randn(shape, generator=generator).to(local)
        return Clipped.apply(shared, self.clip) + Factored.apply(
            local, probe, self.residual, self.clip, self.noise, RULES[self.reconstruction]
        )

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        super().aggregate(server, updates, context)
        if self.server_noise:
            import torch

            mean = server.shared["prompt"]
            generator = torch_generator(context.seed, "DP-FPL", context.round)
            server.shared["prompt"] = mean + self.server_noise * torch.randn(mean.shape, generator=generator).to(mean)
