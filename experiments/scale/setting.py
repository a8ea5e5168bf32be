"""What the runs of this folder have in common: the embedded CLIP, one thread, learning rates of 0.02."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmoe import config
from fedmoe.data import Digits
from fedmoe.data.base import DataSet, RawData, Split
from fedmoe.data.partition import Partition
from fedmoe.experiment import Experiment


@dataclass(frozen=True, eq=False)
class ManyDigits(Digits):
    """The digits, again and again."""

    copies: int = 1

    def _read(self) -> RawData:
        raw = super()._read()
        return RawData(raw.class_names, (), self._repeated(raw.train), self._repeated(raw.test))

    def _repeated(self, split: Split) -> Split:
        number, image = len(split.labels), split.image
        return Split(np.tile(split.labels, self.copies), lambda i: image(i % number))

    @classmethod
    def of(cls, clients: int) -> ManyDigits:
        """So many digits that each client can have two training images and a test image of its own."""
        return cls(copies=-(-clients // 500))

    def _source_key(self) -> str:
        return f"{super()._source_key()} {self.copies} times"


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
