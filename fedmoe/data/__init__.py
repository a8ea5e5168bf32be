"""Data sets, their partition over clients, and cached image features.

Importing this package imports every data set and partition class, so that short names resolve; it imports no torch.
``features`` and ``datamodule`` need torch and are imported by name.
"""

from fedmoe.data.base import DataSet, PublishedFacts, RawData, Split
from fedmoe.data.partition import (
    IID,
    ClientIndices,
    Dirichlet,
    Partition,
    Pathological,
    partition_dataset,
    partition_summary,
)
from fedmoe.data.partition_domains import DomainClasses, DomainDirichlet, OneDomainPerClient
from fedmoe.data.sets.caltech101 import Caltech101
from fedmoe.data.sets.cifar import CIFAR10, CIFAR100
from fedmoe.data.sets.digit_domains import DigitDomains
from fedmoe.data.sets.digits import Digits
from fedmoe.data.sets.domainnet import DomainNet
from fedmoe.data.sets.dtd import DTD
from fedmoe.data.sets.flowers102 import Flowers102
from fedmoe.data.sets.food101 import Food101
from fedmoe.data.sets.hugging_face import HuggingFace
from fedmoe.data.sets.image_folder import ImageFolder
from fedmoe.data.sets.office_caltech import OfficeCaltech10
from fedmoe.data.sets.oxford_pets import OxfordPets
from fedmoe.data.subset import SubsetConfig

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DTD",
    "IID",
    "Caltech101",
    "ClientIndices",
    "DataSet",
    "DigitDomains",
    "Digits",
    "Dirichlet",
    "DomainClasses",
    "DomainDirichlet",
    "DomainNet",
    "Flowers102",
    "Food101",
    "HuggingFace",
    "ImageFolder",
    "OfficeCaltech10",
    "OneDomainPerClient",
    "OxfordPets",
    "Partition",
    "Pathological",
    "PublishedFacts",
    "RawData",
    "Split",
    "SubsetConfig",
    "partition_dataset",
    "partition_summary",
]
