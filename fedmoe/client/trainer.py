"""Lightning's Trainer, made for many short fits: one for each client and round."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import lightning as L
from lightning.fabric.utilities import registry

from fedmoe.config import RuntimeConfig

# There is one fit per client and round, and Lightning's messages about each would bury everything else.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=Warning)
warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.trainer.*", category=UserWarning)
# Each Trainer reads the metadata of every installed package, to find those that bring callbacks along. Which these are
# does not change within a process, and looking is most of what a Trainer costs.
registry.entry_points = cache(registry.entry_points)  # type: ignore[assignment]

_STEPS: Mapping[str, Any] = {"float32": None, "bfloat16": "bf16-mixed"}  # Lightning's names; None: as things are


def light_trainer(runtime: RuntimeConfig, **kwargs: Any) -> L.Trainer:
    """A Trainer stripped down for a short fit. Make a new one for each fit: a used one does nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return L.Trainer(
            accelerator=runtime.accelerator,
            devices=runtime.devices,
            precision=_STEPS[runtime.precision],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **kwargs,
        )
