"""The order of visits: a permutation, the same everywhere, another one for every seed, source and epoch."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.data.order import Permutation, derive


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 700), seed=st.integers(0, 2**40), source=st.text(max_size=8), epoch=st.integers(0, 1000))
def test_every_index_once(n, seed, source, epoch):
    order = Permutation(n, seed, source, epoch)
    assert sorted(order[i] for i in range(n)) == list(range(n))


def test_seed_source_and_epoch_all_change_the_order():
    def first(*args):
        order = Permutation(1000, *args)
        return [order[i] for i in range(20)]

    orders = [first(1, "a", 0), first(2, "a", 0), first(1, "b", 0), first(1, "a", 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert first(1, "a", 0) == orders[0]


def test_looks_shuffled():
    """Neighbours do not stay neighbours, and the mean displacement is that of a random permutation, n / 3."""
    n = 4000
    order = Permutation(n, 7, "lines", 3)
    indices = [order[i] for i in range(n)]
    assert sum(abs(a - b) == 1 for a, b in zip(indices, indices[1:], strict=False)) < 12
    assert abs(sum(abs(i - x) for i, x in enumerate(indices)) / n / (n / 3) - 1) < 0.05


def test_derive_is_the_same_in_another_process_and_tells_types_apart():
    code = "from mmvl.data.order import derive; print(derive('lines', 3, 'x'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive("lines", 3, "x")
    assert derive("1", 2) != derive(1, 2) and derive("ab", "c") != derive("a", "bc")


def test_out_of_range_and_empty():
    with pytest.raises(IndexError):
        Permutation(5, 0, "a", 0)[5]
    with pytest.raises(ValueError, match="'empty' has no samples"):
        Permutation(0, 0, "empty", 0)
