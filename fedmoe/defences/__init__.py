"""Defences of the server, one file each. Importing this package imports no torch.

``guard`` is what the round loop uses, and is imported by name.
"""

from fedmoe.defences.base import Aggregation, Screening
from fedmoe.defences.krum import Krum
from fedmoe.defences.median import Median
from fedmoe.defences.norm_clipping import NormClipping
from fedmoe.defences.outliers import OutlierTest
from fedmoe.defences.reputation import Reputation
from fedmoe.defences.trimmed_mean import TrimmedMean

__all__ = ["Aggregation", "Krum", "Median", "NormClipping", "OutlierTest", "Reputation", "Screening", "TrimmedMean"]
