"""The pools of keys and values of the softmax layers: rows in their dtype, or in 8 bits with scales beside them.

Legend: L softmax layers, N rows, G key/value heads, K head dim, T new tokens, U tokens with keys.
"""

import torch

from mmvl.kernels.keys_8bit import KINDS, SCALE_BYTES, SCALE_DTYPE, check_device, read_8bit_rows, write_8bit_rows

from .config import TextConfig


def bytes_of_token(config: TextConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all softmax layers."""
    of_head = 2 * config.head_dim * dtype.itemsize + (SCALE_BYTES if dtype in KINDS.values() else 0)
    return len(config.softmax_layers) * config.num_key_value_heads * of_head


class KeyStore:
    """`rows` rows of keys and values in each layer, allocated at once; layers are counted among softmax layers.

    `dtype` torch.float8_e4m3fn or torch.int8 is as kernels/keys_8bit.py has it; raises ValueError where the device
    cannot have that.
    """

    def __init__(self, config: TextConfig, rows: int, device, dtype: torch.dtype):
        self.dtype, self.scales = dtype, None
        shape = (len(config.softmax_layers), rows, config.num_key_value_heads, config.head_dim)
        if dtype in KINDS.values():
            check_device(torch.device(device), dtype)
            self.scales = torch.zeros((*shape[:-1], 2), device=device, dtype=SCALE_DTYPE)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))

    @property
    def num_bytes(self) -> int:
        return sum(pool.nbytes for pool in self._pools())

    def write(self, layer: int, rows_T: torch.Tensor, k_TGK: torch.Tensor, v_TGK: torch.Tensor):
        """Store new keys and values; they themselves, or in 8 bits what was stored, in their own dtype."""
        new, pools = (k_TGK.detach(), v_TGK.detach()), (self.keys[layer], self.values[layer])
        if self.scales is not None:
            return [write_8bit_rows(pool, self.scales[layer], n, rows_T, new[n]) for n, pool in enumerate(pools)]
        for pool, x_TGK in zip(pools, new, strict=True):
            pool.index_copy_(0, rows_T, x_TGK.to(pool.dtype))
        return [k_TGK, v_TGK]

    def read(self, layer: int, rows_U: torch.Tensor, dtype: torch.dtype):
        """Keys and values (U, G, K) of these rows; in `dtype` if they are in 8 bits."""
        pools = self.keys[layer], self.values[layer]
        if self.scales is not None:
            return [read_8bit_rows(pool, self.scales[layer], n, rows_U, dtype) for n, pool in enumerate(pools)]
        return [pool.index_select(0, rows_U) for pool in pools]

    def copy(self, source: int, target: int, count: int) -> None:
        """So many rows from here to there, in all layers."""
        for pool in self._pools():
            pool[:, target : target + count] = pool[:, source : source + count]

    def take(self, rows_U: torch.Tensor) -> list[torch.Tensor]:
        """What these rows hold in all layers, in the host's memory, for `put`; layer by layer, as memory is short."""
        parts = [[layer.index_select(0, rows_U).cpu() for layer in pool] for pool in self._pools()]
        return [torch.stack(layers) if layers else torch.empty(0) for layers in parts]

    def put(self, rows_U: torch.Tensor, taken: list[torch.Tensor]) -> None:
        for pool, part in zip(self._pools(), taken, strict=True):
            for layer, new in zip(pool, part, strict=True):
                layer.index_copy_(0, rows_U, new.to(pool.device))

    def _pools(self) -> list[torch.Tensor]:
        """Tensors (L, N, ...) of all that a row has; 8 bits as bytes, since fp8 cannot be indexed everywhere."""
        if self.scales is None:
            return [self.keys, self.values]
        return [self.keys.view(torch.uint8), self.values.view(torch.uint8), self.scales]
