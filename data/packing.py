"""Packing items of different lengths into rows of a fixed token budget, so that no computation is spent on padding.

Streaming first-fit over a few open rows: an item goes into the oldest open row with room for its tokens and its image
tiles; when none has room, the fullest row is closed and a new one opened. Items are never cut and never reordered
within a row. What a row holds is a list of items: the caller turns their lengths into cu_seqlens.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class Packer:
    """Packs anything with `num_tokens` and `num_tiles` (int attributes).

    max_tokens, max_tiles: budget of a row; max_tiles None means no limit on tiles.
    open_rows: rows kept open at once; more waste less and hold more items back (8 fill rows to about 99%).
    Items over the budget alone are dropped, counted in `too_long` by source, never silently cut.
    """

    def __init__(self, max_tokens: int, max_tiles: int | None = None, open_rows: int = 8):
        if max_tokens < 1 or open_rows < 1 or (max_tiles is not None and max_tiles < 1):
            raise ValueError(f"packing: budgets must be positive, got {max_tokens=} {max_tiles=} {open_rows=}")
        self.max_tokens, self.max_tiles, self.open_rows = max_tokens, max_tiles, open_rows
        self.too_long: Counter[str] = Counter()
        self.rows_closed = 0
        self.tokens_packed = 0
        self._rows: list[_Row] = []

    def add(self, item: Any) -> list[Any] | None:
        """Place one item. Returns the items of the row this closed, or None."""
        tokens, tiles = item.num_tokens, item.num_tiles if self.max_tiles is not None else 0
        if tokens > self.max_tokens or tiles > (self.max_tiles or 0):
            self.too_long[getattr(item, "source", "?")] += 1
            return None
        closed = None
        for row in self._rows:
            if row.tokens + tokens <= self.max_tokens and row.tiles + tiles <= (self.max_tiles or 0):
                break
        else:
            if len(self._rows) == self.open_rows:
                closed = self._close(max(range(len(self._rows)), key=lambda i: self._rows[i].fullness(self)))
            row = _Row()
            self._rows.append(row)
        row.items.append(item)
        row.tokens += tokens
        row.tiles += tiles
        return closed

    def flush(self) -> list[list[Any]]:
        """Close every open row (at the end of a finite stream) and return them, oldest first."""
        return [self._close(0) for _ in range(len(self._rows))]

    def fill(self) -> float:
        """Share of the token budget used by the rows closed so far, 0 to 1."""
        return self.tokens_packed / (self.rows_closed * self.max_tokens) if self.rows_closed else 0.0

    def _close(self, index: int) -> list[Any]:
        row = self._rows.pop(index)
        self.rows_closed += 1
        self.tokens_packed += row.tokens
        return row.items

    def state_dict(self) -> dict:
        """JSON-able: the refs of the items still held, not the items. Items need `ref` (see `mixture.Draw`)."""
        return {
            "rows": [[list(item.ref) for item in row.items] for row in self._rows],
            "too_long": dict(self.too_long),
            "rows_closed": self.rows_closed,
            "tokens_packed": self.tokens_packed,
        }

    def load_state_dict(self, state: Mapping, fetch: Callable[[tuple[str, int]], Any]) -> None:
        """Refill the open rows; `fetch(ref) -> item` reads an item again (`Mixture.fetch`)."""
        self._rows = []
        for refs in state["rows"]:
            row = _Row()
            for ref in refs:
                item = fetch(tuple(ref))
                row.items.append(item)
                row.tokens += item.num_tokens
                row.tiles += item.num_tiles if self.max_tiles is not None else 0
            self._rows.append(row)
        self.too_long = Counter(state["too_long"])
        self.rows_closed, self.tokens_packed = state["rows_closed"], state["tokens_packed"]


class _Row:
    """A row being filled."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.tokens = 0
        self.tiles = 0

    def fullness(self, packer: Packer) -> float:
        tiles = self.tiles / packer.max_tiles if packer.max_tiles else 0.0
        return max(self.tokens / packer.max_tokens, tiles)


def pack(
    items: Iterable[Any], max_tokens: int, max_tiles: int | None = None, open_rows: int = 8
) -> Iterator[list[Any]]:
    """Rows (lists of items) of a stream; the rows still open at its end come last."""
    packer = Packer(max_tokens, max_tiles, open_rows)
    for item in items:
        if (row := packer.add(item)) is not None:
            yield row
    yield from packer.flush()
