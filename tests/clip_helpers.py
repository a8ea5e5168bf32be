"""What the tests of CLIP share: weights files in every format, and the sentence that a failed load ends in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedmoe.config import ClipConfig
from fedmoe.errors import UserError
from fedmoe.io import write_tensors_atomic
from fedmoe.models.clip import FrozenCLIP
from fedmoe.readers.weights import ROWS

State = dict[str, Tensor]


def module_of(state: State) -> nn.Module:
    """A tree of bare modules whose state dict is ``state``."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_buffer(leaf, tensor)
    return root


def save_archive(state: State, path: Path) -> None:
    """A TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are not
        torch.jit.save(torch.jit.trace_module(module_of(state), {}), path)


# OpenAI's archives hold these numbers as tensors besides the weights.
OPENAI = {
    "input_resolution": torch.tensor(224),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}


def save_safetensors(state: State, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def save_open_clip(state: State, path: Path) -> None:
    torch.save({"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)


def save_legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_compact(state: State, path: Path) -> None:
    write_tensors_atomic(path, {**state, ROWS: torch.arange(49408)})


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "safetensors": save_safetensors,
    "state_dict": lambda state, path: torch.save(state, path),
    "legacy": save_legacy,
    "open_clip": save_open_clip,
    "openai_state_dict": lambda state, path: torch.save(state | OPENAI, path),
    "archive": save_archive,
    "openai_archive": lambda state, path: save_archive(state | OPENAI, path),
    "compact": save_compact,
}


def refusal(**options: Any) -> str:
    """The one sentence that loading with these settings ends in."""
    with pytest.raises(UserError) as caught:
        FrozenCLIP.load(ClipConfig(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message
