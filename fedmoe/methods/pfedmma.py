"""pFedMMA: adapters in the upper blocks of both towers, whose middle map is shared by towers and clients.

Ghiasvand, Alizadeh, Pedarsani, "pFedMMA: Personalized Federated Fine-Tuning with Multi-Modal Adapter for
Vision-Language Models", ICLR 2026 (arXiv 2507.05394), as in its public release. To the output of block j of either
tower is added

    s * U_j act(S_j act(D_j x)),    x the block's normalized input, maps with biases,

where S_j [r, r] is the same in both towers.

Shape letters: C classes, r adapter dimension, w a tower's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fedmoe.errors import UserError
from fedmoe.methods.towers import TEMPLATE, TowerMethod, tower_of
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedmoe.models.blocks import Edits
    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client


class PFedMMA(TowerMethod):
    """The middle maps S are averaged over the cohort (weighted by n_i); the maps down and up stay on the client.

    All are trained with ``optim.prompt_lr`` on cross-entropy. All clients start from the same draw: weights from
    N(0, 2 / number of outputs), biases zero. A client predicts with the current S and its own maps down and up, or
    their initial values. Below the first adapter, tokens are cached. At CLIP's ViT-B/16 and the defaults, 674,560
    parameters are trained and 8,448 sent, 33.8 kB.

    With the small scale s, the plain gradient of an adapter is s times what it would be at scale 1, and at usual
    learning rates the method hardly moves. The release therefore divides it by s, and leaves that of everything below
    an adapter as it is: ``gradients: scaled``. Only the release is known to do so, but its published settings (s =
    0.001, learning rate 0.001) make sense only with it, so the shipped configuration has it, too.

    Left out are three habits of the release: it evaluates all clients in all rounds with the text features of the first
    evaluation ever made, keeps one momentum buffer for all clients, and trains all clients in the first round.

    Args:
        first: the first block with an adapter, from 1; null: above the lower third of the tower with fewer blocks,
            which is 5 for CLIP's 12.
        last: the last block with an adapter; null: that of the tower with fewer blocks.
        rank: r.
        scale: s.
        gradients: plain, or scaled, where those of the adapters are divided by s.
        activation: between the maps: relu (the release) or gelu.
        template: the sentence around a class name, with {class} in its place.
        save_memory: keep no activations within the towers' blocks for the backward pass, which computes them again.
        tokens: number format in which the cached tokens are kept; float16 takes half the room.
    """

    label = "pFedMMA"

    def __init__(
        self,
        first: int | None = None,
        last: int | None = None,
        rank: int = 32,
        scale: float = 0.001,
        gradients: Literal["plain", "scaled"] = "plain",
        activation: Literal["relu", "gelu"] = "relu",
        template: str = TEMPLATE,
        save_memory: bool = False,
        tokens: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__(template, save_memory, tokens)
        for name, value in {"first": first, "last": last, "rank": rank}.items():
            if value is not None and value < 1:
                raise UserError(f"method.{name} is {value}; valid is an integer of at least 1.")
        if scale <= 0:
            raise UserError(f"method.scale is {scale}; valid is a number above 0.")
        self.first = first
        self.last = last
        self.rank = rank
        self.scale = scale
        self.gradients = gradients
        self.activation = activation

    def blocks(self, clip: FrozenCLIP) -> range:
        """The blocks with adapters, from 0.

        Raises:
            UserError: the towers do not have them all.
        """
        from fedmoe.models.image_tower import ImageTower

        most = min(len(ImageTower(clip).blocks), len(clip.text.blocks))
        first = most // 3 + 1 if self.first is None else self.first
        last = most if self.last is None else self.last
        if not first <= last <= most:
            raise UserError(
                f"method.first is {first} and method.last {last}, but {clip.name} has {len(ImageTower(clip).blocks)} "
                f"blocks for images and {len(clip.text.blocks)} for texts; valid is 1 <= first <= last <= {most}."
            )
        return range(first - 1, last)

    def first_block(self, clip: FrozenCLIP) -> int:
        return self.blocks(clip).start

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        clip, tower = tower_of(model)
        blocks = [str(block) for block in self.blocks(clip)]

        def adapters(width: int) -> Any:
            def start(generator: torch.Generator) -> nn.Module:
                from torch import nn

                from fedmoe.models.blocks import Adapter

                return nn.ModuleDict({block: Adapter(width, self.rank, generator) for block in blocks})

            return start

        def middle(generator: torch.Generator) -> nn.Module:
            from torch import nn

            from fedmoe.models.blocks import he_linear

            return nn.ModuleDict({block: he_linear(self.rank, self.rank, generator) for block in blocks})

        return [
            Parameter("middle", Scope.SHARED, middle),
            Parameter("text_adapters", Scope.PERSONAL, adapters(clip.token_width), common=True),
            Parameter("image_adapters", Scope.PERSONAL, adapters(tower.width), common=True),
        ]

    def _edits(self, client: Client, adapters: Any) -> Edits:
        from torch.nn import functional as F

        from fedmoe.models.blocks import beside

        act: Any = {"relu": F.relu, "gelu": F.gelu}[self.activation]
        scaled, scale = self.gradients == "scaled", self.scale

        def branch(block: str) -> Any:
            own, middle = adapters[block], client.middle[block]  # type: ignore[attr-defined]

            def added(x: Tensor) -> Tensor:
                x = x.to(own.down.weight.dtype)
                if scaled:  # the same values; of the gradient to what is below, s here and 1 / s at the other end
                    x = x.detach() + scale * (x - x.detach())
                found = scale * own.up(act(middle(act(own.down(x)))))
                return found.detach() + (found - found.detach()) / scale if scaled else found

            return added

        return {int(block): beside(branch(block)) for block in adapters}

    def image_edits(self, client: Client) -> Edits:
        return self._edits(client, client.image_adapters)  # type: ignore[attr-defined]

    def text(self, client: Client) -> Tensor:
        encode = client.prompts.sentences(self.template, first=self.first_block(client.clip))
        edits = self._edits(client, client.text_adapters)  # type: ignore[attr-defined]
        return encode(None, edits, save_memory=self.save_memory)
