"""Copies of sequences' lightning states, kept aside for those who come back: as they are, or in int8.

Legend: N places, L lightning layers, H heads, K head dim.
"""

import torch


class StateStore:
    """`num_states` places of shape (L, H, K, K), allocated at once.

    `dtype` is that of the states (a copy is then exact), or torch.int8: a quarter of the memory, each key channel of a
    head scaled by its largest value, which is off by at most 1/254 of that.
    """

    def __init__(self, num_states: int, shape: tuple[int, ...], device, dtype: torch.dtype):
        self._states = torch.zeros((num_states, *shape), device=device, dtype=dtype)
        self._scales = None
        if dtype == torch.int8:
            self._scales = torch.zeros((num_states, *shape[:-1], 1), device=device, dtype=torch.float32)

    @property
    def num_bytes(self) -> int:
        return self._states.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def put(self, place: int, states_LHKK: torch.Tensor) -> None:
        if self._scales is None:
            self._states[place].copy_(states_LHKK)
            return
        scale = states_LHKK.abs().amax(-1, keepdim=True).float() / 127
        self._scales[place].copy_(scale)
        self._states[place].copy_((states_LHKK / scale.clamp(min=torch.finfo(torch.float32).tiny)).round())

    def get(self, place: int, out_LHKK: torch.Tensor) -> None:
        """Write the state into `out_LHKK`."""
        if self._scales is None:
            out_LHKK.copy_(self._states[place])
        else:
            torch.mul(self._states[place], self._scales[place], out=out_LHKK)
