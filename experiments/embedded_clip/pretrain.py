"""Pre-train the embedded CLIP on rendered glyphs and their captions: ``python -m experiments.embedded_clip.pretrain``.

Contrastive training as in CLIP, on images made on the fly; no data set is read. The same seed, versions and number of
threads give the same file, bit for bit. The result is that of the last step; nothing is chosen by a test.

Shape letters: b images, n distinct captions of a batch, d feature width, w token width, R stored token rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import open_clip  # the trainable model; FrozenCLIP, which reads the result, is frozen by design
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from experiments.embedded_clip.captions import draw_caption, vocabulary
from experiments.embedded_clip.glyphs import FontFile, draw_batch, find_fonts, render_atlas
from fedmoe.errors import UserError
from fedmoe.io import write_tensors_atomic
from fedmoe.seeds import derive, torch_generator

ASSETS = Path(__file__).resolve().parents[2] / "fedmoe" / "assets"
MAX_TOKENS = 32
BATCH = 256
LEARNING_RATE = 2e-3
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.05
WARM_UP = 60
FINAL_SHARE = 0.02
CLIP_NORM = 1.0
MAX_LOGIT_SCALE = 100.0


def token_rows(tokenizer: open_clip.SimpleTokenizer) -> Tensor:
    """Ascending vocabulary rows [R] of every token a caption can contain, start, end and padding included."""
    return tokenizer(list(vocabulary())).unique()


def build_model(config: dict[str, Any], rows: int) -> open_clip.CLIP:
    """open_clip's CLIP with random weights, its token embedding cut down to ``rows`` rows."""
    model = open_clip.CLIP(**config)
    model.token_embedding = nn.Embedding(rows, config["text_cfg"]["width"])
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    return model.to(memory_format=torch.channels_last)


def encode_captions(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """open_clip's text pass on short rows of tokens [n, at most 77], numbered as the stored rows; features [n, d].

    Leaving the padding out changes nothing: the pass is causal and reads the end token, the largest of all numbers.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # [n, length, w]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x)), tokens.argmax(dim=1)])  # [n, w]
    return F.normalize(x @ model.text_projection, dim=-1)  # [n, d]


def contrastive_loss(images: Tensor, texts: Tensor, caption: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss for images [b, d] and distinct captions [n, d]; image i has caption ``caption[i]``.

    Where several images share a caption, each of them is an equally good match for it, and the mass is shared.
    """
    logits = scale * images @ texts[caption].T  # [b, b]
    same = (caption[:, None] == caption[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FINAL_SHARE of the peak; ``step`` counts from 0."""
    if step < WARM_UP:
        return LEARNING_RATE * (step + 1) / WARM_UP
    share = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LEARNING_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * share)))


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW; no weight decay on parameters of one dimension (gains, biases, the temperature) and on embeddings."""
    kept = {name for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name}
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in kept], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in model.named_parameters() if name in kept], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)


def normalize(pixels: Tensor) -> Tensor:
    """Images [b, 3, H, W] in [0, 1] as CLIP's own preprocessing hands them over: same mean, same deviation."""
    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def pretrain(config: dict[str, Any], steps: int, seed: int, fonts: tuple[FontFile, ...]) -> dict[str, Tensor]:
    """Train for ``steps`` batches and return the tensors of the compact checkpoint.

    Raises:
        UserError: the loss is not finite.
    """
    torch.manual_seed(derive(seed, "weights"))
    generator, rng = torch_generator(seed, "images"), random.Random(derive(seed, "captions"))
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    rows = token_rows(tokenizer)
    atlas = render_atlas(fonts)
    model = build_model(config, len(rows)).train()
    optimizer = make_optimizer(model)

    with Steps(steps) as progress:
        for step in range(steps):
            pixels, looks = draw_batch(atlas, BATCH, generator)
            drawn = [draw_caption(look, rng) for look in looks]
            texts = sorted(set(drawn))
            number = {text: i for i, text in enumerate(texts)}
            caption = torch.tensor([number[text] for text in drawn])  # [b]
            tokens = tokenizer(texts)[:, :MAX_TOKENS]  # [n, 32]
            tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1].contiguous()  # up to the last end token

            image_features = F.normalize(model.visual(normalize(pixels)), dim=-1)  # [b, d]
            text_features = encode_captions(model, torch.searchsorted(rows, tokens))  # [n, d]
            loss = contrastive_loss(image_features, text_features, caption, model.logit_scale.exp())

            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
            if not math.isfinite(value := loss.item()):
                raise UserError(f"the loss is {value} at step {step + 1}; it must be finite.")
            progress.advance(value)

    return {key: value.detach() for key, value in model.state_dict().items()} | {"token_embedding.rows": rows}


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of floats with two or more dimensions rounded to float16, the others as they are.

    Vectors stay float32: they are small, and variances of batch norms may lie outside float16's range. A float16 number
    is a float32 number, so a model that reads the file holds exactly the stored values.
    """
    return {key: t.half() if t.ndim > 1 and t.is_floating_point() else t for key, t in tensors.items()}


class Steps:
    """Progress: a bar on a terminal, else a line every 50 steps."""

    def __init__(self, total: int) -> None:
        columns = (
            TextColumn("pre-training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
        )
        self.bar = Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty())
        self.task = self.bar.add_task("", total=total, loss="-")
        self.total, self.done, self.start = total, 0, time.perf_counter()

    def __enter__(self) -> Steps:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, loss: float) -> None:
        self.done += 1
        self.bar.update(self.task, advance=1, loss=f"{loss:.3f}")
        if self.bar.disable and (self.done % 50 == 0 or self.done == self.total):
            seconds = time.perf_counter() - self.start
            left = seconds / self.done * (self.total - self.done)
            print(f"step {self.done}/{self.total}  loss {loss:.3f}  {seconds:.0f} s  left {left:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pre-train the embedded CLIP on rendered glyphs.", allow_abbrev=False)
    parser.add_argument(
        "--out", type=Path, default=ASSETS / "fedmoe-tiny-glyphs.safetensors", help="checkpoint to write"
    )
    parser.add_argument("--model-config", type=Path, default=ASSETS / "fedmoe-tiny.json", help="open_clip model config")
    parser.add_argument("--steps", type=int, default=700, help=f"batches of {BATCH} images")
    parser.add_argument("--half", action="store_true", help="store matrices as float16")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and captions")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number gives other bits")
    options = parser.parse_args(arguments)
    for name in ("steps", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; valid is an integer of at least 1")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    try:
        config = json.loads(options.model_config.read_text())
        tensors = pretrain(config, options.steps, options.seed, find_fonts())
        if options.half:
            tensors = half(tensors)
        recipe = {"steps": options.steps, "seed": options.seed, "threads": options.threads, "torch": torch.__version__}
        # One entry only: safetensors does not fix the order of several.
        write_tensors_atomic(options.out, tensors, {"recipe": json.dumps(recipe)})
    except (UserError, OSError, json.JSONDecodeError) as error:
        parser.error(str(error))
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
