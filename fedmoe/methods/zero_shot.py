"""Zero-shot CLIP: a hand-written template, nothing trained (Radford et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client


class ZeroShot(Method):
    """Zero-shot CLIP.

    Args:
        template: the sentence around a class name, with {class} in its place; null: the data set's own.
    """

    label = "Zero-shot CLIP"

    def __init__(self, template: str | None = None) -> None:
        if template is not None and "{class}" not in template:
            raise UserError(f"method.template is {template!r}; valid is a sentence with {{class}} in it.")
        self.template = template

    def schedule(self, federation: FederationConfig) -> FederationConfig:
        return replace(federation, rounds=0)

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        from fedmoe.models.prompt import template_features

        return {"template": template_features(clip, class_names, self.template or template)}  # [C, d]

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        return []

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        from fedmoe.models.functional import local_logits

        return local_logits(image_features, client.constants["template"], client.logit_scale)
