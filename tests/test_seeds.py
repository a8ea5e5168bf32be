"""Seeds that are derived from a seed and a purpose, and their generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.seeds import derive, numpy_generator, torch_generator


@pytest.mark.parametrize(
    ("path", "digest"),  # of the JSON text, by coreutils: printf '[7,"local",3,12]' | b2sum -l 64
    [
        ((0,), 0xAC00623085BF099C),
        ((7, "local", 3, 12), 0x2A470007BCB67F89),
        ((-1, "1"), 0xC654B67E1B4FD1B3),
        ((-1, 1), 0x2350E433644B56B9),
    ],
)
def test_derived_seed(path, digest):
    assert derive(*path) == digest >> 1


@settings(max_examples=50)
@given(st.lists(st.one_of(st.integers(0, 30), st.text(max_size=3)), max_size=4))
def test_derived_seeds_fit_both_generators(keys):
    seed = derive(5, *keys)
    assert 0 <= seed < 2**63
    assert seed != derive(6, *keys) and seed != derive(5, *keys, 0)
    assert torch_generator(5, *keys).initial_seed() == seed
    assert numpy_generator(5, *keys).integers(2**62) == np.random.Generator(np.random.PCG64(seed)).integers(2**62)


def test_derive_takes_numpy_integers_and_nothing_fractional():
    assert derive(np.int64(3), np.int32(4)) == derive(3, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive(3, 1.0)  # type: ignore[arg-type]


def test_generators_touch_no_global_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_generator(1, "a"))
    assert torch.equal(torch.get_rng_state(), before)
