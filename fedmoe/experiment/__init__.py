"""From settings to a run folder: load CLIP, prepare the data, run the federation of one method or of several.

A run folder holds config.yaml, partition.json, rounds.jsonl, clients.jsonl, state/, summary.json and plots/.
A comparison is a folder of run folders, one for each method, over the same clients and the same seed.
"""

from fedmoe.experiment.scoring import evaluate
from fedmoe.experiment.session import Session, load_clip
from fedmoe.experiment.settings import Experiment
from fedmoe.experiment.training import SeedRun, compare, read_settings, run, run_seeds

__all__ = [
    "Experiment",
    "SeedRun",
    "Session",
    "compare",
    "evaluate",
    "load_clip",
    "read_settings",
    "run",
    "run_seeds",
]
