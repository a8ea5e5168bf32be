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
from fedmoe.data.sets.domain_folders import PACS, VLCS, OfficeHome
from fedmoe.data.sets.domainnet import DomainNet
from fedmoe.data.sets.dtd import DTD
from fedmoe.data.sets.eurosat import EuroSAT
from fedmoe.data.sets.fgvc_aircraft import FGVCAircraft
from fedmoe.data.sets.flowers102 import Flowers102
from fedmoe.data.sets.food101 import Food101
from fedmoe.data.sets.hugging_face import HuggingFace
from fedmoe.data.sets.idx_images import EMNIST, KMNIST, MNIST, FashionMNIST
from fedmoe.data.sets.image_folder import ImageFolder
from fedmoe.data.sets.imagenet import ImageNet, ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2
from fedmoe.data.sets.office_caltech import OfficeCaltech10
from fedmoe.data.sets.oxford_pets import OxfordPets
from fedmoe.data.sets.stanford_cars import StanfordCars
from fedmoe.data.sets.sun397 import SUN397
from fedmoe.data.sets.tiny_imagenet import TinyImageNet
from fedmoe.data.sets.ucf101 import UCF101
from fedmoe.data.subset import SubsetConfig

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DTD",
    "EMNIST",
    "IID",
    "KMNIST",
    "MNIST",
    "PACS",
    "SUN397",
    "UCF101",
    "VLCS",
    "Caltech101",
    "ClientIndices",
    "DataSet",
    "DigitDomains",
    "Digits",
    "Dirichlet",
    "DomainClasses",
    "DomainDirichlet",
    "DomainNet",
    "EuroSAT",
    "FGVCAircraft",
    "FashionMNIST",
    "Flowers102",
    "Food101",
    "HuggingFace",
    "ImageFolder",
    "ImageNet",
    "ImageNetA",
    "ImageNetR",
    "ImageNetSketch",
    "ImageNetV2",
    "OfficeCaltech10",
    "OfficeHome",
    "OneDomainPerClient",
    "OxfordPets",
    "Partition",
    "Pathological",
    "PublishedFacts",
    "RawData",
    "Split",
    "StanfordCars",
    "SubsetConfig",
    "TinyImageNet",
    "partition_dataset",
    "partition_summary",
]
