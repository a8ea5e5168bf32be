"""Weights files of CLIP: every format gives the same weights, and what is damaged, foreign or malicious is refused."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_helpers import WRITERS, refusal, save_archive, save_safetensors
from torch import Tensor, nn

from fedmoe.config import ClipConfig
from fedmoe.models.clip import FrozenCLIP
from fedmoe.readers.weights import read_weights


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_weights(kind: str, reference: Any, reference_json: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"  # the contents decide, not the name
    WRITERS[kind](reference.state_dict(), path)
    clip = FrozenCLIP.load(ClipConfig(weights=str(path), model_config=str(reference_json)))
    ours = clip.model.state_dict()
    assert ours.keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours[name], tensor), name


def test_an_archive_of_scripted_code(reference: Any, reference_json: Path, tmp_path: Path) -> None:
    # Methods, constants and buffers that no state dict has, such as the causal mask.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(deepcopy(reference)), tmp_path / "scripted.pt")
    checkpoint = read_weights(tmp_path / "scripted.pt")
    assert checkpoint.tensors.keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(checkpoint.tensors[name], tensor), name
    assert not checkpoint.openai


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_in_a_checkpoint_is_never_run(zipped: bool, reference_json: Path, tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.pt", tmp_path / "executed"
    torch.save({"state_dict": {"x": Malicious(proof)}}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(weights=str(path), model_config=str(reference_json))
    assert str(path) in message
    assert "pickled code is never loaded" in message
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file was indeed malicious


def test_pickled_code_in_an_archive_is_never_run(reference: Any, reference_json: Path, tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.pt", tmp_path / "executed"
    save_archive(reference.state_dict(), tmp_path / "good.pt")
    payload = pickle.dumps({"x": Malicious(proof)}, protocol=2)
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, payload if name.endswith("/data.pkl") else good.read(name))
    message = refusal(weights=str(path), model_config=str(reference_json))
    assert str(path) in message
    assert "pickled code is never loaded" in message
    assert not proof.exists()


def test_code_in_an_archive_is_never_run(reference_json: Path, tmp_path: Path) -> None:
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
    assert "holds no state dict" in refusal(weights=str(path), model_config=str(reference_json))


@pytest.mark.parametrize("kind", [*WRITERS, "empty", "text", "folder", "missing"])
def test_damaged_files(kind: str, reference: Any, reference_json: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if kind in WRITERS:
        WRITERS[kind](reference.state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "not weights at all, " * 20)
    message = refusal(weights=str(path), model_config=str(reference_json))
    assert str(path) in message
    expected = {"folder": "directory", "missing": "No such file"}.get(kind, "truncated, damaged")
    assert expected in message


def test_an_archive_with_a_damaged_byte(reference: Any, reference_json: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    save_archive(reference.state_dict(), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in refusal(weights=str(path), model_config=str(reference_json))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"a": torch.ones(2), "step": 3}, "its entry 'step' is a int"),
    ],
)
def test_files_without_a_state_dict(content: Any, words: str, reference_json: Path, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert words in refusal(weights=str(tmp_path / "weights.pt"), model_config=str(reference_json))


def test_weights_of_another_model(reference: Any, reference_json: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    options = {"weights": str(path), "model_config": str(reference_json)}
    state = reference.state_dict()

    torch.save({name: tensor for name, tensor in state.items() if name != "ln_final.bias"}, path)
    assert f"{path} lacks ln_final.bias, which clip.model_config = {reference_json} needs" in refusal(**options)

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
def test_rows_of_a_compact_file(rows: Tensor, words: str, reference: Any, reference_json: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = reference.state_dict() | {"token_embedding.weight": torch.ones(2, 32), "token_embedding.rows": rows}
    save_safetensors(state, path)
    message = refusal(weights=str(path), model_config=str(reference_json))
    assert words in message
    assert str(path) in message
