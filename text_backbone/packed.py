"""A batch as packed tokens: which tokens belong to which sequence, and where in it they stand.

There is no padding and no mask: all tokens of all sequences lie one after the other along T. Whatever every layer
needs (offsets, positions, block plan, cache indices) is computed on the host once per batch and kept here.

Legend: T new tokens, U tokens with keys (past and new), S sequences.
"""

import functools
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from mmvl.kernels.lightning_attention import BlockPlan, plan_blocks
from mmvl.kernels.paged_attention import PagePlan

if TYPE_CHECKING:
    from .sequence_parallel import PartTables


def to_device(tensor: torch.Tensor, device) -> torch.Tensor:
    """A small host tensor on the device, without waiting for what the device is doing."""
    device = torch.device(device)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class KeyIndex:
    """Where the keys of a packed batch lie in a paged pool."""

    pages: PagePlan
    lengths: tuple[int, ...]  # past and new tokens of each sequence
    has_past: bool  # whether any sequence has old tokens

    @property
    def cu_seqlens_S1(self) -> torch.Tensor:
        """int32: offsets of the sequences in U."""
        return self.pages.cu_keys_S1

    @functools.cached_property
    def read_U(self) -> torch.Tensor | None:
        """int64: rows of the pool for all tokens of all sequences in order; None if no sequence has a past."""
        return self.pages.rows_U() if self.has_past else None


@dataclass(frozen=True)
class Packed:
    """One packed batch; make it with `from_lengths`, or with `HybridCache.pack` to continue cached sequences."""

    lengths: tuple[int, ...]  # new tokens of each sequence
    starts: tuple[int, ...]  # tokens of each sequence before these
    cu_seqlens_S1: torch.Tensor  # int32
    positions_T: torch.Tensor  # int64, absolute in the sequence
    plan: BlockPlan  # for lightning attention
    slots: tuple[int, ...] | None = None  # cache slot of each sequence
    slots_S: torch.Tensor | None = None  # the same, int64 on the device
    keys: KeyIndex | None = None  # for softmax attention over a cache
    draft: bool = False  # tokens to verify: states wait for `HybridCache.accept`
    static: bool = False  # its tensors are filled anew for every step of a CUDA graph, which counts for itself
    source_S: torch.Tensor | None = None  # int64: whose state is stored for each; rows of a graph that stand for nobody
    part: "PartTables | None" = None  # of a row over several ranks in which documents are cut

    @property
    def num_tokens(self) -> int:
        return len(self.positions_T)

    @property
    def last_S(self) -> torch.Tensor:
        """Index along T of each sequence's last token, int64."""
        return self.cu_seqlens_S1[1:].long() - 1

    @classmethod
    def from_lengths(cls, lengths, device, starts=None, **cache_fields) -> "Packed":
        """Sequences of `lengths` tokens (each >= 1), the first of them at positions `starts` (default 0).

        Raises ValueError if there is no sequence, or an empty one, or `starts` does not match.
        """
        lengths = tuple(int(n) for n in lengths)
        if not lengths or min(lengths) < 1:
            raise ValueError(f"a packed batch needs sequences of at least 1 token, got lengths {lengths}")
        starts = (0,) * len(lengths) if starts is None else tuple(int(n) for n in starts)
        if len(starts) != len(lengths) or min(starts) < 0:
            raise ValueError(f"starts {starts} do not match the {len(lengths)} sequences")
        cu_seqlens = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32)
        length_S = torch.tensor(lengths)
        shift_S = torch.tensor(starts) - cu_seqlens[:-1]
        num_tokens = sum(lengths)
        positions_T = torch.arange(num_tokens) + shift_S.repeat_interleave(length_S, output_size=num_tokens)
        return cls(
            lengths=lengths,
            starts=starts,
            cu_seqlens_S1=to_device(cu_seqlens, device),
            positions_T=to_device(positions_T, device),
            plan=plan_blocks(lengths, device),
            **cache_fields,
        )
