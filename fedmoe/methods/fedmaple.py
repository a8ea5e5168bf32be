"""Fed-MaPLe: deep text prompts, and visual prompts that are made from them, averaged over the clients.

Khattak, Rasheed, Maaz, Khan, Khan, "MaPLe: Multi-modal Prompt Learning", CVPR 2023 (arXiv 2210.03117), trained by
FedAvg as federated works compare with it. Block j of both towers, j < J, gets learned tokens: P_j [n, w] in the text
tower, and

    F_j P_j [n, v],    F_j a linear map with bias

in the image tower, where they come behind the patches.

Shape letters: C classes, J blocks with prompts, n words, w width of the text tower, v of the image tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.methods.towers import TEMPLATE, TowerMethod, deep_prompts, first_words, tower_of
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedmoe.models.blocks import Edits
    from fedmoe.protocol.client import Client


class FedMaPLe(TowerMethod):
    """Prompts and couplings are averaged over the cohort (weighted by n_i), each by itself and not their products.

    All are trained with ``optim.prompt_lr``. The first prompt starts from the template's first words, whose places it
    takes; the template's other words stay. The others start from N(0, std^2). The first coupling starts from torch's
    default for linear maps, and the deeper ones from another draw of it, which they have in common. Nothing stays on
    the client. At CLIP's ViT-B/16, 3,555,072 parameters: 14.2 MB each way.

    Args:
        vectors: number n of learned words, and of visual tokens.
        depth: number J of blocks, from the first, that get prompts; at most those of the tower with fewer.
        std: standard deviation of the random starts.
        template: the sentence around a class name, with {class} in its place.
        save_memory: keep no activations within the towers' blocks for the backward pass, which computes them again.
        tokens: number format in which the cached tokens are kept; float16 takes half the room.
    """

    label = "Fed-MaPLe"

    def __init__(
        self,
        vectors: int = 2,
        depth: int = 9,
        std: float = 0.02,
        template: str = TEMPLATE,
        save_memory: bool = False,
        tokens: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__(template, save_memory, tokens)
        for name, value in {"vectors": vectors, "depth": depth}.items():
            if value < 1:
                raise UserError(f"method.{name} is {value}; valid is an integer of at least 1.")
        if std < 0:
            raise UserError(f"method.std is {std}; valid is a number of at least 0.")
        self.vectors = vectors
        self.depth = depth
        self.std = std

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        clip, tower = tower_of(model)
        words = first_words(clip, self.template, self.vectors)
        depth = min(self.depth, len(tower.blocks), len(clip.text.blocks))

        def text(generator: torch.Generator) -> Tensor:
            return deep_prompts(words, (depth, *words.shape), self.std, generator)

        def couplings(generator: torch.Generator) -> nn.Module:
            from torch import nn

            from fedmoe.models.blocks import default_linear

            found = [default_linear(clip.token_width, tower.width, generator) for _ in range(min(depth, 2))]
            later = [default_linear(clip.token_width, tower.width) for _ in range(depth - 2)]
            for coupling in later:
                coupling.load_state_dict(found[1].state_dict())
            return nn.ModuleList([*found, *later])

        return [Parameter("text", Scope.SHARED, text), Parameter("couplings", Scope.SHARED, couplings)]

    def _visual(self, client: Client, block: int) -> Tensor:
        """F_j P_j [n, v]."""
        found: Tensor = client.couplings[block](client.prompts["text"][block])  # type: ignore[attr-defined]
        return found

    def appended(self, client: Client) -> Tensor:
        return self._visual(client, 0)

    def image_edits(self, client: Client) -> Edits:
        from fedmoe.models.blocks import replaced

        depth = len(client.prompts["text"])
        return {i: replaced(self._visual(client, i), -self.vectors) for i in range(1, depth)}

    def text(self, client: Client) -> Tensor:
        from fedmoe.models.blocks import replaced

        words = client.prompts["text"]
        encode = client.prompts.sentences(self.template, self.vectors)
        edits = {i: replaced(words[i], 1) for i in range(1, len(words))}
        return encode(words[0], edits, save_memory=self.save_memory)
