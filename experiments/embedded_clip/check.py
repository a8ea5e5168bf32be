"""How good the embedded CLIP is on real digits it never saw: ``python -m experiments.embedded_clip.check``.

Zero-shot accuracy, a linear probe and, with ``--prompt-learning``, what a learned prompt (CoOp) gains. These numbers
describe the checkpoint; nothing in its training is chosen by them.

Shape letters: b images of a batch, n images, C classes, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from experiments.embedded_clip.glyphs import draw_batch, find_fonts, render_atlas
from experiments.embedded_clip.pretrain import normalize
from fedmoe.config import ClipConfig, PromptConfig
from fedmoe.data.sets.digits import Digits
from fedmoe.errors import UserError
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner, template_features
from fedmoe.seeds import torch_generator

TEMPLATES = ("a photo of the digit {class}.", "a photo of a {class}.", "a picture of the number {class}.", "{class}")
LENGTH = 16
GLYPHS = 3000
STEPS = 600
BATCH = 32
LEARNING_RATES = (0.002, 0.02, 0.1, 0.3)
STARTS = (None, "a photo of a", "here is a photo of the white digit")


@dataclass(frozen=True)
class Features:
    """Image features [n, d] and labels [n] of the train and the test split of the digits."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor]:
        """Both splits together: the 1,797 images."""
        return torch.cat([self.train, self.test]), torch.cat([self.train_labels, self.test_labels])


def digit_features(clip: FrozenCLIP, digits: Digits) -> Features:
    """Encode every digit, without a cache."""
    parts = []
    for split in (digits.train, digits.test):
        images = torch.stack([clip.preprocess(split.image(i)) for i in range(len(split))])
        parts += [torch.cat([clip.encode_image(batch) for batch in images.split(256)]), torch.from_numpy(split.labels)]
    return Features(*parts)


def accuracy(features: Tensor, texts: Tensor, labels: Tensor) -> float:
    """Percentage of images [n, d] whose most similar text [C, d] is that of their label [n]."""
    return 100 * (features @ texts.T).argmax(dim=1).eq(labels).double().mean().item()


def probe_accuracy(features: Features) -> float:
    """Test accuracy in percent of a logistic regression on the standardized training features."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    probe.fit(features.train.numpy(), features.train_labels.numpy())
    return 100 * probe.score(features.test.numpy(), features.test_labels.numpy())


def learn_prompt(
    clip: FrozenCLIP, digits: Digits, features: Features, start: str | None, lr: float, seed: int
) -> list[float]:
    """CoOp on all training digits: STEPS steps of SGD with momentum 0.9.

    The prompt starts from the words ``start``, one vector for each token, or else with LENGTH random vectors.
    Returns the test accuracies before and after, in percent.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = PromptLearner(clip, digits.class_names, PromptConfig(length=LENGTH, init=start), generator)
    optimizer = torch.optim.SGD(prompt.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    result = []
    for step in range(STEPS + 1):
        if step in (0, STEPS):
            with torch.no_grad():
                result.append(accuracy(features.test, prompt(), features.test_labels))
        pick = torch.randint(len(features.train), (BATCH,), generator=generator)  # [b]
        logits = clip.logit_scale * features.train[pick] @ prompt().T  # [b, C]
        optimizer.zero_grad()
        F.cross_entropy(logits, features.train_labels[pick]).backward()
        optimizer.step()
    return result


def glyph_accuracy(clip: FrozenCLIP, class_names: Sequence[str], seed: int) -> float:
    """Zero-shot accuracy in percent on new draws of the digits among GLYPHS glyphs, from the training fonts."""
    pixels, looks = draw_batch(render_atlas(find_fonts()), GLYPHS, torch_generator(seed, "fresh glyphs"))
    pick = [i for i, look in enumerate(looks) if look.character.isdigit()]
    labels = torch.tensor([int(looks[i].character) for i in pick])
    images = clip.encode_image(normalize(pixels[pick]))  # [n, d]
    return accuracy(images, template_features(clip, class_names, TEMPLATES[0]), labels)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the embedded CLIP on real digits.", allow_abbrev=False)
    parser.add_argument("--architecture", default="fedmoe-tiny", help="fedmoe-tiny or fedmoe-wide")
    parser.add_argument("--weights", type=Path, help="another checkpoint than the embedded one")
    parser.add_argument("--model-config", type=Path, help="its open_clip model config, where it is another one")
    parser.add_argument("--prompt-learning", action="store_true", help="also learn prompts (a minute)")
    parser.add_argument("--glyphs", action="store_true", help="also classify fresh glyphs (needs the fonts)")
    parser.add_argument("--seed", type=int, default=0, help="of prompt learning and of the fresh glyphs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    try:
        clip = FrozenCLIP.load(
            ClipConfig(
                architecture=options.architecture,
                pretrained=None if options.weights else "glyphs",
                weights=str(options.weights) if options.weights else None,
                model_config=str(options.model_config) if options.model_config else None,
            )
        )
        digits = Digits()
        glyphs = glyph_accuracy(clip, digits.class_names, options.seed) if options.glyphs else None
    except UserError as error:
        parser.error(str(error))
    features = digit_features(clip, digits)
    images, labels = features.all

    table = Table("measure", f"all {len(labels)} digits (%)", f"{len(features.test)} test digits (%)")
    for template in TEMPLATES:
        texts = template_features(clip, digits.class_names, template)
        both = accuracy(images, texts, labels), accuracy(features.test, texts, features.test_labels)
        table.add_row(f"zero-shot, {json.dumps(template)}", *(f"{value:.1f}" for value in both))
    table.add_row("linear probe", "", f"{probe_accuracy(features):.1f}")
    console.print(table)
    if glyphs is not None:
        console.print(f"Zero-shot on the digits among {GLYPHS} fresh glyphs: {glyphs:.1f} %.")

    if options.prompt_learning:
        table = Table(f"CoOp, {STEPS} steps, starting from", "learning rate", "before (%)", "after (%)")
        for start in STARTS:
            for lr in LEARNING_RATES:
                before, after = learn_prompt(clip, digits, features, start, lr, options.seed)
                table.add_row(start or f"{LENGTH} vectors of N(0, 0.02)", f"{lr:g}", f"{before:.1f}", f"{after:.1f}")
        console.print(table)


if __name__ == "__main__":
    main()
