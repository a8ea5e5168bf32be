"""What the tests of federations share: building one on real data, and comparing what it did."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmoe.client.module import ClientModule
from fedmoe.config import FederationConfig, OptimConfig, PrivacyConfig, PromptConfig
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.callbacks import Callback
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import Method
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import Evaluation, RoundRecord
from fedmoe.runs.checkpoint import FederationState
from fedmoe.seeds import torch_generator


class Log(Callback):
    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.evaluations: list[Evaluation] = []

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        self.records.append(record)

    def on_evaluation_end(self, federation: Federation, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)


class Backwards(Federation):
    def order(self, cohort: Sequence[int]) -> Sequence[int]:
        return list(reversed(cohort))


def build_federation(
    clip: FrozenCLIP,
    data: FederatedData,
    method: Method,
    config: FederationConfig,
    optim: OptimConfig | None = None,
    state: FederationState | None = None,
    kind: type[Federation] = Federation,
    seed: int = 5,
    callbacks: Sequence[Callback] = (),
    privacy: PrivacyConfig | None = None,
) -> tuple[Federation, Log]:
    """The method's federation on the data, and the log of what it will do."""
    learner = PromptLearner(clip, data.class_names, PromptConfig(init=None), torch_generator(seed, "prompt"))
    constants = method.constants(clip, data.class_names, data.template)
    module = ClientModule(
        learner,
        method,
        optim or OptimConfig(prompt_lr=0.02, gating_lr=0.05),
        feature_dim=clip.feature_dim,
        logit_scale=clip.logit_scale,
        constants=constants,
    )
    log = Log()
    state = state or FederationState.fresh(module.export_prompt(), config.clients)
    config = method.schedule(config)
    federation = kind(method, module, data, config, state, seed=seed, callbacks=[log, *callbacks], privacy=privacy)
    return federation, log


def results(log: Log) -> list[dict]:
    """The records without what the clock says."""
    return [{**record.to_json(), "seconds": None} for record in log.records]


def differences(one: FederationState, other: FederationState) -> list[str]:
    """Names of the tensors in which two states differ; the rest must agree."""
    (tensors, rest), (others, other_rest) = one.flatten(), other.flatten()
    assert rest == other_rest
    assert tensors.keys() == others.keys()
    return [name for name in tensors if not torch.equal(tensors[name], others[name])]
