"""What a method learns, declared once; sending, averaging, keeping, byte counts and checkpoints follow from it.

Shape letters: l context tokens, w token width, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedmoe.models.clip import FrozenCLIP


class Scope(StrEnum):
    """Who holds a parameter."""

    SHARED = "shared"  # sent down, trained, sent up, and averaged over the cohort
    PERSONAL = "personal"  # trained on the client; never leaves it
    EXPERT = "expert"  # other clients' values of a shared parameter; sent down, not trained


Start = Callable[["torch.Generator"], "Tensor | nn.Module"]


@dataclass(frozen=True)
class ModelSpec:
    """What the shape and the initial value of a parameter may depend on.

    Attributes:
        prompt: the common initial value of prompts, random or from words: [l, w]; [C, l, w] if class-specific.
        feature_dim: width d of CLIP's features.
        clip: the frozen CLIP, for parts whose shape depends on its towers.
    """

    prompt: Tensor
    feature_dim: int
    clip: FrozenCLIP | None = None


@dataclass(frozen=True)
class Parameter:
    """A named part of what a method learns: a tensor, or a module such as a gate.

    A tensor is called by the part's name, a module's tensors ``<part>.<name in the module>``.

    Attributes:
        name: an identifier. The client's module holds tensors in ``prompts``, and modules as attributes of that name.
        scope: who holds it.
        start: makes the initial value. The generator of a shared part derives from (run seed, name), so that all
            clients start equal; that of personal parts derives from (run seed, client). None for experts.
        rate: its learning rate, by its name in the settings ``optim``.
        keep: the client also keeps its own last value of a shared part (or its last experts). It is evaluated with that
            value, and downloads the server's only until it has trained for the first time.
        pool: the server also keeps every client's last upload of it.
        common: of a personal part: all clients start equal, as with shared ones.
    """

    name: str
    scope: Scope
    start: Start | None = None
    rate: Literal["prompt_lr", "gating_lr"] = "prompt_lr"
    keep: bool = False
    pool: bool = False
    common: bool = False


def part_of(name: str) -> str:
    """The part that a tensor belongs to: ``gate.query.weight`` -> ``gate``."""
    return name.partition(".")[0]


def select(tensors: Mapping[str, Tensor], parts: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of some parts."""
    wanted = set(parts)
    return {name: tensor for name, tensor in tensors.items() if part_of(name) in wanted}


def named_tensors(name: str, value: Tensor | nn.Module) -> dict[str, Tensor]:
    """The tensors of a part, by the names under which they are sent and kept; no copies."""
    if callable(getattr(value, "state_dict", None)):
        return {f"{name}.{inner}": tensor for inner, tensor in value.state_dict().items()}  # type: ignore[union-attr]
    return {name: value}  # type: ignore[dict-item]


def fixed(value: Tensor) -> Start:
    """An initial value that is the same for all clients."""
    return lambda generator: value.clone()


def normal(shape: Iterable[int], std: float) -> Start:
    """A random initial value from N(0, std^2)."""

    def draw(generator: torch.Generator) -> Tensor:
        import torch

        return torch.empty(tuple(shape)).normal_(std=std, generator=generator)

    return draw
