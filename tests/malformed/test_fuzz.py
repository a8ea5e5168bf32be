"""Readers on random input: each gives a good value, or the error that its caller turns into a sentence.

Nothing else may happen: no other exception, no call of what a file names, no gigabyte for a few bytes. The numbers are
drawn from fixed seeds; the slow tests draw more of them.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from hypothesis import strategies as st

from fedmoe import cli
from fedmoe.cli.yaml_files import load_file
from fedmoe.config import ClipConfig, FeatureConfig
from fedmoe.data.sets.coop_layout import check_table
from fedmoe.errors import UserError
from fedmoe.features.cache import Block, FeatureCache, read_block, read_metadata
from fedmoe.features.command import entries
from fedmoe.models.clip import FrozenCLIP
from fedmoe.readers.array_pickle import load_arrays
from fedmoe.readers.weights import read_weights
from malformed.data_sets import batch, listed, table
from malformed.random_input import PART, SHARE, Edit, drawn, edited, edits, fuzz, is_sentence, with_value
from malformed.test_pickles import CALLS, GREEDY, SHELL, WAYS, long_text

pytestmark = pytest.mark.usefixtures("bounded")


# Pickles


NAMES = [b"posix\nsystem\n", b"builtins\neval\n", b"builtins\ngetattr\n", b"numpy\ndtype\n", b"numpy\nndarray\n"]
NAMES += [b"numpy.core.multiarray\n_reconstruct\n", b"numpy._core.multiarray\nscalar\n", b"_codecs\nencode\n"]
NAMES += [b"numpy._core.numeric\n_frombuffer\n", b"__builtin__\nbytes\n", b"collections\nOrderedDict\n"]
NAMES += [b"torch._utils\n_rebuild_tensor_v2\n", b"torch\nFloatStorage\n", b"__torch__\nM\n"]
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
INSTRUCTIONS = st.one_of(
    st.sampled_from(OPCODES),
    st.sampled_from(OPCODES),
    st.sampled_from([b"c" + name for name in NAMES]),
    st.sampled_from([b"(", b"t", b"R", b"b", b"}", b"]", b"N", b"I1\n", b"Vi4\n", SHELL[2], b"\x85", b"\x86", b"2"]),
    st.sampled_from([*WAYS.values(), *CALLS.values(), *(code[:-1] for code in GREEDY.values() if len(code) < 1000)]),
    st.binary(min_size=1, max_size=8),
    st.integers(0, 2**32 - 1).map(lambda number: b"r" + number.to_bytes(4, "little")),
    st.integers(0, 2**63 - 1).map(lambda number: b"\x8e" + number.to_bytes(8, "little")),
    st.text(max_size=5).map(long_text),
)
PLAIN = (str, bytes, int, float, bool, type(None), list, tuple, dict, np.ndarray)


@drawn(400, 2_000)
def test_streams_of_instructions(count: int) -> None:
    def check(parts: list[bytes], protocol: bytes) -> None:
        Path("p").write_bytes(protocol + b"".join(parts) + b".")
        try:
            assert isinstance(load_arrays("p"), PLAIN)
        except UserError as error:
            is_sentence(error)

    fuzz(
        count, check, st.lists(INSTRUCTIONS, max_size=14), st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"])
    )


@drawn(150, 1000)
def test_damaged_pickles(count: int) -> None:
    objects = np.array([["a/b.jpg", "bird"], ["c", 1]], dtype=object)
    wholes = [pickle.dumps(value, p) for value in (batch(2), listed(), objects, [np.float32(1)]) for p in (0, 2, 4, 5)]

    def check(whole: bytes, changes: list[Edit]) -> None:
        Path("p").write_bytes(edited(whole, changes))
        try:
            assert isinstance(load_arrays("p"), PLAIN)
        except UserError as error:
            is_sentence(error)

    fuzz(count, check, st.sampled_from(wholes), edits())


# Split files


@drawn(200, 2_000)
def test_split_tables(count: int) -> None:
    def check(share: float, part: Any) -> None:
        try:
            names = check_table(with_value(table(), share, part), "The split file x")
        except UserError as error:
            is_sentence(error)
        else:
            assert names and all(isinstance(name, str) for name in names)

    fuzz(count, check, SHARE, PART)


# Weights


@pytest.fixture
def weights(tmp_path: Path) -> list[bytes]:
    """A small state dict in every format."""
    from fedmoe.io import write_tensors_atomic

    tensors = {"a.weight": torch.ones(3, 2), "b": torch.zeros(2, dtype=torch.int64)}
    write_tensors_atomic("s", tensors)
    torch.save(tensors, "z")
    torch.save({"state_dict": tensors}, "o", _use_new_zipfile_serialization=False)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.ones(1, 2)), "j")
    return [Path(name).read_bytes() for name in "szoj"]


@drawn(200, 1000)
def test_damaged_weights(count: int, weights: list[bytes]) -> None:
    def check(whole: bytes, changes: list[Edit]) -> None:
        Path("w").write_bytes(edited(whole, changes))
        try:
            found = read_weights("w")
        except UserError as error:
            is_sentence(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())

    fuzz(count, check, st.sampled_from(weights), edits())


@drawn(150, 1000)
def test_safetensors_headers(count: int) -> None:
    good = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "b"}}

    def check(share: float, part: Any, length: int) -> None:
        text = json.dumps(with_value(good, share, part)).encode()
        Path("w").write_bytes(max(0, min(len(text) + length, 2**64 - 1)).to_bytes(8, "little") + text + bytes(8))
        try:
            read_weights("w")
        except UserError as error:
            is_sentence(error)

    fuzz(count, check, SHARE, PART, st.sampled_from([0, 0, 0, -1, 1, 10**12, 2**64]))


@drawn(60, 120)
def test_model_configurations(count: int) -> None:
    """Sizes stay small: a wide model is no mistake, and takes what it takes."""
    sizes = st.one_of(
        st.integers(-2, 12), st.floats(-2, 12), st.none(), st.booleans(), st.text(max_size=3), st.just(...)
    )
    values = st.one_of(
        sizes,
        st.lists(sizes.filter(lambda size: size is not ...), max_size=4),
        st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2),
    )
    wholes = [
        {"model_cfg": tiny_config(kind), "preprocess_cfg": {"mean": [0.5] * 3, "interpolation": "bilinear"}}
        for kind in ("rn", "vit")
    ]
    for whole in wholes:
        whole["model_cfg"]["text_cfg"] |= {"context_length": 77, "vocab_size": 49408, "layers": 1}

    def check(whole: Any, share: float, value: Any) -> None:
        Path("m.json").write_text(json.dumps(with_value(whole, share, value)))
        try:
            clip = FrozenCLIP.load(ClipConfig(model_config="m.json", pretrained=None))
        except UserError as error:
            is_sentence(error)
        else:
            assert clip.feature_dim >= 1

    fuzz(count, check, st.sampled_from(wholes), SHARE, values)


# Settings


@drawn(200, 2_000)
def test_yaml_files(count: int) -> None:
    tokens = [
        "seed",
        "clip",
        ": ",
        "\n",
        "  ",
        "- ",
        "&a ",
        "*a",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "!!bool ",
        "!!int ",
        "!!float ",
    ]
    tokens += [
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "!!omap ",
        "!!python/name:os.system ",
        "<<: ",
        "? ",
        "'",
        '"',
        "|",
        ">",
    ]
    tokens += ["#", "0x", "1e", ".inf", "~", "\t", "%YAML 9", "---", "...", "\\u", "\ud800", "\x1b", "\ufeff", "1:60"]

    def check(parts: list[str]) -> None:
        Path("a.yaml").write_bytes("".join(parts).encode("utf-8", "surrogatepass"))
        try:
            load_file(Path("a.yaml"))
        except UserError as error:
            is_sentence(error)

    fuzz(count, check, st.lists(st.one_of(st.sampled_from(tokens), st.text(max_size=3)), max_size=12))


@drawn(60, 120)
def test_settings_of_any_kind(count: int) -> None:
    parser = cli.experiment_parser()
    whole = json.loads(json.dumps(parser.parse_args([]).as_dict(), default=str))
    for key in ("config", "methods"):
        whole.pop(key, None)

    def check(share: float, part: Any) -> None:
        changed = with_value(whole, share, part)
        Path("a.yaml").write_text(json.dumps(changed))
        try:
            parser.instantiate(parser.parse_args(["--config=a.yaml"]))
        except UserError as error:
            is_sentence(error)

    fuzz(count, check, SHARE, PART)


# The feature cache


@drawn(150, 1000)
def test_damaged_caches(count: int) -> None:
    cache = FeatureCache("features", {"count": 3}, {"dataset": "x", "images": "3"})
    cache.store(Block(torch.arange(3), torch.ones(3, 2), {}))
    path = cache.path
    whole = path.read_bytes()

    def check(changes: list[Edit]) -> None:
        path.write_bytes(edited(whole, changes))
        for read in (read_block, read_metadata):
            try:
                read(path)
            except ValueError as error:
                assert str(error)
        assert len(entries(FeatureConfig("features"))) == 1
        block = cache.load(3, (2,))
        assert block is None or (torch.equal(block.values, torch.ones(3, 2)) and not block.damaged)

    fuzz(count, check, edits())
