"""What a run is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.attacks import Attack
from fedmoe.config import (
    ClipConfig,
    EngineConfig,
    FeatureConfig,
    FederationConfig,
    OptimConfig,
    OutputConfig,
    PrivacyConfig,
    PromptConfig,
    RuntimeConfig,
    TrackingConfig,
    ViewsConfig,
)
from fedmoe.data.base import DataSet
from fedmoe.data.partition import Partition
from fedmoe.defences import Aggregation, Screening, Serving
from fedmoe.defences.guard import Defences
from fedmoe.tracking.wandb_tracker import sweep_run_id


@dataclass(frozen=True)
class Experiment:
    """The settings of a run, as built by the command line."""

    seed: int
    clip: ClipConfig
    prompt: PromptConfig
    data: DataSet
    partition: Partition
    federation: FederationConfig
    optim: OptimConfig
    features: FeatureConfig
    views: ViewsConfig
    privacy: PrivacyConfig
    runtime: RuntimeConfig
    engine: EngineConfig
    tracking: TrackingConfig
    output: OutputConfig
    attack: Attack | None = None
    aggregation: Aggregation | None = None
    screening: Screening | None = None
    serving: Serving | None = None

    @property
    def defences(self) -> Defences:
        return Defences(self.aggregation, self.screening, self.serving)

    def folder(self, *labels: str, over_seeds: bool = False) -> Path:
        """The run folder, or that of the runs of several seeds; ``labels`` are the names of the methods that run in
        it."""
        end = "seeds" if over_seeds else f"seed{self.seed}"
        name = self.output.name or "-".join([self.data.name, *labels, end])
        swept = sweep_run_id()  # the runs of a sweep differ in settings that the name does not show
        return Path(self.output.dir) / (f"{name}-{swept}" if swept else name)
