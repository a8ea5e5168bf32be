"""Speed of local training, on one thread: ``make bench``, or ``OMP_NUM_THREADS=1 python -m experiments.bench``.

1. A local step of pFedMoAP (forward, backward, optimizer; 32 images, 9 experts) on cached features with the
   prefix-shared text pass, against the plain way: the image encoder on 32 images of 224 px and all 77 tokens.
2. The share of a federated round that is spent outside model mathematics (forward, backward, optimizer steps and
   evaluation logits): Lightning, sampling, aggregation, logs, checkpoints.

CLIP is open_clip's RN50 with random weights: speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientWork
from fedmoe.config import ClipConfig, FederationConfig, PromptConfig
from fedmoe.data import IID, DataSet, Split, partition_dataset
from fedmoe.data.base import RawData
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.callbacks import Callback, Checkpoint, FederationView, RunLog
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.state import fresh_server
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.client import Client
from fedmoe.protocol.records import Loadout
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.records import RoundRecord
from fedmoe.seeds import torch_generator

BATCH = 32
EXPERTS = 9
ADJECTIVES = ["red", "green", "blue", "tall", "small", "round", "wild", "old", "young", "grey"]
NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def class_names(count: int) -> tuple[str, ...]:
    """CIFAR-10's names; beyond ten, with an adjective, so that names have different lengths."""
    names = NAMES + [f"{adjective}_{animal}" for adjective in ADJECTIVES for animal in NAMES]
    return tuple(names[:count])


def client(clip: FrozenCLIP, names: tuple[str, ...], text_pass: str) -> ClientModule:
    """A client in a gated round: its own prompt, a gate, and nine experts."""
    learner = PromptLearner(clip, names, PromptConfig(text_pass=text_pass), torch_generator(0))  # type: ignore[arg-type]
    module = ClientModule(clip, learner, method=PFedMoAP(EXPERTS))
    experts = 0.02 * torch.randn(EXPERTS, *learner.start.shape, generator=torch_generator(1))
    module.load(0, Loadout(experts={"prompt": experts}))
    return module


def step(module: ClientModule, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor) -> None:
    loss = module.method.loss(module, features, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Processor and wall seconds of each run, in turn, so that what else the machine does meets all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return times


def bench_step(clip: FrozenCLIP, classes: int, repeats: int, table: Table) -> None:
    names = class_names(classes)
    generator = torch_generator(2)
    images = torch.randn(BATCH, 3, 224, 224, generator=generator)
    labels = torch.randint(classes, (BATCH,), generator=generator)
    features = clip.encode_image(images)
    fast, plain = client(clip, names, "shared"), client(clip, names, "full")
    fast_sgd, plain_sgd = fast.configure_optimizers(), plain.configure_optimizers()
    step(fast, fast_sgd, features, labels)  # warm up
    runs = {
        "ours": lambda: step(fast, fast_sgd, features, labels),
        "images": lambda: clip.encode_image(images),
        "text": lambda: step(plain, plain_sgd, features, labels),
    }
    times = interleaved(runs, repeats)
    ratios = [(i[0] + t[0]) / o[0] for o, i, t in zip(times["ours"], times["images"], times["text"], strict=True)]
    cells = [
        f"{statistics.median(cpu for cpu, _ in found):.3f} ({statistics.median(wall for _, wall in found):.3f})"
        for found in times.values()
    ]
    spread = f"{statistics.median(ratios):.1f} x ({min(ratios):.1f} to {max(ratios):.1f})"
    table.add_row(f"C = {classes}", *cells, spread)


class _Timed(PFedMoAP):
    """pFedMoAP that adds up the seconds of its own mathematics."""

    mathematics = 0.0

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        start = time.perf_counter()
        loss = super().loss(client, image_features, labels)
        self.mathematics += time.perf_counter() - start
        return loss

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # counted in loss
            return super().logits(client, image_features)
        start = time.perf_counter()
        logits = super().logits(client, image_features)
        self.mathematics += time.perf_counter() - start
        return logits

    def analyse(self, client: Client, image_features: Tensor) -> dict[str, Tensor]:
        start = time.perf_counter()
        result = dict(super().analyse(client, image_features))
        self.mathematics += time.perf_counter() - start
        return result


class _TimedClient(ClientModule):
    """Times backward and optimizer step by Lightning's hooks, and the experts' text features in ``load``."""

    def load(self, *args: object, **kwargs: object) -> None:
        start = time.perf_counter()
        super().load(*args, **kwargs)  # type: ignore[arg-type]
        self.method.mathematics += time.perf_counter() - start  # type: ignore[attr-defined]

    def backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        start = time.perf_counter()
        super().backward(loss, *args, **kwargs)
        self.method.mathematics += time.perf_counter() - start  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        sgd: torch.optim.Optimizer = super().configure_optimizers()
        begun, inside = [0.0], [0.0]

        def before(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            closure = kwargs["closure"]  # Lightning's forward and backward, which are counted above

            def timed() -> Any:
                start = time.perf_counter()
                result = closure()
                inside[0] = time.perf_counter() - start
                return result

            begun[0] = time.perf_counter()
            return args, {**kwargs, "closure": timed}

        def after(*_: object) -> None:
            own = time.perf_counter() - begun[0] - inside[0]
            self.method.mathematics += own  # type: ignore[attr-defined]

        sgd.register_step_pre_hook(before)
        sgd.register_step_post_hook(after)
        return sgd


@dataclass(frozen=True, eq=False, kw_only=True)
class _Features(DataSet):
    """Labels without images: 64 training and 32 test examples for each client."""

    classes: int
    clients: int

    name = "random features"

    def _read(self) -> RawData:
        generator = torch_generator(3)
        train, test = (
            Split(torch.randint(self.classes, (count * self.clients,), generator=generator).numpy(), _no_image)
            for count in (64, 32)
        )
        return RawData(class_names(self.classes), (), train, test)

    def _source_key(self) -> str:
        return self.name


def _no_image(index: int) -> Image:
    raise LookupError("these examples are features only")


def bench_round(clip: FrozenCLIP, classes: int, table: Table) -> None:
    config = FederationConfig(clients=8, participation=0.5, rounds=5, local_epochs=5)
    dataset = _Features(classes=classes, clients=config.clients)
    clients = partition_dataset(dataset, IID(), config.clients, seed=0)
    features = [
        F.normalize(torch.randn(len(split), clip.feature_dim, generator=torch_generator(4)), dim=-1)
        for split in (dataset.train, dataset.test)
    ]
    train, test = features
    data = FederatedData(dataset, clients, train, test)
    method = _Timed(num_experts=5)
    learner = PromptLearner(clip, dataset.class_names, PromptConfig(), torch_generator(0))
    module = _TimedClient(clip, learner, method=method)
    shares: list[float] = []

    class Share(Callback):
        def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
            whole = sum(record.seconds.values()) + time.perf_counter() - logged[0]
            shares.append(1 - method.mathematics / whole)
            method.mathematics = 0.0

    class LogStart(Callback):
        def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
            logged[0] = time.perf_counter()

    logged = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        files: list[Callback] = [RunLog(Path(folder)), Checkpoint(StateStore(Path(folder) / "state"))]
        fleet = LocalFleet(ClientWork(module, data, config, seed=0))
        server = fresh_server(module.declared, module.shared_start())
        Federation(method, fleet, config, server, callbacks=[LogStart(), *files, Share()]).run()
    table.add_row(
        f"C = {classes}", *(f"{100 * share:.1f} %" for share in (statistics.median(shares[1:]), max(shares[1:])))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100], help="numbers of classes C")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of each step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    clip = FrozenCLIP.load(ClipConfig(architecture="RN50", pretrained=None, quick_gelu=True))
    console.print(f"RN50 with random weights, float32, torch {torch.__version__}, 1 thread", highlight=False)
    title = f"A local step of pFedMoAP: processor (wall) seconds, medians of {arguments.repeats} interleaved repeats"
    steps = Table("", "on cached features", "32 images", "step with 77 tokens", "speed-up (range)", title=title)
    for count in arguments.classes:
        bench_step(clip, count, arguments.repeats, steps)
    console.print(steps)
    rounds = Table("", "median", "largest", title="Share of a round outside model mathematics")
    for count in arguments.classes:
        bench_round(clip, count, rounds)
    console.print(rounds)


if __name__ == "__main__":
    main()
