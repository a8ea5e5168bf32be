"""What tests of methods with personal prompts share: their federation, and local training to compare with."""

from __future__ import annotations

from federation_helpers import Log, build_federation

from fedmoe.config import FederationConfig
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import CoOp, Method
from fedmoe.models.clip import FrozenCLIP

CLIENTS = 5
CONFIG = FederationConfig(clients=CLIENTS, participation=0.6, rounds=3, local_epochs=1, batch_size=32)
VECTOR_BYTES = 64 * 4  # one vector of 64 float32


class LocalRounds(CoOp):
    """Local training in the federation's rounds, with nothing sent."""

    def schedule(self, federation: FederationConfig) -> FederationConfig:
        return federation


def build(
    clip: FrozenCLIP, data: FederatedData, method: Method, config: FederationConfig = CONFIG, **settings
) -> tuple[Federation, Log]:
    return build_federation(clip, data, method, config, **settings)


def run(clip: FrozenCLIP, data: FederatedData, method: Method, **kwargs) -> tuple[Federation, Log]:
    federation, log = build(clip, data, method, **kwargs)
    federation.run()
    return federation, log
