"""Table 2's shape on a GPU: a local step in several number formats, ten clients' prompts at once, and what follows.

On a GPU, the step and the text pass with its gradient are timed as CUDA graphs too. None was at hand so far: the same
code runs on a CPU with ``--card-on-cpu``, but for the graphs, of which is known only that neither asks for a value on
the host.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from experiments.bench.measure import Run, Spread, best_product, flop, interleaved, machine, synchronize
from experiments.bench.rounds import bench_round
from experiments.bench.setting import BATCH, class_names, client, step
from experiments.bench.steps import text_gradient
from fedmoe.config import ClipConfig
from fedmoe.models.clip import FrozenCLIP
from fedmoe.seeds import torch_generator

COHORT = 10
STEPS = COHORT * 5 * 16  # of a round of table 2: clients, epochs, batches of 32 among 500 images
ROUNDS, RUNS = 120, 15  # 15 runs with 10 classes, 15 with 100
FORMATS = ("float32", "tf32", "bfloat16")
ARCHITECTURES = {"RN50": True, "ViT-B-16": True}  # with OpenAI's activation


def bench_card(device: torch.device, classes: list[int], repeats: int) -> dict[str, Any]:
    """Everything as plain values; below ten minutes on a GPU."""
    began = time.perf_counter()
    on_card = device.type == "cuda"
    peaks = {name: _peak(device, name) for name in FORMATS if on_card or name != "tf32"}
    shapes = {
        architecture: {
            str(count): _shape(architecture, device, count, repeats, peaks)
            for count in (classes if on_card else classes[:1])
        }
        for architecture in (ARCHITECTURES if on_card else ["RN50"])
    }
    return {
        "format": 1,
        "device": device.type,
        "repeats": repeats,
        "machine": machine(device),
        "best_product": peaks,
        "shapes": shapes,
        "hours_table2_training": {name: _hours(found) for name, found in shapes.items()},
        "not_measured": [] if on_card else ["anything on a GPU", "CUDA graphs"],
        "seconds": time.perf_counter() - began,
    }


def _set(name: str) -> torch.dtype:
    """Switch the number format on; the format of CLIP's weights."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _peak(device: torch.device, name: str) -> dict[str, Any]:
    return best_product(device, _set(name))


def _shape(
    architecture: str, device: torch.device, classes: int, repeats: int, peaks: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """One CLIP and number of classes in all formats."""
    found: dict[str, Any] = {}
    reference: tuple[Tensor, Tensor] | None = None
    for name, peak in peaks.items():
        dtype = _set(name)
        precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
        quick = ARCHITECTURES[architecture]
        config = ClipConfig(architecture=architecture, pretrained=None, quick_gelu=quick, precision=precision)  # type: ignore[arg-type]
        clip = FrozenCLIP.load(config).to(device)
        module = client(clip, class_names(classes), "shared")
        optimizer, generator = module.configure_optimizers(), torch_generator(2)
        features = F.normalize(torch.randn(BATCH, clip.feature_dim, generator=generator), dim=-1).to(device)
        labels = torch.randint(classes, (BATCH,), generator=generator).to(device)
        images = torch.randn(BATCH, 3, clip.image_size, clip.image_size, generator=generator).to(device)
        text, slope = text_gradient(module.prompts.start.unsqueeze(0), module)
        reference = reference or (text, slope)
        several = module.prompts.start.unsqueeze(0).repeat(COHORT, 1, 1)

        def one(module: Any = module, optimizer: Any = optimizer, x: Tensor = features, y: Tensor = labels) -> None:
            step(module, optimizer, x, y)

        def ten(module: Any = module, prompts: Tensor = several) -> None:
            text_gradient(prompts, module)

        def alone(module: Any = module, prompts: Tensor = several) -> None:
            text_gradient(prompts[:1], module)

        runs: dict[str, Run] = {
            "step": one,
            "text_alone": alone,
            "text_of_ten": ten,
            "images": lambda clip=clip, images=images: clip.encode_image(images),  # type: ignore[misc]
        }
        failed: dict[str, str] = {}
        for kind in ("step", "text_alone", "text_of_ten") if device.type == "cuda" else ():
            try:
                runs[f"{kind}_as_graph"] = captured(runs[kind])
            except RuntimeError as error:  # what cannot be captured is told, and the rest is measured
                failed[kind] = str(error).partition("\n")[0]
        times = interleaved(runs, repeats, device)
        row: dict[str, Any] = {kind: took.to_json() for kind, took in times.items()} | {"graphs_failed": failed}
        operations = flop(one)
        seconds = row["step"]["wall_seconds"]["median"]
        row |= {
            "flop": operations,
            "flop_per_second": operations / seconds,
            "share_of_best_product": operations / seconds / peak["flop_per_second"],
            "text_difference": float((text - reference[0]).abs().max()),
            "gradient_difference": float((slope - reference[1]).norm() / reference[1].norm()),
        }
        if name == "float32":
            row["round"] = bench_round(clip, classes, rounds=2)
            row["table2_round_seconds"] = STEPS * seconds / (1 - row["round"]["outside_mathematics"]["median"])
        synchronize(device)
        found[name] = row
    _set("float32")
    return found


def captured(run: Run) -> Run:
    """The same work as a CUDA graph, which is started by one call; warmed up on a stream of its own before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _hours(found: dict[str, Any]) -> float | None:
    """Hours of local training in table 2's 30 runs, each counted as pFedMoAP; computed from the seconds of a step and
    the share of a round outside mathematics. Evaluation comes on top. None unless both numbers of classes are known."""
    if not {"10", "100"} <= found.keys():
        return None
    return RUNS * ROUNDS * sum(found[count]["float32"]["table2_round_seconds"] for count in ("10", "100")) / 3600


def show_card(found: dict[str, Any], console: Console) -> None:
    """The numbers as a table."""
    columns = ("", "format", "step ms", "as a graph", "of best", "ms a prompt, ten at once", "difference")
    table = Table(*columns, title="Table 2's shape")
    for architecture, shapes in found["shapes"].items():
        for count, rows in shapes.items():
            for name, row in rows.items():
                wall, graph = (
                    str(Spread(**{k: 1e3 * v for k, v in row[kind]["wall_seconds"].items()})) if kind in row else ""
                    for kind in ("step", "step_as_graph")
                )
                ten = 1e3 * row["text_of_ten"]["wall_seconds"]["median"] / COHORT
                share = f"{100 * row['share_of_best_product']:.0f} %"
                cells = (f"{architecture}, C = {count}", name, wall, graph, share, f"{ten:.2f}")
                table.add_row(*cells, f"{row['text_difference']:.1e}, {row['gradient_difference']:.1e}")
    console.print(table)
    for architecture, hours in found["hours_table2_training"].items():
        told = "not known" if hours is None else f"{hours:.1f}"
        console.print(f"{architecture}: hours of training in table 2's 30 runs: {told}", highlight=False)
