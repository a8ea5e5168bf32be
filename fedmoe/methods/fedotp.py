"""FedOTP: a global and a local prompt, matched to the places of an image by optimal transport.

Li, Huang, Wang, Shi, "Global and Local Prompts Cooperation via Optimal Transport for Federated Learning", CVPR 2024
(arXiv 2403.00041), as in its public release. With S the cosines of an image's M places with the class's text features
of both prompts, the logit is

    exp(logit_scale) * sum_mn T_mn S_mn,    T the transport plan for the costs 1 - S.

Shape letters: b images, M places of an image, N prompts (global, local), C classes, l context tokens, w token width,
d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed, normal

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.features.extraction import Encoder
    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client

_IMAGES = 32  # matched at once: plans that stay in a processor's cache take half the time; changes no result


class FedOTP(Method):
    """The global prompt is averaged over the cohort (weighted by n_i), the local one stays; both are used to classify.

    Works on CLIP's spatial image features [b, M, d]. Both prompts are trained on cross-entropy, with no gradient
    through the plan: the global one with ``optim.prompt_lr``, the local one with ``optim.gating_lr`` (the release uses
    one rate for both). The client predicts with the current global prompt and its own local one; a client that never
    took part uses the initial value of its local prompt.

    There are three differences from the release. There, all plans stop rescaling together, when the mean change over
    the whole batch is small; here, each image and class stops individually, so that a prediction does not depend on the
    other images of the batch (the relative difference of the logits is about 1e-5). There, all clients start from the
    same draw of the local prompt; here, each has its own. There, the first round trains all clients; here, every round
    trains its cohort.

    Args:
        transport: partial moves only a fraction (mass) of an image's places, so that some may be left out; balanced
            moves everything.
        mass: gamma, the fraction of the places' mass that is moved, in (0, 1]; 1 for the balanced transport.
        epsilon: entropic regularization, in units of 1 - cosine, at least 0.001; the paper uses 0.01 to 0.1. Smaller
            values take longer: at 0.01 the factors are so large that every plan runs up to max_iterations.
        stop_threshold: a plan stops when the mean change of its factors (of the places if balanced, of the prompts if
            partial) is smaller; 0: never before max_iterations.
        max_iterations: maximum number of rescalings of a plan.
        std: standard deviation of the local prompt's initial value, which is always random.
    """

    label = "FedOTP"

    def __init__(
        self,
        transport: Literal["partial", "balanced"] = "partial",
        mass: float = 0.8,
        epsilon: float = 0.1,
        stop_threshold: float = 1e-3,
        max_iterations: int = 100,
        std: float = 0.02,
    ) -> None:
        if not 0 < mass <= 1:
            raise UserError(f"method.mass is {mass}; valid is a number in (0, 1].")
        if transport == "balanced" and mass != 1:
            raise UserError(f"method.mass is {mass}, but the balanced transport moves all mass; valid with it is 1.")
        if epsilon < 0.001:  # beyond, float32 cannot tell 1 - S over epsilon from its neighbours
            raise UserError(f"method.epsilon is {epsilon}; valid is a number of at least 0.001.")
        if max_iterations < 1:
            raise UserError(f"method.max_iterations is {max_iterations}; valid is an integer of at least 1.")
        for name, value in {"stop_threshold": stop_threshold, "std": std}.items():
            if value < 0:
                raise UserError(f"method.{name} is {value}; valid is a number of at least 0.")
        self.transport = transport
        self.mass = mass
        self.epsilon = epsilon
        self.stop_threshold = stop_threshold
        self.max_iterations = max_iterations
        self.std = std

    def encoder(self, clip: FrozenCLIP) -> Encoder:
        from fedmoe.features.encoders import spatial_encoder

        return spatial_encoder(clip)

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        local = normal(model.prompt.shape, self.std)
        return [
            Parameter("prompt", Scope.SHARED, fixed(model.prompt)),
            Parameter("local", Scope.PERSONAL, local, rate="gating_lr"),
        ]

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        """Class logits [b, C] of spatial image features [b, M, d]."""
        import torch

        prompts = torch.stack([client.prompts["prompt"], client.prompts["local"]])  # the global one first
        text = client.text_features(prompts)  # [2, C, d]
        parts = [self.match(images, text) for images in image_features.split(_IMAGES)]
        return client.logit_scale * torch.cat(parts)

    def match(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Similarity of each image with each class, sum_mn T_mn S_mn; of one prompt and balanced, the mean of S.

        Args:
            image_features: l2-normalized, [b, M, d].
            text_features: l2-normalized, [N, C, d].

        Returns:
            [b, C]
        """
        from fedmoe.models.transport import TRANSPORTS

        similarity = (image_features @ text_features.flatten(0, 1).T).unflatten(-1, text_features.shape[:2])
        places, prompts = similarity.shape[1:3]  # S [b, M, N, C]
        plan = TRANSPORTS[self.transport](
            1 - similarity.detach(),
            similarity.new_full((places,), 1 / places),
            similarity.new_full((prompts,), self.mass / prompts),
            *(self.epsilon, self.stop_threshold, self.max_iterations),
        )
        return (plan * similarity).sum(dim=(1, 2))
