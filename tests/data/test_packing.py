"""Packing: budgets kept, nothing lost or cut, well filled, resumable."""

import json
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.data.mixture import Mixture
from mmvl.data.packing import Packer, pack


@dataclass(frozen=True)
class Item:
    number: int
    num_tokens: int
    num_tiles: int = 0
    source: str = "s"


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 130), st.integers(0, 6)), max_size=120),
    max_tiles=st.one_of(st.none(), st.integers(1, 9)),
    open_rows=st.integers(1, 5),
)
def test_budgets_are_kept_and_nothing_is_lost(sizes, max_tiles, open_rows):
    items = [Item(i, tokens, tiles) for i, (tokens, tiles) in enumerate(sizes)]
    packer = Packer(100, max_tiles, open_rows)
    rows = [row for item in items if (row := packer.add(item)) is not None] + packer.flush()
    for row in rows:
        assert row and sum(item.num_tokens for item in row) <= 100
        assert max_tiles is None or sum(item.num_tiles for item in row) <= max_tiles
        assert [item.number for item in row] == sorted(item.number for item in row)
    fitting = [i for i in items if i.num_tokens <= 100 and (max_tiles is None or i.num_tiles <= max_tiles)]
    assert sorted(item.number for row in rows for item in row) == [item.number for item in fitting]
    assert packer.too_long["s"] == len(items) - len(fitting)
    assert list(pack(items, 100, max_tiles, open_rows)) == rows


def test_rows_are_full():
    packer = Packer(4096, open_rows=8)
    for i in range(20_000):
        packer.add(Item(i, 1 + (i * 7919) % 700))
    assert packer.fill() > 0.985


SOURCES = {"a": [Item(i, 1 + (i * 31) % 60, i % 3) for i in range(300)], "b": [Item(i, 5) for i in range(90)]}


def stream(count, state=None):
    """Rows of a mixture, and the state to continue from."""
    mixture, packer = Mixture(SOURCES, {"a": 2, "b": 1}, seed=4), Packer(200, 12, 3)
    if state:
        state = json.loads(json.dumps(state))
        mixture.load_state_dict(state["mixture"])
        packer.load_state_dict(state["packer"], mixture.fetch)
    rows = islice((row for draw in mixture if (row := packer.add(draw)) is not None), count)
    refs = [[draw.ref for draw in row] for row in rows]
    return refs, {"mixture": mixture.state_dict(), "packer": packer.state_dict()}


def test_mixture_and_packer_resume_to_the_same_rows():
    whole, end = stream(50)
    first, state = stream(17)
    second, resumed_end = stream(33, state)
    assert first + second == whole
    assert resumed_end == end


def test_budgets_must_be_positive():
    with pytest.raises(ValueError, match="max_tokens=0"):
        Packer(0)
