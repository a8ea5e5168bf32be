"""FedLoRA: low-rank changes to the attention of CLIP's towers, averaged over the clients.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685), on the query, key and
value maps of CLIP as in Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops
2024 (arXiv 2405.18541), trained by FedAvg:

    W + (alpha / r) B A,    B [w, r] starts at zero.

Shape letters: J blocks with factors, r rank, w a tower's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from fedmoe.errors import UserError
from fedmoe.methods.towers import TEMPLATE, TowerMethod, tower_of
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.models.blocks import Edits
    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client


class FedLoRA(TowerMethod):
    """The factors A and B are averaged over the cohort (weighted by n_i), each by itself.

    The mean of the products B A, which the clients trained, is another matrix. Nothing stays on the client.

    All are trained with ``optim.prompt_lr``. A starts from the uniform distribution of torch's linear maps, B at zero,
    so that the first model is CLIP with the template. In the image encoder, tokens are cached below the first changed
    block.

    Args:
        rank: r.
        alpha: the change is scaled by alpha / r.
        towers: which towers are changed.
        first: the first block that is changed, from 1, in either tower; all above it are, too. At most the number of
            blocks of a changed tower.
        template: the sentence around a class name, with {class} in its place.
        save_memory: keep no activations within the towers' blocks for the backward pass, which computes them again.
        tokens: number format in which the cached tokens are kept; float16 takes half the room.
    """

    label = "FedLoRA"

    def __init__(
        self,
        rank: int = 2,
        alpha: float = 1.0,
        towers: Literal["both", "image", "text"] = "both",
        first: int = 1,
        template: str = TEMPLATE,
        save_memory: bool = False,
        tokens: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__(template, save_memory, tokens)
        for name, value in {"rank": rank, "first": first}.items():
            if value < 1:
                raise UserError(f"method.{name} is {value}; valid is an integer of at least 1.")
        if alpha <= 0:
            raise UserError(f"method.alpha is {alpha}; valid is a number above 0.")
        self.rank = rank
        self.alpha = alpha
        self.towers = towers
        self.first = first

    def first_block(self, clip: FrozenCLIP) -> int:
        from fedmoe.models.image_tower import ImageTower

        return len(ImageTower(clip).blocks) if self.towers == "text" else self.first - 1

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        from fedmoe.models.prompt import template_features

        if self.towers != "image":
            return {}
        return {"template": template_features(clip, class_names, self.template)}  # [C, d]

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        clip, tower = tower_of(model)
        sizes = {"image": (len(tower.blocks), tower.width), "text": (len(clip.text.blocks), clip.token_width)}
        parts = []
        for name, (blocks, width) in sizes.items():
            if self.towers not in (name, "both"):
                continue
            if self.first > blocks:
                raise UserError(
                    f"method.first is {self.first}, but {clip.name} has {blocks} {name} blocks; valid is 1 to {blocks}."
                )
            shape = (blocks - self.first + 1, 3, self.rank, width)  # query, key, value
            parts.append(Parameter(f"{name}_A", Scope.SHARED, _uniform(shape)))
            parts.append(Parameter(f"{name}_B", Scope.SHARED, _zeros((*shape[:2], width, self.rank))))
        return parts

    def _edits(self, client: Client, tower: str) -> Edits:
        from fedmoe.models.blocks import low_rank

        down, up = client.prompts[f"{tower}_A"], client.prompts[f"{tower}_B"]
        return {self.first - 1 + j: low_rank(down[j], up[j], self.alpha / self.rank) for j in range(len(down))}

    def image_edits(self, client: Client) -> Edits:
        return {} if self.towers == "text" else self._edits(client, "image")

    def text(self, client: Client) -> Tensor:
        if self.towers == "image":
            return client.constants["template"].to(client.prompts.start)
        encode = client.prompts.sentences(self.template, first=self.first - 1)
        return encode(None, self._edits(client, "text"), save_memory=self.save_memory)


def _uniform(shape: tuple[int, ...]) -> Any:
    def draw(generator: torch.Generator) -> Tensor:
        import torch

        bound = shape[-1] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    return draw


def _zeros(shape: tuple[int, ...]) -> Any:
    def start(generator: torch.Generator) -> Tensor:
        import torch

        return torch.zeros(shape)

    return start
