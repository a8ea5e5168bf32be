"""PromptFolio: the text features of a global and a local prompt, mixed by a fixed coefficient.

Pan, Huang, Shi, "Federated Learning from Vision-Language Foundation Models: Theoretical Analysis and Method", NeurIPS
2024 (arXiv 2409.19610), as in its public release. With T_G and T_L the l2-normalized text features of the two prompts,
the logit is

    exp(logit_scale) * I . ((1 - theta) T_G + theta T_L),

so the mixture, which is not normalized again, is a mixture of the two prompts' logits.

Shape letters: b images, C classes, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed, normal

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client


class PromptFolio(Method):
    """The global prompt is averaged over the cohort (weighted by n_i), the local one stays; both are used to classify.

    Both are trained together on cross-entropy of the mixture, the global one with ``optim.prompt_lr``, the local one
    with ``optim.gating_lr`` (the release uses one rate for both). The client predicts with the current global prompt
    and its own local one; a client that never took part uses the initial value of its local prompt. At theta = 0 the
    method is PromptFL, at theta = 1 local training.

    In the release, all clients start from the same draw of the local prompt; here, each has its own. Three habits of
    the release that its paper does not ask for are left out: one learning-rate schedule and one momentum buffer that
    run on from client to client, and weights of the mean that belong to other clients when the cohort's order is not
    ascending (with equal n_i, as in its own experiments, that changes nothing).

    Args:
        theta: weight of the local prompt's features, in [0, 1], the same for all clients, in training and prediction.
            The default is the release's; the paper's analysis gives an optimum between 0 and 1 that falls with the
            number of clients.
        std: standard deviation of the local prompt's initial value, which is always random.
    """

    label = "PromptFolio"

    def __init__(self, theta: float = 0.4, std: float = 0.02) -> None:
        if not 0 <= theta <= 1:
            raise UserError(f"method.theta is {theta}; valid is a number in [0, 1].")
        if std < 0:
            raise UserError(f"method.std is {std}; valid is a number of at least 0.")
        self.theta = theta
        self.std = std

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        local = normal(model.prompt.shape, self.std)
        return [
            Parameter("prompt", Scope.SHARED, fixed(model.prompt)),
            Parameter("local", Scope.PERSONAL, local, rate="gating_lr"),
        ]

    def prompt(self, client: Client) -> Tensor:
        """The prompts that have a weight, [n, l, w]: the global one, the local one, or the global one first."""
        import torch

        weights = {"prompt": 1 - self.theta, "local": self.theta}
        return torch.stack([client.prompts[name] for name, weight in weights.items() if weight])

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        from fedmoe.models.functional import local_logits

        text = client.text_features()  # [n, C, d]
        mixed = text[0] if len(text) == 1 else (1 - self.theta) * text[0] + self.theta * text[1]
        return local_logits(image_features, mixed, client.logit_scale)
