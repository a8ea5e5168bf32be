"""What the tests of federations share: building one on real data, and comparing what it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fedmoe.attacks.adversary import Adversary
from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientWork
from fedmoe.config import FederationConfig, OptimConfig, PrivacyConfig, PromptConfig, RuntimeConfig
from fedmoe.defences.guard import Defences
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.callbacks import Callback, FederationView
from fedmoe.federation.evaluation import Evaluation
from fedmoe.federation.fleet import Fleet, LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.rehearsal import rehearse
from fedmoe.federation.state import FederationState, fresh_server
from fedmoe.methods import Method
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.privacy.mechanism import build_privacy
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.records import RoundRecord
from fedmoe.seeds import torch_generator


class Log(Callback):
    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.evaluations: list[Evaluation] = []

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        self.records.append(record)

    def on_evaluation_end(self, run: FederationView, evaluation: Evaluation) -> None:
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
    fleet: Callable[[ClientWork], Fleet] = LocalFleet,
    adversary: Adversary | None = None,
    defences: Defences | None = None,
    runtime: RuntimeConfig | None = None,
) -> tuple[Federation, Log]:
    """The method's federation on the data, and the log of what it will do."""
    config = method.schedule(config)
    module = build_module(clip, data, method, optim, seed)
    protection = build_privacy(privacy, config, seed)
    guard = defences or Defences()
    work = ClientWork(
        module, data, config, seed, runtime, protection=protection, adversary=adversary, reports=guard.needs_reports
    )
    rehearse(work, protection, range(min(2, config.participants)))
    log = Log()
    federation = kind(
        method,
        fleet(work),
        config,
        fresh_server(module.declared, module.shared_start()),
        seed=seed,
        callbacks=[log, *callbacks],
        privacy=protection,
        defences=guard,
        attackers=frozenset() if adversary is None else adversary.clients,
        clients=data.summary(),
        name=data.name,
    )
    if state is not None:
        federation.restore(state)
    return federation, log


def build_module(
    clip: FrozenCLIP, data: FederatedData, method: Method, optim: OptimConfig | None = None, seed: int = 5
) -> ClientModule:
    """The method's client for the classes of the data."""
    return ClientModule(
        clip,
        PromptLearner(clip, data.class_names, PromptConfig(init=None), torch_generator(seed, "prompt")),
        method=method,
        optim=optim or OptimConfig(prompt_lr=0.02, gating_lr=0.05),
        constants=method.constants(clip, data.class_names, data.template),
        seed=seed,
    )


def work_of(federation: Federation) -> ClientWork:
    """What the clients do, which live in this process."""
    assert isinstance(federation.fleet, LocalFleet)
    return federation.fleet.work


def results(log: Log) -> list[dict]:
    """The records without what the clock says, and without how it reached clients elsewhere."""
    return [{**record.to_json(), "seconds": None, "line": None} for record in log.records]


def differences(one: FederationState, other: FederationState) -> list[str]:
    """Names of the tensors in which two states differ; the rest must agree."""
    (tensors, rest), (others, other_rest) = one.flatten(), other.flatten()
    assert rest == other_rest
    assert tensors.keys() == others.keys()
    return [name for name in tensors if not torch.equal(tensors[name], others[name])]


def assert_same_bits(run: Callable[..., tuple[Federation, Log]], stopped: tuple[Federation, Log], folder: Path) -> Log:
    """A whole run, one whose clients train backwards after another global seed, and the rest of a stopped one end with
    the same bits. Returns the log of the whole run.

    Args:
        run: builds the federation with a ``kind`` or from a ``state``, and runs it.
        stopped: the same federation after some of its rounds.
    """
    whole, log = run()
    torch.manual_seed(1234)
    again, log_again = run(kind=Backwards)
    assert differences(whole.state, again.state) == []
    assert results(log) == results(log_again)

    first, first_log = stopped
    StateStore(folder).save(first.rounds_done, *first.state.flatten())
    state = StateStore(folder).load(FederationState.unflatten)
    assert state is not None and state.round == first.rounds_done
    resumed, second_log = run(state=state)
    assert differences(whole.state, resumed.state) == []
    assert results(log) == results(first_log) + results(second_log)
    assert log.evaluations[-1].clients == second_log.evaluations[-1].clients
    return log


def after_one_round(federation: Federation, log: Log) -> tuple[Federation, Log]:
    """The federation, stopped after its first round."""
    log.on_round_end(federation, federation._before_training())
    log.on_round_end(federation, federation.round(1))
    return federation, log
