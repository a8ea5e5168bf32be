"""CLIP weights, model configurations and feature caches that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from conftest import tiny_config
from safetensors.torch import save
from torch import Tensor

from fedmoe import cli
from fedmoe.io import write_tensors_atomic
from fedmoe.readers.weights import EMBEDDING, ROWS
from malformed.helpers import Refused

CHECK_WEIGHTS = ["fit", "--clip.model_config=m.json", "--clip.weights=w.bin", "--clip.quick_gelu=true"]
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def reference() -> Tensors:
    """The weights of the small model that m.json describes."""
    config = tiny_config("vit")
    return open_clip.CLIP(**config).state_dict()


def without(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def change(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Any]:
    return lambda tensors: {**tensors, name: value(tensors[name])}


# What is done to the weights, and what the sentence must say beside the file.
CONTENTS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "nothing": (lambda tensors: {}, "holds no state dict"),
    "one tensor": (lambda tensors: {"x": torch.ones(2)}, "m.json needs"),
    "no bias": (without("ln_final.bias"), "lacks ln_final.bias"),
    "no scale": (without("logit_scale"), "lacks logit_scale"),
    "no embedding": (without(EMBEDDING), f"lacks {EMBEDDING}"),
    "one more": (lambda tensors: {**tensors, "more": torch.ones(2)}, "holds more"),
    "an empty name": (lambda tensors: {**tensors, "": torch.ones(2)}, "m.json does not have"),
    "a name of escapes": (lambda tensors: {**tensors, "\x1b[2J\n": torch.ones(2)}, "m.json does not have"),
    "a long name": (lambda tensors: {**tensors, "x" * 5000: torch.ones(2)}, "m.json does not have"),
    "a transposed projection": (change("visual.proj", lambda t: t.T), "visual.proj has shape [48, 64]"),
    "a flat projection": (change("visual.proj", torch.flatten), "visual.proj has shape [3072]"),
    "a scalar": (change("ln_final.bias", lambda t: t[0]), "ln_final.bias has shape []"),
    "an empty tensor": (change("ln_final.bias", lambda t: t[:0]), "ln_final.bias has shape [0]"),
    "a broadcasting bias": (change("ln_final.bias", lambda t: t[:1]), "ln_final.bias has shape [1]"),
    "a batch of biases": (change("ln_final.bias", lambda t: t[None]), "ln_final.bias has shape [1, 32]"),
    "other positions": (change("positional_embedding", lambda t: t[:5]), "positional_embedding"),
    "two scales": (change("logit_scale", lambda t: torch.ones(2)), "logit_scale has shape [2]"),
    "integers": (change("ln_final.bias", lambda t: t.long()), "ln_final.bias is of torch.int64"),
    "bools": (change("ln_final.bias", lambda t: t.bool()), "ln_final.bias is of torch.bool"),
    "complex": (change("ln_final.bias", lambda t: t.to(torch.complex64)), "ln_final.bias is of torch.complex64"),
    "no number": (change("ln_final.bias", lambda t: t * float("nan")), "ln_final.bias is not finite"),
    "infinity": (change("visual.proj", lambda t: t + float("inf")), "visual.proj is not finite"),
    "an infinite scale": (change("logit_scale", lambda t: t + 1000), "logit_scale"),
    "rows without embedding": (lambda tensors: without(EMBEDDING)({**tensors, ROWS: torch.arange(3)}), EMBEDDING),
    "rows twice": (lambda t: {**t, EMBEDDING: t[EMBEDDING][:2], ROWS: torch.tensor([1, 1])}, ROWS),
    "rows below": (lambda t: {**t, EMBEDDING: t[EMBEDDING][:2], ROWS: torch.tensor([-1, 1])}, ROWS),
    "rows above": (lambda t: {**t, EMBEDDING: t[EMBEDDING][:2], ROWS: torch.tensor([1, 2**40])}, ROWS),
    "rows in a plane": (lambda t: {**t, EMBEDDING: t[EMBEDDING][:2], ROWS: torch.tensor([[1, 2]])}, ROWS),
    "rows of fractions": (lambda t: {**t, EMBEDDING: t[EMBEDDING][:2], ROWS: torch.tensor([0.5, 1.5])}, ROWS),
    "rows of a scalar": (lambda t: {**t, EMBEDDING: t[EMBEDDING][:2], ROWS: torch.tensor(1)}, ROWS),
    "an embedding of a scalar": (lambda t: {**t, EMBEDDING: torch.tensor(1.0), ROWS: torch.arange(1)}, EMBEDDING),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_weights_of_other_contents(name: str, reference: Tensors, refused: Refused) -> None:
    spoil, words = CONTENTS[name]
    Path("m.json").write_text(json.dumps(tiny_config("vit")))
    Path("w.bin").write_bytes(save({key: tensor.contiguous() for key, tensor in spoil(reference).items()}))
    refused(CHECK_WEIGHTS, "w.bin", words)


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), ends: Any = (0, 4)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(ends)}}


FILES: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"{",
    "a header of 10**12": header({}, length=10**12),
    "a header of 2**64": header({}, length=2**64 - 1),
    "a header of nothing": header(b"", b"{"),
    "a header of less": header(entry(), bytes(4), length=5),
    "a header that is no JSON": header(b"{'x': 1}", bytes(4)),
    "a header that is deep": header(b'{"x":' * 10_000, bytes(4)),
    "a header that is a list": header([]),
    "a header without tensors": header({"__metadata__": {"a": "b"}}),
    "an unknown format": header(entry("F33"), bytes(4)),
    "a format of eight bits": header(entry("F8_E8M0", ends=(0, 1)), bytes(1)),
    "a format of four bits": header(entry("F4", shape=(2,), ends=(0, 1)), bytes(1)),
    "a negative size": header(entry(shape=(-1,)), bytes(4)),
    "a size of words": header(entry(shape=("x",)), bytes(4)),
    "a size of 10**12": header(entry(shape=(10**12,)), bytes(4)),
    "a size that overflows": header(entry(shape=(2**33, 2**33)), bytes(4)),
    "an end behind the file": header(entry(ends=(0, 400)), bytes(4)),
    "an end before the start": header(entry(ends=(4, 0)), bytes(4)),
    "a hole": header({**entry(), "y": entry(ends=(8, 12))["x"]}, bytes(12)),
    "tensors on each other": header({**entry(), "y": entry()["x"]}, bytes(4)),
    "data behind": header(entry(), bytes(400)),
    "an entry of nothing": header({"x": None}),
    "a name twice": header(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":3}', bytes(4)),
    "a page of HTML": b"<html>" + b"x" * 100,
    "text with a brace": b"12345678{" + b"x" * 100,
    "a picture": b"\x89PNG\r\n\x1a\n{" + bytes(100),
    "half of UTF-16": "{}".encode("utf-16"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_no_weights(name: str, refused: Refused) -> None:
    Path("w.bin").write_bytes(FILES[name])
    refused(["fit", "--clip.architecture=fedmoe-tiny", "--clip.weights=w.bin"], "The weights file w.bin")


@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damaged_weights(how: str, share: float, kind: str, refused: Refused) -> None:
    tensors = {"a": torch.ones(40, 3), "b": torch.zeros(7)}
    if kind == "safetensors":
        write_tensors_atomic("w.bin", tensors)
    else:
        torch.save(tensors, "w.bin", _use_new_zipfile_serialization=kind == "torch")
    whole = bytearray(Path("w.bin").read_bytes())
    place = int(share * len(whole))
    if how == "cut":
        del whole[place:]
    else:
        whole[place] ^= 0x10
    Path("w.bin").write_bytes(whole)
    refused(["fit", "--clip.architecture=fedmoe-tiny", "--clip.weights=w.bin"], "w.bin")


# Model configurations


def configured(**changes: Any) -> str:
    return json.dumps(tiny_config("vit", **changes))


def towers(tower: str, **changes: Any) -> str:
    config = tiny_config("vit")
    config[tower].update(changes)
    return json.dumps(config)


CONFIGS: dict[str, str | bytes] = {
    "empty": "",
    "cut": configured()[:-20],
    "no UTF-8": b"\xff\xfe{}",
    "deep": "[" * 100_000,
    "null": "null",
    "a list": "[]",
    "an empty object": "{}",
    "a width of null": configured(embed_dim=None),
    "a width of words": configured(embed_dim="48"),
    "a width of a half": configured(embed_dim=48.5),
    "a width of truth": configured(embed_dim=True),
    "no width": configured(embed_dim=0),
    "a negative width": configured(embed_dim=-48),
    "a width of 10**12": configured(embed_dim=10**12),
    "a width of 10**30": configured(embed_dim=10**30),
    "an unknown key": configured(embed_dmi=3),
    "a list as the vision tower": configured(vision_cfg=[]),
    "an empty vision tower": configured(vision_cfg={"layers": []}),
    "layers of words": towers("vision_cfg", layers="two"),
    "layers of null": towers("vision_cfg", layers=None),
    "layers of one stage": towers("vision_cfg", layers=[1]),
    "no patches": towers("vision_cfg", patch_size=0),
    "patches of words": towers("vision_cfg", patch_size="x"),
    "patches of two": towers("vision_cfg", patch_size=[1, 2, 3]),
    "an image of nothing": towers("vision_cfg", image_size=0),
    "a negative image": towers("vision_cfg", image_size=-32),
    "an image that is not square": towers("vision_cfg", image_size=[32, 0]),
    "an image of words": towers("vision_cfg", image_size="x"),
    "a small image": towers("vision_cfg", image_size=3),
    "heads of a width": towers("vision_cfg", head_width=0),
    "a width of the tower": towers("vision_cfg", width=0),
    "a wide tower": towers("vision_cfg", width=10**9),
    "an unknown timm model": towers("vision_cfg", timm_model_name="no_such_model"),
    "a timm model of the hub": towers("vision_cfg", timm_model_name="hf_hub:a/b"),
    "a timm model of a number": towers("vision_cfg", timm_model_name=3),
    "a pooling of words": towers("vision_cfg", pool_type="zzz"),
    "no text layers": towers("text_cfg", layers=0),
    "text layers of words": towers("text_cfg", layers="x"),
    "heads that do not divide": towers("text_cfg", heads=5),
    "no heads": towers("text_cfg", heads=0),
    "a short text": towers("text_cfg", context_length=0),
    "a text of words": towers("text_cfg", context_length="x"),
    "a negative vocabulary": towers("text_cfg", vocab_size=-1),
    "a vocabulary of words": towers("text_cfg", vocab_size="x"),
    "a small vocabulary": towers("text_cfg", vocab_size=10),
    "a text model of the hub": towers("text_cfg", hf_model_name="a/b"),
    "a tokenizer of the hub": towers("text_cfg", hf_tokenizer_name="a/b"),
    "arguments of the tokenizer": towers("text_cfg", tokenizer_kwargs={"zzz": 1}),
    "a vocabulary of a file": towers("text_cfg", tokenizer_kwargs={"bpe_path": "/etc/passwd"}),
    "arguments in a list": towers("text_cfg", tokenizer_kwargs=[1]),
    "an unknown key of the text": towers("text_cfg", wdith=3),
    "preprocessing in a list": json.dumps({"model_cfg": tiny_config("vit"), "preprocess_cfg": [1]}),
    "a mean of words": json.dumps({"model_cfg": tiny_config("vit"), "preprocess_cfg": {"mean": "x"}}),
    "a deviation of nothing": json.dumps({"model_cfg": tiny_config("vit"), "preprocess_cfg": {"std": [0, 0, 0]}}),
    "an unknown interpolation": json.dumps({"model_cfg": tiny_config("vit"), "preprocess_cfg": {"interpolation": "x"}}),
    "a mode of numbers": json.dumps({"model_cfg": tiny_config("vit"), "preprocess_cfg": {"resize_mode": 3}}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_model_configurations(name: str, refused: Refused) -> None:
    content = CONFIGS[name]
    Path("m.json").write_bytes(content.encode() if isinstance(content, str) else content)
    small = ["--method=PromptFL", "--federation.clients=2", "--prompt.length=2"]
    refused(["fit", "--clip.model_config=m.json", "--clip.pretrained=null", *small], "m.json")


NAMES = {
    "a path as architecture": (["--clip.architecture=../../etc/passwd"], "clip.architecture is '../../etc/passwd'"),
    "an empty architecture": (["--clip.architecture="], "clip.architecture is ''"),
    "an architecture of the hub": (["--clip.architecture=hf-hub:a/b"], "clip.architecture is 'hf-hub:a/b'"),
    "a local architecture": (["--clip.architecture=local-dir:."], "clip.architecture is 'local-dir:.'"),
    "an unknown tag": (["--clip.architecture=RN50", "--clip.pretrained=w.bin"], "clip.pretrained is 'w.bin'"),
    "weights that are missing": (["--clip.weights=w.bin"], "w.bin cannot be read: No such file"),
    "weights that are a folder": (["--clip.weights=."], "cannot be read: Is a directory"),
    "weights of a long name": (["--clip.weights=" + "w" * 300], "cannot be read: File name too long"),
    "a configuration that is missing": (["--clip.model_config=m.json"], "m.json cannot be read: No such file"),
    "a configuration that is a folder": (["--clip.model_config=."], "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_models(name: str, refused: Refused) -> None:
    options, words = NAMES[name]
    refused(["fit", *options], words)


# The feature cache: what is damaged there is not used, and listed as such


CACHED: dict[str, tuple[str, bytes]] = {
    "empty": ("features-ab.safetensors", b""),
    "no safetensors": ("features-ab.safetensors", b"x" * 200),
    "a header of 10**12": ("features-ab.safetensors", header({}, length=10**12)),
    "without metadata": ("features-ab.safetensors", header(entry(), bytes(4))),
    **{
        f"{key} {name}": (
            "features-ab.safetensors",
            header(
                {"__metadata__": {"about": "{}", "description": "{}", "damaged": "{}", key: text}, **entry()}, bytes(4)
            ),
        )
        for key in ("about", "description", "damaged")
        for name, text in {"cut": "{", "a list": "[1]", "a number": "3", "null": "null", "deep": "[" * 20_000}.items()
    },
    "about numbers": (
        "features-ab.safetensors",
        header(
            {"__metadata__": {"about": '{"dataset": 3}', "description": "{}", "damaged": "{}"}, **entry()}, bytes(4)
        ),
    ),
    "parts about a list": ("features-ab.parts/about.json", b"[]"),
    "parts about null": ("features-ab.parts/about.json", b"null"),
    "parts about numbers": ("features-ab.parts/about.json", b'{"about": 3, "description": 4}'),
    "parts about nothing": ("features-ab.parts/about.json", b""),
    "parts about no UTF-8": ("features-ab.parts/about.json", b"\xff"),
    "parts about depth": ("features-ab.parts/about.json", b"[" * 100_000),
    "parts of words": ("features-ab.parts/part-x.safetensors", b""),
    "parts of a word in numbers": ("features-ab.parts/part-1-ab-xx.safetensors", b""),
    "parts that are a file": ("features-ab.parts", b"in the way"),
    "a file that is a folder": ("features-ab.safetensors/x", b""),
}


@pytest.mark.parametrize("action", ["list", "inspect"])
@pytest.mark.parametrize("name", CACHED)
def test_a_damaged_cache_is_listed(name: str, action: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path("features") / CACHED[name][0]
    path.parent.mkdir(parents=True)
    path.write_bytes(CACHED[name][1])
    keys = ["--keys=[ab]"] if action == "inspect" else []
    assert cli.main(["features", action, "--features.cache_dir=features", *keys]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "ab" in out
    assert path.read_bytes() == CACHED[name][1]
