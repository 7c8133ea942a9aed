"""Prefill of long sequences over several ranks: lightning layers by parts of the tokens, ranks exchange states.

As LASP+ trains (arXiv 2501.08313, section 3.2.2; sequence_parallel.py), but between a step's beginning and its end in a
cache that is sharded by heads. Each rank has all heads of a part of the step's tokens, one after the other. It computes
what these add to the state of each sequence, all ranks gather that, and the states before the step; a rank then has the
states before its own tokens, and of its own heads the states after all. What travels does not grow with the tokens.

Legend: T tokens, S sequences, W ranks, L tokens of a rank's part (filled up), H heads, G heads of a rank, K head dim.
"""

from itertools import accumulate

import torch
import torch.distributed as dist

from mmvl.kernels.lightning_attention import lightning_attention, plan_blocks

from .packed import Packed, to_device


class SequenceParts:
    """Where the sequences of a step lie on `size` ranks that have `rows` tokens each, one after the other, seen from
    `rank`."""

    def __init__(self, packed: Packed, rank: int, size: int, rows: int, group: dist.ProcessGroup | None = None):
        self.rank, self.size, self.group = rank, size, group
        stops, device = tuple(accumulate(packed.lengths)), packed.cu_seqlens_S1.device
        places = list(zip((0, *stops), stops, strict=False))
        inside = [[max(min(b, (r + 1) * rows) - max(a, r * rows), 0) for a, b in places] for r in range(size)]
        inside_WS = torch.tensor(inside, dtype=torch.float64)
        self.num_tokens = sum(inside[rank])  # none where a few tokens fill the ranks before
        self.plan = plan_blocks(inside[rank], device) if self.num_tokens else None
        # tokens of a sequence between the end of each part and the beginning of this; inf: nothing flows
        before_WS = inside_WS[:rank].flip(0).cumsum(0).flip(0) - inside_WS[:rank]
        before_WS = torch.cat((before_WS, torch.full((size - rank, len(stops)), torch.inf, dtype=torch.float64)))
        after_WS = inside_WS.flip(0).cumsum(0).flip(0) - inside_WS  # ... and the end of the step
        # the same from before the step, as a part ahead of the others
        self._before_WS = to_device(torch.cat((inside_WS[:rank].sum(0, keepdim=True), before_WS)), device)
        self._after_WS = to_device(torch.cat((inside_WS.sum(0, keepdim=True), after_WS)), device)

    def attend(
        self, qkv_LC: torch.Tensor, slopes_H: torch.Tensor, states_SGKK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`lightning_attention` of this rank's tokens, (L, H, K), and the states of its heads after the step.

        qkv_LC (L, H * 3K) of all heads; states_SGKK, of its own heads, those before. All ranks call it together.
        """
        H, G = len(slopes_H), states_SGKK.shape[1]
        K = states_SGKK.shape[-1]
        own = slice(self.rank * G, (self.rank + 1) * G)
        qkv_TC = qkv_LC[: self.num_tokens]
        added_SHKK = states_SGKK.new_zeros(len(states_SGKK), H, K, K)
        if self.plan is not None:
            added_SHKK = lightning_attention(qkv_TC, slopes_H, plan=self.plan)[1].to(states_SGKK.dtype)
        cached_SHKK = gather_ranks(states_SGKK, self.size, self.group).transpose(0, 1).flatten(1, 2)
        pieces_WSHKK = torch.cat((cached_SHKK[None], gather_ranks(added_SHKK, self.size, self.group)))
        states_SGKK = _decayed_sum(pieces_WSHKK[:, :, own], self._after_WS, slopes_H[own])
        o_LHK = qkv_LC.new_zeros(len(qkv_LC), H, K)
        if self.plan is not None:
            initial_SHKK = _decayed_sum(pieces_WSHKK, self._before_WS, slopes_H)
            attended = lightning_attention(qkv_TC, slopes_H, None, initial_SHKK, plan=self.plan, want_state=False)
            o_LHK[: self.num_tokens] = attended[0]
        return o_LHK, states_SGKK


def gather_ranks(x: torch.Tensor, size: int, group: dist.ProcessGroup | None) -> torch.Tensor:
    """`x` of all ranks, (size, *x.shape); without gradients."""
    everyones = x.new_empty(size, *x.shape)
    if x.is_cuda:
        dist.all_gather_into_tensor(everyones.flatten(0, 1), x.contiguous(), group=group)
    else:
        dist.all_gather(list(everyones.unbind(0)), x.contiguous(), group=group)
    return everyones


def _decayed_sum(pieces_WSHKK: torch.Tensor, distance_WS: torch.Tensor, slopes_H: torch.Tensor) -> torch.Tensor:
    """States (S, H, K, K) from what earlier parts added, each decayed by the tokens since."""
    decay_WSH = torch.exp(-distance_WS[..., None] * slopes_H).to(pieces_WSHKK.dtype)
    return (decay_WSH[..., None, None] * pieces_WSHKK).sum(0)
