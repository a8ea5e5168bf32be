"""What a method sees of the client it runs on. The implementation is ``fedmoe.client.module.ClientModule``.

Shape letters: b images, C classes, l context tokens, w token width, d feature width, K experts, M prompts at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.features.client_data import ClientData
    from fedmoe.models.prompt import PromptLearner
    from fedmoe.protocol.parameters import Parameter


class Client(Protocol):
    """A client, during training or evaluation.

    Attributes:
        client_id: its number; -1 outside a federation.
        declared: the method's parameters.
        prompts: the learned tensors by name, such as ``client.prompts["prompt"]`` [l, w]; also encodes prompts as text
            features.
        gate: the gate, if the method declares a module of that name. Other modules are attributes by their names, too.
        logit_scale: exp of CLIP's logit scale, 1 / tau.
        constants: the method's ``constants``.
        received: the shared parameters as the server sent them.
        experts: the experts' parameters by name, [K, l, w]; K = 0 where the gate takes part without experts.
        expert_text: the experts' text features [K, C, d], l2-normalized; None without experts and gate.
        extras: whatever else the server sent.
        data: the client's own data; None if the module is used outside a federation.
    """

    client_id: int
    declared: tuple[Parameter, ...]
    prompts: PromptLearner
    gate: Any
    logit_scale: float
    constants: Mapping[str, Tensor]
    received: Mapping[str, Tensor]
    experts: Mapping[str, Tensor]
    expert_text: Tensor | None
    extras: Mapping[str, Tensor]
    data: ClientData | None

    def text_features(self, prompts: Tensor | None = None) -> Tensor:
        """L2-normalized text features: [C, d] of a prompt [l, w], by default the one the client classifies with
        (``Method.prompt``); [M, C, d] of M prompts [M, l, w]. With gradient during training, cached otherwise."""

    def export(self) -> dict[str, Tensor]:
        """Copies of all parameters on the CPU, by name."""
