"""The cache of fixed prompts' text features: its size changes no bit, and is said to be too small where it is."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest
import torch
from federation_helpers import differences
from PIL import Image
from torch import Tensor

from fedmoe.cli import main
from fedmoe.client.text_cache import TextCache
from fedmoe.config import PromptConfig
from fedmoe.federation.restore import read_state
from fedmoe.io import read_jsonl
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.runs.checkpoint import StateStore
from fedmoe.seeds import torch_generator

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = [" ".join(words) for words in itertools.product(DIGITS, repeat=3)]
TOO_SMALL = "runtime.text_cache_mib = {} holds the text features of only {} prompts at once"


class Counting(PromptLearner):
    """A prompt learner that counts what it encodes."""

    encoded = 0

    def forward(self, prompt: Tensor | None = None) -> Tensor:
        self.encoded += 1
        return super().forward(prompt)


@pytest.fixture
def learner(embedded_clip: FrozenCLIP) -> Counting:
    """500 classes: 500 x 128 numbers, or 256,000 bytes a prompt."""
    return Counting(embedded_clip, NAMES[:500], PromptConfig(init=None, length=2), torch_generator(0, "prompt"))


def prompts_like(learner: Counting, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(learner.start.shape, generator=generator) for _ in range(count)]


def test_the_limit_is_kept_and_the_longest_unused_goes_first(
    learner: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    counting, (a, b, c, d, e) = learner, prompts_like(learner, 5)
    cache = TextCache(counting, limit_mib=1)  # room for 1,048,576 / 256,000: four
    for prompt in (a, b, c, d, a, b, c, d, a):
        cache(prompt)
    assert counting.encoded == 4
    cache(e)  # b goes
    for prompt in (c, d, a, e):
        cache(prompt)
    assert counting.encoded == 5 and caplog.records == []
    assert torch.equal(cache(b), PromptLearner.forward(learner, b))
    assert counting.encoded == 6
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert TOO_SMALL.format(1, 4) in caplog.text
    for prompt in (a, b, c, d, e) * 2:
        cache(prompt)
    assert counting.encoded > 6 and len(caplog.records) == 1  # said once


def test_prompts_that_do_not_come_back_are_no_reason_to_warn(
    learner: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    counting = learner
    cache = TextCache(counting, limit_mib=1)
    for prompt in prompts_like(learner, 12):
        cache(prompt)
        cache(prompt)
    assert counting.encoded == 12 and caplog.records == []


def test_the_memory_of_evicted_prompts_is_bounded(
    learner: Counting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmoe.client.text_cache._REMEMBERED", 3)
    cache = TextCache(learner, limit_mib=1)  # room for four
    prompts = prompts_like(learner, 10)
    for prompt in prompts:  # 0 to 5 are evicted; 3, 4 and 5 are remembered
        cache(prompt)
    assert len(cache._dropped) == 3
    cache(prompts[2])  # evicts 6, remembered in place of 3
    assert caplog.records == []
    cache(prompts[4])
    assert len(caplog.records) == 1 and TOO_SMALL.format(1, 4) in caplog.text
    for prompt in prompts:
        cache(prompt)
    assert not cache._dropped and len(caplog.records) == 1  # no more is needed of them


def test_a_single_prompt_is_kept_whatever_its_size(learner: Counting, caplog: pytest.LogCaptureFixture) -> None:
    counting, (a, b) = learner, prompts_like(learner, 2)
    cache = TextCache(counting, limit_mib=0)
    for prompt in (a, a, b, b):
        cache(prompt)
    assert counting.encoded == 2 and caplog.records == []


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training images and a test image for each of 250 classes: 128,000 bytes of text features a prompt."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(NAMES[:250]):
        (root / name).mkdir()
        for i in range(3):
            Image.new("L", (8, 8), (7 * number + 40 * i) % 256).save(root / name / f"{i}.png")
    return root


def test_a_run_has_the_same_bits_with_a_small_and_a_large_cache(
    many_classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warned = {}
    for mib in (1, 64):
        caplog.clear()
        args = [
            *("fit", "--config=configs/embedded.yaml", "--method=PFedMoAP", "--method.num_experts=3"),
            *("--data=ImageFolder", f"--data.root={many_classes}", "--data.test_fraction=0.34", "--partition=IID"),
            *("--federation.clients=20", "--federation.participation=1.0", "--federation.rounds=3"),
            *("--federation.local_epochs=1", "--federation.batch_size=64", "--runtime.accelerator=cpu"),
            *(f"--runtime.text_cache_mib={mib}", f"--features.cache_dir={tmp_path / 'features'}"),
            *(f"--output.dir={tmp_path}", f"--output.name={mib}"),
        ]
        assert main(args) == 0
        warned[mib] = [text for text in caplog.messages if "text_cache_mib" in text]
    assert [text.split(" at once")[0] + " at once" for text in warned[1]] == [TOO_SMALL.format(1, 8)]
    assert warned[64] == []
    assert (tmp_path / "1/clients.jsonl").read_bytes() == (tmp_path / "64/clients.jsonl").read_bytes()
    rounds = [[{**r, "seconds": 0} for r in read_jsonl(tmp_path / name / "rounds.jsonl")] for name in ("1", "64")]
    assert rounds[0] == rounds[1]
    states = [read_state(StateStore(tmp_path / name / "state")) for name in ("1", "64")]
    assert differences(*(state for state in states if state is not None)) == []
