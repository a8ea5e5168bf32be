"""Cost of learning in the image encoder, on one thread: ``OMP_NUM_THREADS=1 python -m experiments.image_side``.

A local step of pFedMMA (forward, backward, optimizer; ten classes), open_clip's ViT-B/16, random weights, in turn:

- on cached tokens, which enter the first block with an adapter;
- on images, of which the blocks below are computed anew in each step (reading and preprocessing not counted);
- on cached tokens with ``save_memory``.

For each, processor seconds, and the bytes of activations that are kept for the backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.bench.setting import class_names
from fedmoe.client.module import ClientModule
from fedmoe.config import ClipConfig, PromptConfig
from fedmoe.methods import PFedMMA
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import Loadout
from fedmoe.seeds import torch_generator

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("cached tokens", "images", "cached tokens, save_memory")


def kept(module: ClientModule, batch: tuple[Tensor, Tensor]) -> int:
    """Bytes of the activations that the backward pass of a step needs, without the model's own tensors."""
    known = {
        tensor.untyped_storage().data_ptr() for tensor in [*module.clip.state_dict().values(), *module.parameters()]
    }
    sizes: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.training_step(batch, 0)
    return sum(sizes.values())


def step(module: ClientModule, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> float:
    """Processor seconds of a step."""
    start = time.process_time()
    optimizer.zero_grad()
    module.training_step(batch, 0).backward()
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--architecture", default="ViT-B-16")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pretrained = "glyphs" if args.architecture == "fedmoe-tiny-vit" else None
    clip = FrozenCLIP.load(ClipConfig(architecture=args.architecture, pretrained=pretrained))
    names = class_names(10) if pretrained is None else DIGITS
    modules, batches = {}, {}
    labels = torch.arange(args.batch) % len(names)
    size = clip.image_size
    images = torch.randn(args.batch, 3, size, size, generator=torch_generator(1))
    for kind in KINDS:
        method = PFedMMA(gradients="scaled", save_memory="save_memory" in kind)
        module = ClientModule(clip, PromptLearner(clip, names, PromptConfig()), method=method)
        module.load(0, Loadout())
        modules[kind] = module
        batches[kind] = (images if kind == "images" else module.features(images), labels)
    optimizers = {kind: torch.optim.SGD(module.parameters(), lr=1e-3) for kind, module in modules.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(args.repeats + 1):
        for kind in KINDS:
            spent = step(modules[kind], optimizers[kind], batches[kind])
            if repeat:  # the first warms up
                seconds[kind].append(spent)
    table = Table("a step of pFedMMA", "processor seconds", "times cached", "activations, MiB")
    for kind in KINDS:
        factors = [one / other for one, other in zip(seconds[kind], seconds[KINDS[0]], strict=True)]
        spread = f"{statistics.median(factors):.2f} ({min(factors):.2f} to {max(factors):.2f})"
        mib = kept(modules[kind], batches[kind]) / 2**20
        table.add_row(kind, f"{statistics.median(seconds[kind]):.2f}", spread, f"{mib:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
