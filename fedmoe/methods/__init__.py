"""Methods, one file each. Importing this package makes their short names known to the command line.

Files in this package import torch inside functions, not at the top, so that ``--help`` and error messages are fast.
This does not apply to methods of your own.
"""

from fedmoe.methods.coop import CoOp
from fedmoe.methods.dpfpl import DPFPL
from fedmoe.methods.fedamp import FedAMP
from fedmoe.methods.fedlora import FedLoRA
from fedmoe.methods.fedmaple import FedMaPLe
from fedmoe.methods.fedmgp import FedMGP
from fedmoe.methods.fedotp import FedOTP
from fedmoe.methods.fedper import FedPer
from fedmoe.methods.fedpgp import FedPGP
from fedmoe.methods.fedpha import FedPHA
from fedmoe.methods.fedprox import FedProx
from fedmoe.methods.fedsept import FedSEPT
from fedmoe.methods.fedtpg import FedTPG
from fedmoe.methods.fedvpt import FedVPT
from fedmoe.methods.local_adapter import LocalAdapter
from fedmoe.methods.neighbour_mixture import NeighbourMixture
from fedmoe.methods.pfedmma import PFedMMA
from fedmoe.methods.pfedmoap import PFedMoAP
from fedmoe.methods.pfedprompt import PFedPrompt
from fedmoe.methods.promptfl import PromptFL
from fedmoe.methods.promptfl_ft import PromptFLFT
from fedmoe.methods.promptfolio import PromptFolio
from fedmoe.methods.zero_shot import ZeroShot
from fedmoe.protocol.method import Method

__all__ = [
    "DPFPL",
    "CoOp",
    "FedAMP",
    "FedLoRA",
    "FedMGP",
    "FedMaPLe",
    "FedOTP",
    "FedPGP",
    "FedPHA",
    "FedPer",
    "FedProx",
    "FedSEPT",
    "FedTPG",
    "FedVPT",
    "LocalAdapter",
    "Method",
    "NeighbourMixture",
    "PFedMMA",
    "PFedMoAP",
    "PFedPrompt",
    "PromptFL",
    "PromptFLFT",
    "PromptFolio",
    "ZeroShot",
]
