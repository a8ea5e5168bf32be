"""A local step on cached features against the plain way: the image encoder on 32 images and all 77 tokens."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from experiments.bench.measure import Run, Spread, flop, interleaved
from experiments.bench.setting import BATCH, class_names, client, step
from fedmoe.client.module import ClientModule
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.packed import available
from fedmoe.models.text_tower import TextTower
from fedmoe.seeds import torch_generator


def packed(tower: TextTower, on: bool, run: Run) -> Run:
    """The run with or without packed weights."""

    def switched() -> None:
        tower.packed = on
        run()

    return switched


def text_gradient(prompts: Tensor, module: ClientModule) -> tuple[Tensor, Tensor]:
    """Text features of prompts [M, l, w], and the gradient of a fixed sum of them."""
    prompts = prompts.detach().clone().requires_grad_()
    text = module.prompts(prompts)
    weights = torch.linspace(-1, 1, text[0].numel(), device=text.device).view_as(text[0])
    (slope,) = torch.autograd.grad((text * weights).sum(), prompts)
    return text.detach(), slope


def bench_cohort(clip: FrozenCLIP, classes: int, repeats: int, clients: int = 10) -> dict[str, Any]:
    """Processor ms of the text pass and its gradient for each prompt: alone, and with those of a cohort at once
    (``runtime.cohort_batch``)."""
    module = client(clip, class_names(classes), "shared")
    several = module.prompts.start.repeat(clients, 1, 1) + 0.01 * torch.arange(clients).view(-1, 1, 1)
    runs: dict[str, Run] = {}
    for name, on in {"default": False, "packed": True}.items():
        if not on or available(clip.text.blocks[0].attn.in_proj_weight):
            runs[f"{name}, alone"] = packed(clip.text, on, lambda: text_gradient(several[:1], module))
            runs[f"{name}, together"] = packed(clip.text, on, lambda: text_gradient(several, module))
    times = interleaved(runs, repeats)
    clip.text.packed = False
    each = {name: clients if name.endswith("together") else 1 for name in runs}
    shares = {name: [1e3 * seconds / each[name] for seconds in times[name].processor] for name in runs}
    return {"clients": clients, "processor_ms_a_prompt": {name: asdict(Spread.of(own)) for name, own in shares.items()}}


def bench_step(clip: FrozenCLIP, classes: int, repeats: int, peak: float) -> dict[str, Any]:
    """Seconds of a step, of what it stands for, and the factor between them.

    Args:
        peak: FLOP/s of the best matrix product.
    """
    names, generator = class_names(classes), torch_generator(2)
    images = torch.randn(BATCH, 3, clip.image_size, clip.image_size, generator=generator)
    labels = torch.randint(classes, (BATCH,), generator=generator)
    features = clip.encode_image(images)
    ours, plain = client(clip, names, "shared"), client(clip, names, "full")
    ours_sgd, plain_sgd = ours.configure_optimizers(), plain.configure_optimizers()
    runs: dict[str, Run] = {"default": packed(clip.text, False, lambda: step(ours, ours_sgd, features, labels))}
    if available(clip.text.blocks[0].attn.in_proj_weight):
        runs["packed"] = packed(clip.text, True, lambda: step(ours, ours_sgd, features, labels))
    plain_runs: dict[str, Run] = {
        "images": lambda: clip.encode_image(images),
        "text": lambda: step(plain, plain_sgd, features, labels),
    }
    operations = {name: flop(run) for name, run in {"ours": runs["default"], **plain_runs}.items()}
    times = interleaved({**runs, **plain_runs}, repeats)
    plainly = [i + t for i, t in zip(times["images"].processor, times["text"].processor, strict=True)]
    rows: dict[str, Any] = {name: found.to_json() for name, found in times.items()}
    for name, row in rows.items():
        done = operations["ours" if name in runs else name]
        rate = done / row["processor_seconds"]["median"]
        row |= {"flop": done, "flop_per_second": rate, "share_of_best_product": rate / peak}
        if name in runs:
            row["speed_up"] = asdict(Spread.of_ratios(plainly, times[name].processor))
    began = time.process_time()
    chosen = "packed" if ours.prompts.settle_packing("auto") else "default"
    took = time.process_time() - began
    clip.text.packed = False
    return {"auto": chosen, "auto_processor_seconds": took, "speed_up": rows[chosen]["speed_up"], "runs": rows}
