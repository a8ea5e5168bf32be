"""Attacks, one file each: clients that do not follow the protocol. Importing this package imports no torch.

``adversary`` carries an attack out and is imported by name.
"""

from fedmoe.attacks.backdoor import Backdoor
from fedmoe.attacks.base import Attack
from fedmoe.attacks.huge_norm import HugeNorm
from fedmoe.attacks.label_flip import LabelFlip
from fedmoe.attacks.model_replacement import ModelReplacement
from fedmoe.attacks.nearest_copies import NearestCopies
from fedmoe.attacks.noise_prompt import NoisePrompt

__all__ = ["Attack", "Backdoor", "HugeNorm", "LabelFlip", "ModelReplacement", "NearestCopies", "NoisePrompt"]
