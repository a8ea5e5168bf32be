"""FrozenCLIP and the weights files it reads. The references are open_clip's own model and tokenizer."""

from __future__ import annotations

import json
import pickle
import socket
import warnings
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from conftest import GOLDEN, tiny_config
from huggingface_hub.utils import http_backoff
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedmoe.config import ClipConfig
from fedmoe.errors import UserError
from fedmoe.io import write_tensors_atomic
from fedmoe.models.clip import FrozenCLIP, _few_words
from fedmoe.readers.weights import ROWS, read_weights

State = dict[str, Tensor]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_config("vit", quick_gelu=True)))
    return path


@pytest.fixture(scope="module")
def reference() -> Any:
    """A tiny model built by open_clip itself."""
    torch.manual_seed(0)
    return open_clip.CLIP(**tiny_config("vit", quick_gelu=True)).eval()


def module_of(state: State) -> nn.Module:
    """A tree of bare modules whose state dict is ``state``."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_buffer(leaf, tensor)
    return root


def save_archive(state: State, path: Path) -> None:
    """A TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are not
        torch.jit.save(torch.jit.trace_module(module_of(state), {}), path)


# OpenAI's archives hold these numbers as tensors besides the weights.
OPENAI = {
    "input_resolution": torch.tensor(224),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}


def save_safetensors(state: State, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def save_open_clip(state: State, path: Path) -> None:
    torch.save({"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)


def save_legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_compact(state: State, path: Path) -> None:
    write_tensors_atomic(path, {**state, ROWS: torch.arange(49408)})


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "safetensors": save_safetensors,
    "state_dict": lambda state, path: torch.save(state, path),
    "legacy": save_legacy,
    "open_clip": save_open_clip,
    "openai_state_dict": lambda state, path: torch.save(state | OPENAI, path),
    "archive": save_archive,
    "openai_archive": lambda state, path: save_archive(state | OPENAI, path),
    "compact": save_compact,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_weights(kind: str, reference: Any, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"  # the contents decide, not the name
    WRITERS[kind](reference.state_dict(), path)
    clip = FrozenCLIP.load(ClipConfig(weights=str(path), model_config=str(config)))
    ours = clip.model.state_dict()
    assert ours.keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours[name], tensor), name


def test_an_archive_of_scripted_code(reference: Any, config: Path, tmp_path: Path) -> None:
    # Methods, constants and buffers that no state dict has, such as the causal mask.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(deepcopy(reference)), tmp_path / "scripted.pt")
    checkpoint = read_weights(tmp_path / "scripted.pt")
    assert checkpoint.tensors.keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(checkpoint.tensors[name], tensor), name
    assert not checkpoint.openai


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("backbone", ["rn", "vit"])
def test_features_are_open_clips(backbone: str, custom_text: bool, tmp_path: Path) -> None:
    settings = tiny_config(backbone)
    torch.manual_seed(1)
    expected = open_clip.CLIP(**settings).eval()
    torch.save(expected.state_dict(), tmp_path / "weights.pt")
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_cfg": settings | {"custom_text": custom_text}}))
    clip = FrozenCLIP.load(ClipConfig(weights=str(tmp_path / "weights.pt"), model_config=str(path)))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(clip.encode_image(images), expected.encode_image(images, normalize=True))
    tokens = clip.tokenize(["a cat", "two dogs"])
    torch.testing.assert_close(clip.model.encode_text(tokens), expected.encode_text(tokens))
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert (clip.feature_dim, clip.token_width, clip.image_size) == (48, 32, 32)


def test_golden_weights_are_open_clips_with_the_stored_rows(golden_clips: dict[str, FrozenCLIP]) -> None:
    stored = load_file(GOLDEN / "vit.clip.safetensors")
    rows = stored.pop("token_embedding.rows")
    state = golden_clips["vit"].model.state_dict()
    embedding = state["token_embedding.weight"]
    assert torch.equal(embedding[rows], stored.pop("token_embedding.weight").float())
    others = torch.ones(len(embedding), dtype=torch.bool).index_fill(0, rows, False)
    assert not embedding[others].any()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())
    assert golden_clips["vit"].unknown_tokens([*rows.tolist(), 5, 7]) == {5, 7}


def test_a_complete_checkpoint_knows_all_tokens(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    assert tiny_clip().unknown_tokens(torch.arange(49408)) == set()


def test_tokens_and_preprocessing_are_open_clips(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip()
    texts = ["a photo of a cat.", "naïve café", "word " * 100]
    assert torch.equal(clip.tokenize(texts), open_clip.get_tokenizer("RN50")(texts))
    assert clip.count_tokens("a photo of a cat.") == 6
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert torch.equal(clip.preprocess(image), open_clip.image_transform(32, is_train=False)(image))
    assert clip.preprocess(image.convert("L")).shape == (3, 32, 32)


def test_preprocessing_of_the_json_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_cfg": tiny_config(), "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}))
    clip = FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None))
    white = clip.preprocess(Image.new("RGB", (32, 32), "white"))
    torch.testing.assert_close(white, torch.ones(3, 32, 32))


@pytest.mark.parametrize("backbone", ["rn", "vit"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_half_precision(backbone: str, precision: Any, tolerance: float, golden_clips: dict[str, FrozenCLIP]) -> None:
    files = {"weights": f"{backbone}.clip.safetensors", "model_config": f"golden-{backbone}.json"}
    paths: dict[str, Any] = {key: str(GOLDEN / name) for key, name in files.items()}
    clip = FrozenCLIP.load(ClipConfig(precision=precision, **paths))
    assert clip.text.dtype == getattr(torch, precision)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = clip.encode_image(images)
    assert features.dtype == torch.float32
    assert float((features - golden_clips[backbone].encode_image(images)).abs().max()) < tolerance


def test_frozen(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip()
    holder = nn.ModuleList([clip]).train()
    assert holder.training
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert not clip.encode_image(images).requires_grad


def test_moving_it_moves_the_text_tower(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip().to(torch.float64)
    assert {part.dtype for part in (clip.text.positional_embedding, clip.text.blocks[0].attn.in_proj_weight)} == {
        torch.float64
    }
    assert clip.text.dtype == torch.float64
    assert clip.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


def test_random_weights_are_the_same_each_time_and_draw_from_no_global_generator(config: Path) -> None:
    before = torch.get_rng_state()
    one = FrozenCLIP.load(ClipConfig(model_config=str(config), pretrained=None))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert FrozenCLIP.load(ClipConfig(model_config=str(config), pretrained=None)).fingerprint == one.fingerprint


def test_fingerprint_knows_weights_configuration_and_precision(reference: Any, config: Path, tmp_path: Path) -> None:
    state = reference.state_dict()
    path, changed = tmp_path / "weights.pt", tmp_path / "changed.pt"
    torch.save(state, path)
    torch.save(state | {"visual.proj": state["visual.proj"] + 1e-6}, changed)
    cases: list[tuple[Path, dict[str, Any]]] = [
        (path, {}),
        (path, {}),
        (changed, {}),
        (path, {"quick_gelu": False}),
        (path, {"precision": "bfloat16"}),
    ]
    prints = [
        FrozenCLIP.load(ClipConfig(weights=str(weights), model_config=str(config), **options)).fingerprint
        for weights, options in cases
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


# The activation


def openai_archive(architecture: str, path: Path, **others: Tensor) -> Path:
    """An archive of an architecture of open_clip's, all zeros, each tensor a view of a single number: some KB."""
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(architecture))
    save_archive(
        {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in model.state_dict().items()} | others, path
    )
    return path


def activations(module: nn.Module) -> set[type]:
    return {type(part) for part in module.modules() if isinstance(part, QuickGELU | nn.GELU)}


def test_rn50_with_openais_archive_has_quick_gelu(tmp_path: Path) -> None:
    path = openai_archive("RN50", tmp_path / "RN50.pt", **OPENAI)
    clip = FrozenCLIP.load(ClipConfig(architecture="RN50", weights=str(path)))
    assert activations(clip.model) == {QuickGELU}  # the ResNet tower has ReLU alone
    assert clip.text.quick_gelu
    # open_clip by itself would take GELU for this name.
    assert activations(open_clip.create_model("RN50", pretrained=None)) == {nn.GELU}


def test_vit_b_32_takes_the_activation_from_the_file_or_asks(tmp_path: Path) -> None:
    clip = FrozenCLIP.load(
        ClipConfig(architecture="ViT-B-32", weights=str(openai_archive("ViT-B-32", tmp_path / "a.pt", **OPENAI)))
    )
    assert activations(clip.model.visual) == activations(clip.model.transformer) == {QuickGELU}
    # Its published weights were trained with either, and this file does not say.
    unnamed = str(openai_archive("ViT-B-32", tmp_path / "b.pt"))
    with pytest.raises(UserError, match=r"b.pt does not say .* ViT-B-32 .* clip.quick_gelu"):
        FrozenCLIP.load(ClipConfig(architecture="ViT-B-32", weights=unnamed))


@pytest.mark.parametrize(
    ("in_json", "openai", "option", "expected"),
    [
        (None, False, None, nn.GELU),
        (True, False, None, QuickGELU),
        (None, True, None, QuickGELU),
        (False, True, None, nn.GELU),
        (True, True, False, nn.GELU),
        (None, False, True, QuickGELU),
    ],
)
def test_which_activation(
    in_json: bool | None, openai: bool, option: bool | None, expected: type, reference: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(tiny_config("vit", **({} if in_json is None else {"quick_gelu": in_json}))))
    torch.save(reference.state_dict() | (OPENAI if openai else {}), tmp_path / "weights.pt")
    clip = FrozenCLIP.load(ClipConfig(weights=str(tmp_path / "weights.pt"), model_config=str(path), quick_gelu=option))
    assert activations(clip.model.visual) == activations(clip.model.transformer) == {expected}


# What cannot be loaded


def refusal(**options: Any) -> str:
    """The one sentence that loading with these settings ends in."""
    with pytest.raises(UserError) as caught:
        FrozenCLIP.load(ClipConfig(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_in_a_checkpoint_is_never_run(zipped: bool, config: Path, tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.pt", tmp_path / "executed"
    torch.save({"state_dict": {"x": Malicious(proof)}}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(weights=str(path), model_config=str(config))
    assert str(path) in message
    assert "pickled code is never loaded" in message
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file was indeed malicious


def test_pickled_code_in_an_archive_is_never_run(reference: Any, config: Path, tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.pt", tmp_path / "executed"
    save_archive(reference.state_dict(), tmp_path / "good.pt")
    payload = pickle.dumps({"x": Malicious(proof)}, protocol=2)
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, payload if name.endswith("/data.pkl") else good.read(name))
    message = refusal(weights=str(path), model_config=str(config))
    assert str(path) in message
    assert "pickled code is never loaded" in message
    assert not proof.exists()


def test_code_in_an_archive_is_never_run(config: Path, tmp_path: Path) -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(2))

        @torch.jit.export
        def __getstate__(self):
            return self.x, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[Tensor, bool]):
            assert False, "executed"  # noqa: B011

        def forward(self, x):
            return x

    path = tmp_path / "sly.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Sly()), path)
        with pytest.raises(torch.jit.Error, match="executed"):
            torch.jit.load(path)  # what loading it by the ordinary way would run
    assert "holds no state dict" in refusal(weights=str(path), model_config=str(config))


@pytest.mark.parametrize("kind", [*WRITERS, "empty", "text", "folder", "missing"])
def test_damaged_files(kind: str, reference: Any, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if kind in WRITERS:
        WRITERS[kind](reference.state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "not weights at all, " * 20)
    message = refusal(weights=str(path), model_config=str(config))
    assert str(path) in message
    expected = {"folder": "directory", "missing": "No such file"}.get(kind, "truncated, damaged")
    assert expected in message


def test_an_archive_with_a_damaged_byte(reference: Any, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    save_archive(reference.state_dict(), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in refusal(weights=str(path), model_config=str(config))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"a": torch.ones(2), "step": 3}, "its entry 'step' is a int"),
    ],
)
def test_files_without_a_state_dict(content: Any, words: str, config: Path, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert words in refusal(weights=str(tmp_path / "weights.pt"), model_config=str(config))


def test_weights_of_another_model(reference: Any, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    options = {"weights": str(path), "model_config": str(config)}
    state = reference.state_dict()

    torch.save({name: tensor for name, tensor in state.items() if name != "ln_final.bias"}, path)
    assert f"{path} lacks ln_final.bias, which clip.model_config = {config} needs" in refusal(**options)

    torch.save(state | {"visual.extra": torch.ones(1), "visual.more": torch.ones(1)}, path)
    assert f"{path} holds visual.extra and 1 more, which" in refusal(**options)

    torch.save(state | {"visual.proj": torch.ones(64, 47)}, path)
    message = refusal(**options)
    assert f"In the weights file {path}, visual.proj has shape [64, 47]" in message
    assert "needs [64, 48]" in message

    torch.save(state, path)
    assert "RN50 needs" in refusal(weights=str(path), quick_gelu=True)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.tensor([1, 1]), "2 different int64 numbers"),
        (torch.tensor([1, 2, 3]), "has shape (3,)"),
        (torch.tensor([1, 49408]), "goes from 1 to 49408; valid are 0 to 49407"),
        (torch.tensor([-1, 5]), "goes from -1 to 5"),
        (torch.tensor([1, 2], dtype=torch.int32), "torch.int32"),
    ],
)
def test_rows_of_a_compact_file(rows: Tensor, words: str, reference: Any, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = reference.state_dict() | {"token_embedding.weight": torch.ones(2, 32), "token_embedding.rows": rows}
    save_safetensors(state, path)
    message = refusal(weights=str(path), model_config=str(config))
    assert words in message
    assert str(path) in message


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
