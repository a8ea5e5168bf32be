"""The fast search of a pool against the plain one, for pools of every kind and while entries are replaced."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_helpers import own_memory
from torch import Tensor

from fedmoe.server.journal import Journal
from fedmoe.server.search import PoolSearch

Pools = Callable[[np.random.Generator, int], np.ndarray]
KINDS: dict[str, Pools] = {
    "apart": lambda draw, size: draw.normal(size=(size, 4, 8)),
    "near a common start": lambda draw, size: 100 + 1e-3 * draw.normal(size=(size, 4, 8)),
    "in tight groups": lambda draw, size: draw.normal(size=(5, 4, 8))[draw.integers(5, size=size)]
    + 1e-6 * draw.normal(size=(size, 4, 8)),
    "alike": lambda draw, size: np.ones((size, 4, 8)),
    "on a grid": lambda draw, size: draw.integers(-2, 3, size=(size, 1, 2)),
    "of very different norms": lambda draw, size: (
        draw.normal(size=(size, 4, 8)) * 10.0 ** draw.integers(-6, 7, (size, 1, 1))
    ),
    "tiny": lambda draw, size: 1e-30 * draw.normal(size=(size, 4, 8)),
    "huge": lambda draw, size: 1e30 * draw.normal(size=(size, 4, 8)),
}  # fmt: skip


def by_numpy(pool: Mapping[int, Tensor], client: int, count: int, sign: int) -> list[int]:
    """The definition: sums of squared differences in float64, ties by client id."""
    others = sorted(pool.keys() - {client})
    own = pool[client].numpy().astype(np.float64)
    distances = [sign * np.square(pool[other].numpy().astype(np.float64) - own).sum() for other in others]
    return [others[i] for i in np.argsort(distances, kind="stable")[:count]]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([dict, Journal]),
    st.booleans(),
    st.integers(65, 160),
    st.integers(0, 12),
    st.integers(0, 2**32),
)
def test_as_the_definition_while_entries_are_replaced(
    kind: str, holder: Callable[..., MutableMapping[int, Tensor]], on_disk: bool, size: int, count: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    numbers = draw.permutation(3 * size)[:size]  # clients that have uploaded, in any order

    def fresh(amount: int) -> list[Tensor]:
        return list(torch.from_numpy(KINDS[kind](draw, amount).astype(np.float32)))

    pool = holder(zip(numbers.tolist(), fresh(size), strict=True))
    search = PoolSearch(Path(tempfile.gettempdir()) if on_disk else None)
    for round in range(5):
        asked = sorted(pool)[:10] if round % 2 else draw.permutation(sorted(pool))[:5].tolist()  # in turn, or not
        # What is said to be asked about next: nothing, all of it, or others too, some of whom are not in the pool.
        ahead = [(), asked, [-1, *asked[2:], *numbers.tolist()]][draw.integers(3)]
        for client in asked:
            assert search.nearest(pool, client, count, ahead) == by_numpy(pool, client, count, 1)
            assert search.farthest(pool, client, count, ahead) == by_numpy(pool, client, count, -1)
        cohort = draw.permutation(numbers)[: size // 2 if round == 2 else 7].tolist()
        pool.update(zip(cohort, fresh(len(cohort)), strict=True))
        for number in range(draw.integers(30)):
            pool[(3 + round) * size + number] = fresh(1)[0]  # a client's first upload
        if round == 3:
            del pool[asked[0]]  # a client that begins anew


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    values = torch.randn(200, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    pool = dict(enumerate(values))
    for client in range(200):
        assert PoolSearch().nearest(pool, client, 9) == by_numpy(pool, client, 9, 1)


def test_rows_on_disk_are_no_memory_of_the_process_and_leave_nothing(tmp_path: Path) -> None:
    pool = Journal(enumerate(torch.randn(1000, 16, 256, generator=torch.Generator().manual_seed(0))))
    before, search = own_memory(), PoolSearch(tmp_path / "new")
    assert search.nearest(pool, 7, 9) == by_numpy(pool, 7, 9, 1)
    rows = 4 * 1000 * 16 * 256
    assert own_memory() - before < rows / 4
    assert list((tmp_path / "new").iterdir()) == []


def test_first_uploads_are_added_and_not_all_rows_made_again() -> None:
    values = torch.randn(1000, 2, 3, generator=torch.Generator().manual_seed(0))
    pool, search, made = Journal(enumerate(values[:100])), PoolSearch(), 0
    for client in range(100, 1000):
        before = search._made
        assert search.nearest(pool, 0, 3) == by_numpy(pool, 0, 3, 1)
        made += search._made != before
        pool[client] = values[client]
    assert made <= 7  # each with half as many rows again: 100 x 1.5^6 > 1000


def test_most_distances_are_not_computed() -> None:
    values = torch.randn(500, 16, 64, generator=torch.Generator().manual_seed(0))
    pool, search = dict(enumerate(values)), PoolSearch()
    looked_at = [len(search._candidates(pool, client, 9, (), 1) or pool) for client in range(500)]
    assert max(looked_at) < 30
