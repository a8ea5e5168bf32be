"""Names and model configurations for which there is no CLIP, and weights that cannot be fetched."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
from clip_helpers import refusal
from conftest import tiny_config
from huggingface_hub.utils import http_backoff

from fedmoe.models.clip import _few_words


def test_unknown_names() -> None:
    message = refusal(architecture="RN-50", pretrained=None)
    assert message.startswith("clip.architecture is 'RN-50'")
    assert "did you mean 'RN50'?" in message
    assert "did you mean 'fedmoe-tiny'?" in refusal(architecture="fedmoe-tyni")
    message = refusal(architecture="RN50", pretrained="opnai")
    assert message.startswith("clip.pretrained is 'opnai'")
    assert "did you mean 'openai'?" in message
    assert "did you mean 'glyphs'?" in refusal(architecture="fedmoe-tiny", pretrained="glyph")
    assert "open_clip's names" in refusal(architecture="hf-hub:somebody/something")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("coca_ViT-B-32", "CoCa"),
        ("roberta-ViT-B-32", "roberta-base"),
    ],
)
def test_text_encoders_without_learnable_prompts(architecture: str, words: str) -> None:
    message = refusal(architecture=architecture, pretrained=None)
    assert f"clip.architecture = {architecture}" in message
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "has no 'embed_dim'"),
        ('{"embed_dim": 8, "vision_cfg": {}}', "has no 'text_cfg'"),
        (json.dumps(tiny_config(text_wdith=3)), "wdith"),
        (json.dumps(tiny_config(text_heads=5)), "cannot build"),
        (json.dumps(tiny_config(text_vocab_size=1000)), "vocabulary of 1000 tokens; valid is at least 49408"),
        (json.dumps(tiny_config(text_pool_type="none")), "rule 'none'"),
    ],
)
def test_bad_model_configurations(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)
    message = refusal(model_config=str(path), pretrained=None)
    assert words in message
    assert str(path) in message


def test_a_missing_model_configuration(tmp_path: Path) -> None:
    message = refusal(model_config=str(tmp_path / "nowhere.json"), pretrained=None)
    assert (
        message == f"clip.model_config: the file {tmp_path / 'nowhere.json'} cannot be read: No such file or directory."
    )


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hub's own offline mode, with an empty cache.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refusal(architecture="RN50", pretrained="openai")
    assert "clip.pretrained = openai of RN50 could not be fetched" in message
    assert "clip.weights" in message
    assert list(tmp_path.iterdir()) == []


def test_the_tries_of_the_hubs_client_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/weights"  # bound, but nobody listens
        with pytest.raises(Exception, match="refused"), _few_words():
            http_backoff("GET", nowhere, max_retries=3, base_wait_time=0, max_wait_time=0)
        assert caplog.messages == ["The model hub does not answer; a few more tries follow."]
        caplog.clear()
        with pytest.raises(Exception, match="refused"):  # afterwards, the client speaks for itself again
            http_backoff("GET", nowhere, max_retries=1, base_wait_time=0, max_wait_time=0)
        assert any("Retry 1/1" in message for message in caplog.messages)
