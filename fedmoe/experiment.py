"""From settings to a run folder: load CLIP, prepare the data, run the federation of one method or of several.

A run folder holds config.yaml, partition.json, rounds.jsonl, clients.jsonl, state/, summary.json and plots/.
A comparison is a folder of run folders, one for each method, over the same clients and the same seed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from fedmoe.attacks import Attack
from fedmoe.attacks.adversary import Adversary
from fedmoe.client.disk import DiskStates
from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientWork, light_trainer
from fedmoe.config import (
    ClipConfig,
    EngineConfig,
    FeatureConfig,
    FederationConfig,
    OptimConfig,
    OutputConfig,
    PrivacyConfig,
    PromptConfig,
    RuntimeConfig,
    TrackingConfig,
    ViewsConfig,
)
from fedmoe.data.base import DataSet
from fedmoe.data.partition import Partition
from fedmoe.defences import Aggregation, Screening, Serving
from fedmoe.defences.guard import Defences
from fedmoe.display import say
from fedmoe.engine.elsewhere import NoData, OwnData, Whole
from fedmoe.engine.kinds import build_fleet, keep_run_name, run_name
from fedmoe.engine.site import Site
from fedmoe.errors import UserError, did_you_mean
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.features.encoders import extract_test
from fedmoe.features.progress import extraction_progress
from fedmoe.features.views import Stamp
from fedmoe.federation.callbacks import Checkpoint, ProgressDisplay, RunLog
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.late import score_late_clients
from fedmoe.federation.mean_alone import require_mean_alone
from fedmoe.federation.novel import TestImages, score_classes
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.rehearsal import rehearse
from fedmoe.federation.restore import read_state, restore
from fedmoe.federation.state import fresh_server
from fedmoe.federation.transfer import score_transfer
from fedmoe.io import write_json_atomic, write_text_atomic
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.privacy.mechanism import Privacy, build_privacy
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import RoundContext
from fedmoe.report import plan_comparison, report
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.folder import clear, held, packed_before, require_format, stamp
from fedmoe.runs.provenance import provenance, versions
from fedmoe.runs.records import RoundRecord, Summary, best_by_validation, last_five, read_rounds
from fedmoe.runs.resume import cut_logs, require_same_settings
from fedmoe.seeds import torch_generator
from fedmoe.tracking.trackers import trackers
from fedmoe.tracking.wandb_tracker import sweep_run_id


@dataclass(frozen=True)
class Experiment:
    """The settings of a run, as built by the command line."""

    seed: int
    clip: ClipConfig
    prompt: PromptConfig
    data: DataSet
    partition: Partition
    federation: FederationConfig
    optim: OptimConfig
    features: FeatureConfig
    views: ViewsConfig
    privacy: PrivacyConfig
    runtime: RuntimeConfig
    engine: EngineConfig
    tracking: TrackingConfig
    output: OutputConfig
    attack: Attack | None = None
    aggregation: Aggregation | None = None
    screening: Screening | None = None
    serving: Serving | None = None

    @property
    def defences(self) -> Defences:
        return Defences(self.aggregation, self.screening, self.serving)

    def folder(self, *labels: str, over_seeds: bool = False) -> Path:
        """The run folder, or that of the runs of several seeds; ``labels`` are the names of the methods that run in
        it."""
        end = "seeds" if over_seeds else f"seed{self.seed}"
        name = self.output.name or "-".join([self.data.name, *labels, end])
        swept = sweep_run_id()  # the runs of a sweep differ in settings that the name does not show
        return Path(self.output.dir) / (f"{name}-{swept}" if swept else name)


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


Settings = Mapping[str, Any]  # nested, of plain values: the contents of a config.yaml
Resolve = Callable[[Path], Settings]  # a config.yaml -> its settings, with current defaults for missing ones


def read_settings(path: Path) -> Settings:
    """The settings in a config.yaml, unchanged."""
    settings: Settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings


def run(session: Session, method: Method, settings: Settings, folder: Path, resolve: Resolve = read_settings) -> None:
    """Run one method into ``folder``, or resume where an earlier command with the same settings stopped.

    Args:
        settings: all settings of this run, saved as config.yaml.
        resolve: reads the settings of a run that is resumed.

    Raises:
        UserError: the folder holds a run with other settings or of another format, or the settings do not fit each
            other.
    """
    overwrite = session.experiment.output.overwrite
    if not overwrite:
        require_format(folder)
    store = StateStore(folder / "state", mapped=session.experiment.runtime.client_states == "mapped")
    progress = ProgressDisplay(session.console, method.label)
    tracked = {**settings, "provenance": provenance(type(method))}
    tracking = trackers(session.experiment.tracking, folder, tracked)
    chosen = None if overwrite else packed_before(folder)
    session.packed = session.packed if chosen is None else chosen
    # Built before anything is written or deleted: what does not fit leaves everything as it is.
    federation = session.federation(method, callbacks=[RunLog(folder), Checkpoint(store, folder), *tracking, progress])
    with closing(federation.fleet):
        name = run_name(folder, overwrite)
        federation.clients = federation.fleet.open(name) or federation.clients
        if overwrite:
            clear(folder)
        with held(folder):
            earlier = resolve(folder / "config.yaml") if (folder / "config.yaml").exists() else None
            state = None
            if earlier is not None:
                require_same_settings(folder, earlier, settings)
                state = read_state(store)
                if state is not None:
                    restore(federation, state, folder)
                cut_logs(folder, federation.rounds_done)
            stamp(folder, session.packed)
            if session.experiment.engine.kind == "flower":
                keep_run_name(folder, name)
            write_text_atomic(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
            write_json_atomic(folder / "partition.json", federation.clients)
            if state is not None and state.round < federation.config.rounds:
                say(session.console, f"{method.label}: resuming {folder} after round {state.round}")
            try:
                federation.run()
            finally:
                progress.close()
                for tracker in tracking:
                    tracker.close()
            known = federation.server.clients.values()
            privacy = federation.privacy.summary(max((client.rounds_seen for client in known), default=0))
            _write_summary(folder, method, session, privacy, federation.attackers)


def compare(
    session: Session,
    methods: Sequence[Method],
    each: Sequence[Settings],
    whole: Settings,
    folder: Path,
    resolve: Resolve = read_settings,
) -> None:
    """Run several methods, each in its own folder under ``folder``, with the same clients, data and seed.

    Finished runs are not repeated. ``each`` holds the settings of each single run, and ``whole`` those of the
    comparison, saved as comparison.yaml. The folder is locked against other processes meanwhile.

    Raises:
        UserError: a method does not fit the settings or the data (found before the first one runs).
    """
    labels = _labels(methods)
    for method in methods:
        session.federation(method)
    if session.experiment.output.overwrite:
        clear(folder)
    for label in labels:
        require_format(folder / label)
    with held(folder):
        plan_comparison(folder, labels)
        write_text_atomic(folder / "comparison.yaml", yaml.safe_dump(whole, sort_keys=False))
        for label, method, settings in zip(labels, methods, each, strict=True):
            run(session, method, settings, folder / label, resolve)
            report(folder / label, Console(quiet=True))  # draws its plots; the comparison's table comes at the end


@dataclass(frozen=True)
class SeedRun:
    """One of the runs of several seeds; ``settings`` are kept as its config.yaml."""

    experiment: Experiment
    method: Method
    settings: Settings


def run_seeds(
    plans: Sequence[SeedRun], folder: Path, console: Console, whole: Settings, resolve: Resolve = read_settings
) -> list[Path]:
    """Run one method with several seeds, each in ``folder``/seed<k>, and return these folders.

    Finished runs are not run again. CLIP is loaded once; the data are prepared anew for each seed, on which the
    partition depends. No other process can work in the folder meanwhile. ``whole`` holds the settings beside the seed;
    they are saved as seeds.yaml, with these seeds and those of earlier commands.

    Raises:
        UserError: the folder is a run's or a comparison's, or the settings do not fit each other.
    """
    if any(os.path.lexists(folder / name) for name in ("rounds.jsonl", "config.yaml", "comparison.json")):
        raise UserError(f"{folder} holds a run or a comparison, and no runs of seeds; choose another output.name.")
    folders = [folder / f"seed{plan.experiment.seed}" for plan in plans]
    if not plans[0].experiment.output.overwrite:
        for own in folders:
            require_format(own)
    first = Session(plans[0].experiment, console)
    first.federation(plans[0].method)  # what does not fit leaves everything as it is
    with held(folder):
        kept = folder / "seeds.yaml"
        earlier = read_settings(kept).get("seeds", []) if kept.exists() else []
        seeds = sorted({*earlier, *(plan.experiment.seed for plan in plans)})
        write_text_atomic(kept, yaml.safe_dump({**whole, "seeds": seeds}, sort_keys=False))
        for own, plan in zip(folders, plans, strict=True):
            session = first if plan is plans[0] else Session(plan.experiment, console, first.clip)
            run(session, plan.method, plan.settings, own, resolve)
            report(own, Console(quiet=True))  # its plots; the table over seeds comes at the end
    return folders


def _labels(methods: Sequence[Method]) -> list[str]:
    """A folder name for each method: its class, numbered if a class occurs more than once."""
    names = [type(method).__name__ for method in methods]
    return [name if names.count(name) == 1 else f"{name}-{names[: i + 1].count(name)}" for i, name in enumerate(names)]


def evaluate(
    session: Session,
    method: Method,
    folder: Path,
    classes: bool = False,
    join_rounds: int = 1,
    best: bool = False,
    targets: Mapping[str, DataSet] | None = None,
) -> dict[str, Any]:
    """Score the clients of a run folder again from its last checkpoint; returns the contents of evaluation.json.

    With ``best``, from the checkpoint of the round with the best validation accuracy instead.

    ``accuracy``: over clients in percent: mean, std, min, max, worst_decile. ``classes``, if asked for: a
    ``ClassScores``. ``late``, where there are late clients: a ``LateScores`` after ``join_rounds`` rounds.
    ``transfer``, if there are ``targets`` (name -> data set): a ``TransferScores``.

    Raises:
        UserError: the folder holds no checkpoint, the run held out no classes, or its prompts fit no other classes.
    """
    require_format(folder)
    state = read_state(StateStore(folder / "state"), best)
    if state is None and best:
        raise UserError(
            f"{folder} holds no checkpoint chosen by validation; valid is a run with federation.validation."
        )
    if state is None:
        raise UserError(f"{folder} holds no checkpoint; valid is the folder of a run that fit has started.")
    if join_rounds < 1:
        raise UserError(f"join_rounds is {join_rounds}; valid is an integer of at least 1.")
    novel = novel_classes(session.experiment) if classes else None
    session.packed = packed_before(folder)
    if targets:
        require_generic(session.experiment)
    federation = session.federation(method, engine=EngineConfig())  # its checkpoint holds what simulated clients keep
    restore(federation, state, folder)
    context = RoundContext(state.round, (), session.experiment.seed)
    found: dict[str, Any] = {"round": state.round, "accuracy": federation.evaluate(context).accuracy}
    fleet, server = federation.fleet, federation.server
    assert isinstance(fleet, LocalFleet)
    if novel is not None:
        images, known = session.test_images(method, novel), len(session.data(method).class_names)
        base = images.labels < known
        base_images = TestImages(images.features[base], images.labels[base])
        novel_images = TestImages(images.features[~base], images.labels[~base] - known)
        module = session.module(method, novel.class_names[known:])
        scores = score_classes(fleet, module, server, context, base_images, novel_images, federation.defences)
        found["classes"] = asdict(scores)
    if federation.config.late_clients:
        late = score_late_clients(fleet, method, server, federation.config, context, join_rounds, federation.defences)
        found["late"] = asdict(late)
    if targets:
        ready = {name: session.target(method, data) for name, data in targets.items()}
        found["transfer"] = asdict(score_transfer(fleet, server, context, ready, federation.defences))
    write_json_atomic(folder / "evaluation.json", found)
    return found


def novel_classes(experiment: Experiment) -> DataSet:
    """The run's data set with all of its classes; those after the run's own are novel.

    Raises:
        UserError: the run used all classes, or has class-specific contexts.
    """
    base, whole = experiment.data, replace(experiment.data, subset=replace(experiment.data.subset, classes=None))
    count, total = base.subset.classes, len(whole.class_names)
    if count is None or count >= total:
        raise UserError(
            f"data.subset.classes is {count}, so the run held no class of {base.name!r} out; novel classes need a run "
            f"with 1 to {total - 1} of its {total}."
        )
    require_generic(experiment)
    return whole


def require_generic(experiment: Experiment) -> None:
    """Raise a UserError where prompts belong to classes, and so know no others."""
    if experiment.prompt.class_specific:
        raise UserError("prompt.class_specific is true: such prompts know no novel classes; valid is false.")


def _write_summary(
    folder: Path, method: Method, session: Session, privacy: dict[str, Any] | None, attackers: frozenset[int]
) -> None:
    chosen = {} if session.packed is None else {"packed_weights": session.packed}
    rounds = read_rounds(folder)
    last = [record for record in rounds if record.evaluated][-1]
    summary = Summary(
        method=type(method).__name__,
        label=method.label,
        seed=session.experiment.seed,
        rounds=last.round,
        accuracy=last.accuracy,
        accuracy_per_domain=last.accuracy_per_domain,
        seconds={phase: sum(r.seconds[phase] for r in rounds) for phase in ("train", "evaluate", "other")},
        bytes_down=sum(r.bytes["down"] for r in rounds),
        bytes_up=sum(r.bytes["up"] for r in rounds),
        bytes_evaluate_down=sum(r.bytes["evaluate_down"] for r in rounds),
        failed_clients=_failed_clients(rounds),
        privacy=privacy,
        last_five=last_five(rounds),
        best_by_validation=best_by_validation(rounds),
        quality=last.quality,
        attack=last.attack,
        attackers=sorted(attackers),
        provenance={**provenance(type(method)), **chosen},
        versions=versions(),
    )
    write_json_atomic(folder / "summary.json", summary.to_json())


def _failed_clients(rounds: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """Which clients were dropped, from which rounds, and the reason of the last time."""
    found: dict[int, dict[str, Any]] = {}
    for record in rounds:
        for client, reason in record.failed.items():
            entry = found.setdefault(int(client), {"client": int(client), "rounds": []})
            entry["rounds"].append(record.round)
            entry["reason"] = reason
    return [found[client] for client in sorted(found)]


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
