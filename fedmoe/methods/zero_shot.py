"""Zero-shot CLIP: a hand-written template, nothing trained (Radford et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.functional import local_logits
from fedmoe.models.prompt import template_features
from fedmoe.protocol.method import Method

if TYPE_CHECKING:
    from fedmoe.client.module import ClientModule  # Lightning takes seconds to import


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
        return {"template": template_features(clip, class_names, self.template or template)}  # [C, d]

    def logits(self, client: ClientModule, image_features: Tensor) -> Tensor:
        return local_logits(image_features, client.constants["template"], client.logit_scale)
