"""CLIP and data of an experiment, and what is built of them: modules, federations, sites."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from fedmoe.attacks.adversary import Adversary
from fedmoe.client.disk import DiskStates
from fedmoe.client.module import ClientModule
from fedmoe.client.trainer import light_trainer
from fedmoe.client.work import ClientWork
from fedmoe.config import (
    EngineConfig,
    FederationConfig,
    RuntimeConfig,
)
from fedmoe.data.base import DataSet
from fedmoe.engine.elsewhere import NoData, OwnData, Whole
from fedmoe.engine.kinds import build_fleet
from fedmoe.engine.site import Site
from fedmoe.errors import UserError, did_you_mean
from fedmoe.experiment.settings import Experiment
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.features.encoders import extract_test
from fedmoe.features.progress import extraction_progress
from fedmoe.features.views import Stamp
from fedmoe.federation.mean_alone import require_mean_alone
from fedmoe.federation.novel import TestImages
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.rehearsal import rehearse
from fedmoe.federation.state import fresh_server
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.privacy.mechanism import Privacy, build_privacy
from fedmoe.protocol.method import Method
from fedmoe.seeds import torch_generator


def load_clip(experiment: Experiment) -> FrozenCLIP:
    """The experiment's CLIP, on the device that its runs will use."""
    if experiment.runtime.threads is not None:
        torch.set_num_threads(experiment.runtime.threads)
    clip = FrozenCLIP.load(experiment.clip)
    return clip.to(_root_device(experiment.runtime))


class Session:
    """CLIP and data of an experiment, loaded once and shared by all its methods.

    Args:
        clip: the experiment's CLIP, where it is loaded already.
    """

    def __init__(self, experiment: Experiment, console: Console, clip: FrozenCLIP | None = None) -> None:
        self.experiment, self.console = experiment, console
        self.clip = load_clip(experiment) if clip is None else clip
        self._data: dict[tuple[str, str, str], FederatedData] = {}
        self.packed: bool | None = None  # what runtime.packed_weights = auto chose

    def data(self, method: Method, stamp: Stamp | None = None) -> FederatedData:
        """The clients' data, with the kind of features that the method uses; ``stamp`` is put on the images."""
        e, encoder = self.experiment, method.encoder(self.clip)
        kind = (encoder.name, encoder.identity, repr(stamp))
        if kind not in self._data:
            with extraction_progress(self.console) as progress:
                self._data[kind] = prepare(
                    *(e.data, e.partition, self.clip, e.federation, e.features, e.seed, progress),
                    views=e.views,
                    encoder=encoder,
                    stamp=stamp,
                )
        return self._data[kind]

    def test_images(self, method: Method, whole: DataSet) -> TestImages:
        """All test images of a data set, with the kind of features that the method uses."""
        e, encoder = self.experiment, method.encoder(self.clip)
        with extraction_progress(self.console) as progress:
            found = extract_test(whole, self.clip, e.features, encoder, progress)
        labels = torch.from_numpy(whole.test.labels)
        readable = ~torch.isin(torch.arange(len(labels)), torch.tensor(list(found.damaged), dtype=torch.int64))
        return TestImages(found.values[readable], labels[readable])

    def module(self, method: Method, class_names: Sequence[str], template: str | None = None) -> ClientModule:
        """The method's client for these classes, on the device of the run; ``template`` in place of the run's."""
        e = self.experiment
        prompts = PromptLearner(self.clip, class_names, e.prompt, torch_generator(e.seed, "prompt"))
        self._settle_packing(prompts)
        module = ClientModule(
            self.clip,
            prompts,
            method=method,
            optim=e.optim,
            constants=method.constants(self.clip, class_names, template or e.data.template),
            seed=e.seed,
            text_cache_mib=e.runtime.text_cache_mib,
        )
        return module.to(_root_device(e.runtime))

    def _settle_packing(self, prompts: PromptLearner) -> None:
        """Packed weights as the settings say; what ``auto`` once chose stays."""
        runtime, engine = self.experiment.runtime, self.experiment.engine
        if runtime.packed_weights == "auto" and engine.kind != "in_process":
            raise UserError(
                f"runtime.packed_weights is 'auto', but with engine.kind = {engine.kind} each process would choose for "
                "itself, and the bits of the result would depend on it; valid are on and off."
            )
        if runtime.packed_weights != "auto":
            prompts.settle_packing(runtime.packed_weights)
        elif self.packed is None:
            self.packed = prompts.settle_packing("auto")
        else:
            prompts.settle_packing("on" if self.packed else "off")

    def target(self, method: Method, data: DataSet) -> tuple[ClientModule | None, TestImages]:
        """A data set to score the run's clients on, as ``score_transfer`` takes it."""
        own = self.experiment.data
        same = (data.class_names, data.template) == (own.class_names, own.template)
        module = None if same else self.module(method, data.class_names, data.template)
        return module, self.test_images(method, data)

    def federation(self, method: Method, callbacks: Any = (), engine: EngineConfig | None = None) -> Federation:
        """The method's federation before its first round; ``engine`` in place of the experiment's."""
        e = self.experiment
        engine = engine or e.engine
        work, privacy = self.work(method, None if engine.kind == "flower" else self.data(method))
        rehearse(work, privacy, range(min(2, work.config.participants)))
        data, module = work.data, work.module
        federation = Federation(
            method,
            build_fleet(work, engine),
            work.config,
            fresh_server(module.declared, module.shared_start()),
            seed=e.seed,
            callbacks=callbacks,
            privacy=privacy,
            defences=e.defences,
            attackers=frozenset() if work.adversary is None else work.adversary.clients,
            clients=data.summary(),
            name=data.name,
        )
        if engine.kind != "flower":  # else they can be reached later, when it is run
            federation.meet()
        return federation

    def work(self, method: Method, data: FederatedData | None) -> tuple[ClientWork, Privacy]:
        """What clients do, and what protects their uploads; without data, on a server whose clients are elsewhere."""
        e = self.experiment
        config = method.schedule(e.federation)
        method.check(config, self.clip.feature_dim)
        held: Any = NoData(e.data, method.encoder(self.clip).shape) if data is None else data
        privacy = build_privacy(e.privacy, config, e.seed)
        module = self.module(method, held.class_names)
        e.defences.check(type(method).__name__, module.declared, config, e.privacy)
        if config.secure_aggregation:
            require_mean_alone(method, module.declared, config, e.defences)
        adversary = self._adversary(method, config, data)
        reports = e.defences.needs_reports
        return ClientWork(module, held, config, e.seed, e.runtime, privacy, adversary, reports), privacy

    def _adversary(self, method: Method, config: FederationConfig, data: FederatedData | None) -> Adversary | None:
        """The attack, and who carries it out; without data, it is only named."""
        e, attack = self.experiment, self.experiment.attack
        if attack is None:
            return None
        classes = len(e.data.class_names)
        attack.check(classes, e.views.kind == "online")
        triggered = None if data is None or attack.stamp is None else self.data(method, attack.stamp)
        return Adversary(attack, attack.attackers(config.participants, e.seed), e.seed, classes, triggered)

    def site(self, method: Method, client_id: int, own_data: bool, states: Path, tracebacks: bool) -> Site:
        """The client's end of a deployment; what it keeps is under ``states``.

        Args:
            own_data: all data on this machine are the client's, and are not divided by the partition.

        Raises:
            UserError: there is no such client.
        """
        e = self.experiment
        if not 0 <= client_id < e.federation.clients:
            raise UserError(f"client is {client_id}; valid is 0 to {e.federation.clients - 1}, of federation.clients.")
        if e.attack is not None:
            raise UserError(
                f"attack is {type(e.attack).__name__}, but attacks are simulated, and no real site is told to "
                "attack; valid is null."
            )
        data: Any
        if own_data:
            alone = replace(e, federation=replace(e.federation, clients=1, late_clients=0), partition=Whole())
            data = OwnData(Session(alone, self.console, self.clip).data(method), client_id)
        else:
            data = self.data(method)
        work, privacy = self.work(method, data)
        privacy.seed = secrets.randbits(63)  # of the noise: whoever knew it could take the noise away
        withholds = work.config.secure_aggregation
        return Site(work, [client_id], lambda run: DiskStates(states / run), tracebacks, withholds)


def _root_device(runtime: RuntimeConfig) -> torch.device:
    """The device that Lightning chooses for the accelerator.

    Raises:
        UserError: Lightning does not know the accelerator, or this machine has none of that kind.
    """
    names = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    if runtime.accelerator not in names:
        near = did_you_mean(runtime.accelerator, names)
        raise UserError(f"runtime.accelerator is {runtime.accelerator!r}; valid are {', '.join(names)}{near or '.'}")
    try:
        return light_trainer(runtime).strategy.root_device
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"runtime.accelerator is {runtime.accelerator!r}, which cannot be used here: {reason}"
        ) from error
