"""A steady round of pFedMoAP, here and in the plain way: ``make bench-release``.

Three clients, all in each round, on RN50 with random weights and ten classes. Each downloads the other two clients'
prompts, trains for five epochs of one batch of 32 images, and predicts 32 test images. One thread.

- here: rounds of a ``Federation`` with all that belongs to them (Lightning, the server, log and checkpoint), on cached
  image features: with the default settings, and with ``runtime.packed_weights``, ``runtime.cohort_batch``, or both;
- plain: images of 224 px are encoded in each step, and all 77 tokens computed, with open_clip's modules;
- release: the released code's own model does the same (``--release PATH`` names a checkout of it).

Before anything is timed, each way computes the logits of the same client for the same images: what is timed is equal up
to ``largest_difference``. The factors are those of each repeat, in which all take turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from experiments.bench.measure import Run, Spread, interleaved, machine
from experiments.bench.release import Released
from experiments.bench.setting import BATCH, RandomFeatures, class_names, client, federation, step
from experiments.bench.steps import packed
from experiments.exits import exit_code
from fedmoe.config import ClipConfig, FederationConfig, RuntimeConfig
from fedmoe.errors import require
from fedmoe.federation.callbacks import Checkpoint, RunLog
from fedmoe.io import write_json_atomic
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.packed import available
from fedmoe.protocol.records import Loadout
from fedmoe.runs.checkpoint import StateStore
from fedmoe.seeds import torch_generator

CLIENTS, EPOCHS = 3, 5
WARM_UP = 2  # rounds; from a client's second one on, it has a gate


class Here:
    """Rounds of a federation in this process."""

    def __init__(self, clip: FrozenCLIP, classes: int, together: int, folder: Path) -> None:
        self.done = 0
        config = FederationConfig(clients=CLIENTS, participation=1.0, rounds=1_000_000, local_epochs=EPOCHS)
        dataset = RandomFeatures(classes=classes, clients=CLIENTS, train_examples=BATCH)
        files = [RunLog(folder), Checkpoint(StateStore(folder / "state"))]
        runtime = RuntimeConfig(threads=1, cohort_batch=together)
        self.federation = federation(clip, PFedMoAP(CLIENTS - 1), dataset, config, files, runtime=runtime)
        self.federation.meet()

    def round(self) -> None:
        self.done += 1
        record = self.federation.round(self.done)
        for callback in self.federation.callbacks:
            callback.on_round_end(self.federation, record)


class Images:
    """Training and test images [BATCH, 3, 224, 224] with labels [BATCH], and the clients' current prompts."""

    def __init__(self, clip: FrozenCLIP, classes: int, start: Tensor) -> None:
        draws = torch_generator(5)
        size = clip.image_size
        self.train, self.test = (torch.randn(BATCH, 3, size, size, generator=draws) for _ in range(2))
        self.labels = torch.randint(classes, (BATCH,), generator=draws)
        self.prompts = [start + 0.02 * torch.randn(start.shape, generator=draws) for _ in range(CLIENTS)]

    def others(self, i: int) -> list[Tensor]:
        return [prompt for j, prompt in enumerate(self.prompts) if j != i]


class Plain:
    """A round with open_clip's whole passes. All clients have the same images: their values do not change the time."""

    def __init__(self, clip: FrozenCLIP, classes: int) -> None:
        self.module = client(clip, class_names(classes), "full")
        self.images = Images(clip, classes, self.module.prompts.start)

    def round(self) -> None:
        module, images = self.module, self.images
        encode = module.clip.encode_image
        for i in range(CLIENTS):
            module.load(i, Loadout({"prompt": images.prompts[i]}, {"prompt": torch.stack(images.others(i))}))
            optimizer = module.configure_optimizers()
            for _ in range(EPOCHS):
                step(module, optimizer, encode(images.train), images.labels)
            with torch.no_grad():
                module.method.logits(module, encode(images.test))
            images.prompts[i] = module.prompts["prompt"].detach().clone()


class FromRelease:
    """A round of the released model."""

    def __init__(self, released: Released, clip: FrozenCLIP, classes: int) -> None:
        self.released, self.images = released, Images(clip, classes, released.prompt())

    def round(self) -> None:
        released, images = self.released, self.images
        for i in range(CLIENTS):
            released.become(images.prompts[i], images.others(i))
            optimizers = released.optimizers()
            for _ in range(EPOCHS):
                released.step(optimizers, images.train, images.labels)
            released.logits(images.test)
            images.prompts[i] = released.prompt()


def largest_difference(clip: FrozenCLIP, released: Released | None, classes: int) -> dict[str, float]:
    """The largest difference of each way's logits for four images from those of the default settings here."""
    module, plain = (client(clip, class_names(classes), text_pass) for text_pass in ("shared", "full"))
    images = Images(clip, classes, module.prompts.start)
    own, experts = images.prompts[0], images.others(0)
    four = images.test[:4]
    loadout = Loadout({"prompt": own}, {"prompt": torch.stack(experts)})
    logits: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, one in (("here", module), ("plain", plain)):
            one.load(0, loadout)
            logits[name] = one.method.logits(one, clip.encode_image(four))
    if released is not None:
        gate = {name: tensor for name, tensor in module.tensors().items() if name.startswith("gate.")}
        released.become(own, experts, gate)
        logits["release"] = released.logits(four)
    return {name: float((found - logits["here"]).abs().max()) for name, found in logits.items() if name != "here"}


def bench_steady(clip: FrozenCLIP, classes: int, repeats: int, released: Released | None = None) -> dict[str, Any]:
    """Seconds of a round in each way, and how many times as fast as the other ways each one here is."""
    differences = largest_difference(clip, released, classes)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Run] = {}
        for name, on in {"default": False, "packed": True}.items():
            if on and not available(clip.text.blocks[0].attn.in_proj_weight):
                continue
            for together, suffix in ((1, ""), (CLIENTS, f", {CLIENTS} clients at once")):
                own = Path(folder) / str(len(ways))
                own.mkdir()
                ways[name + suffix] = packed(clip.text, on, Here(clip, classes, together, own).round)
        here = list(ways)
        for name in here * WARM_UP:
            ways[name]()
        ways["plain"] = Plain(clip, classes).round
        if released is not None:
            ways["release"] = FromRelease(released, clip, classes).round
        times = interleaved(ways, repeats, warmed_up=True)
    clip.text.packed = False
    against = [name for name in ways if name not in here]
    rows: dict[str, dict[str, Any]] = {name: found.to_json() for name, found in times.items()}
    for name in here:
        rows[name]["speed_up"] = {
            other: asdict(Spread.of_ratios(times[other].processor, times[name].processor)) for other in against
        }
    return {"clients": CLIENTS, "epochs": EPOCHS, "classes": classes, "largest_difference": differences, "ways": rows}


def show(found: dict[str, Any], console: Console) -> None:
    rows = found["ways"]
    against = [name for name, row in rows.items() if "speed_up" not in row]
    title = "A steady round of three clients: processor seconds, median (least to largest)"
    table = Table("", "processor s", "wall s", *(f"times as fast as {name}" for name in against), title=title)
    for name, row in rows.items():
        seconds = Spread(**row["processor_seconds"])
        factors = (str(Spread(**row["speed_up"][other])) if "speed_up" in row else "" for other in against)
        exact = f"{seconds.median:.2f} ({seconds.least:.2f} to {seconds.largest:.2f})"
        table.add_row(name, exact, f"{row['wall_seconds']['median']:.2f}", *factors)
    console.print(table)
    told = ", ".join(f"{name} {value:.1e}" for name, value in found["largest_difference"].items())
    console.print(f"Largest difference of logits from those here: {told}", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.steady",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--release", type=Path, metavar="PATH", help="a checkout of the released code")
    parser.add_argument("--classes", type=int, default=10, help="number of classes C, up to 110")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats of each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all numbers go")
    arguments = parser.parse_args()
    require(arguments.repeats >= 1, "--repeats", arguments.repeats, "an integer of at least 1")
    require(1 <= arguments.classes <= 110, "--classes", arguments.classes, "a number from 1 to 110")
    torch.set_num_threads(1)
    console = Console(width=130)
    torch.manual_seed(0)
    state = open_clip.CLIP(**open_clip.get_model_config("RN50"), quick_gelu=True).state_dict()
    released = None
    if arguments.release is not None:
        released = Released(arguments.release, state, class_names(arguments.classes))
        state = released.weights()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "clip.safetensors"
        save_file(state, weights)
        clip = FrozenCLIP.load(ClipConfig(architecture="RN50", pretrained=None, weights=str(weights), quick_gelu=True))
    found = bench_steady(clip, arguments.classes, arguments.repeats, released)
    show(found, console)
    if arguments.json is not None:
        told = {"format": 1, "repeats": arguments.repeats, "machine": machine(torch.device("cpu"))}
        write_json_atomic(arguments.json, {**told, **found})
        console.print(f"Written: {arguments.json}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
