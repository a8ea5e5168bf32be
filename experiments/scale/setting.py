"""What the runs of this folder have in common: the embedded CLIP, one thread, learning rates of 0.02."""

from __future__ import annotations

from pathlib import Path

from fedmoe import config
from fedmoe.data.base import DataSet
from fedmoe.data.partition import Partition
from fedmoe.experiment import Experiment


def embedded(
    data: DataSet,
    partition: Partition,
    federation: config.FederationConfig,
    cache: str | Path,
    runtime: config.RuntimeConfig | None = None,
    engine: config.EngineConfig | None = None,
) -> Experiment:
    """An experiment with seed 0 whose features are kept in ``cache``."""
    return Experiment(
        seed=0,
        clip=config.ClipConfig(architecture="fedmoe-tiny", pretrained="glyphs"),
        prompt=config.PromptConfig(),
        data=data,
        partition=partition,
        federation=federation,
        optim=config.OptimConfig(prompt_lr=0.02, gating_lr=0.02),
        features=config.FeatureConfig(cache_dir=str(cache)),
        views=config.ViewsConfig(),
        privacy=config.PrivacyConfig(),
        runtime=runtime or config.RuntimeConfig(threads=1),
        engine=engine or config.EngineConfig(),
        tracking=config.TrackingConfig(),
        output=config.OutputConfig(),
    )
