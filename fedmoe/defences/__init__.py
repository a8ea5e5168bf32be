"""Defences of the server, one file each. Importing this package imports no torch.

``guard`` is what the round loop uses, and is imported by name.
"""

from fedmoe.defences.base import Aggregation, Screening, Serving
from fedmoe.defences.groups import Groups
from fedmoe.defences.krum import Krum
from fedmoe.defences.low_rank import LowRank
from fedmoe.defences.median import Median
from fedmoe.defences.minimum_size import MinimumSize
from fedmoe.defences.noise import Noise
from fedmoe.defences.norm_clipping import NormClipping
from fedmoe.defences.outliers import OutlierTest
from fedmoe.defences.quantized import Quantized
from fedmoe.defences.reputation import Reputation
from fedmoe.defences.trimmed_mean import TrimmedMean

__all__ = [
    "Aggregation",
    "Groups",
    "Krum",
    "LowRank",
    "Median",
    "MinimumSize",
    "Noise",
    "NormClipping",
    "OutlierTest",
    "Quantized",
    "Reputation",
    "Screening",
    "Serving",
    "TrimmedMean",
]
