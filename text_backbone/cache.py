"""What sequences in flight leave behind: two pools, because the two kinds of layer remember differently.

Softmax layers keep the keys and values of every token, in pages of `page_size` tokens handed out as sequences grow.
Lightning layers keep one state per sequence, fp32, however long it is. A slot names a sequence in both pools.

Legend: T new tokens, U tokens with keys, S sequences, H heads, G key/value heads, K head dim.
"""

from dataclasses import replace

import torch

from mmvl.kernels.backend import TRITON, choose
from mmvl.kernels.paged_attention import plan_pages
from mmvl.kernels.paged_attention import supported as paged_supported

from .config import TextConfig
from .packed import KeyIndex, Packed


class CacheFull(RuntimeError):
    """No free slot or not enough free pages; the cache is as it was before the call."""


class HybridCache:
    """Keys, values and states of up to `max_sequences` sequences with `max_tokens` tokens in all (rounded up to pages).

    Use: `allocate` a slot; then `pack` the sequences to run and give the result to `Decoder.forward`, which writes the
    pools and advances the lengths; `free` the slot at the end. After a forward that failed half-way the slots in it
    hold half-written states: free them. `dtype` is that of keys and values and should be the model's.
    """

    def __init__(self, config: TextConfig, *, max_sequences: int, max_tokens: int, page_size: int = 64, device, dtype):
        if min(max_sequences, max_tokens, page_size) < 1:
            raise ValueError(
                f"the cache needs room: max_sequences={max_sequences}, max_tokens={max_tokens}, page_size={page_size}"
            )
        self.page_size, self.device = page_size, torch.device(device)
        self.group = config.num_attention_heads // config.num_key_value_heads
        num_pages = -(-max_tokens // page_size)
        shape = (len(config.softmax_layers), num_pages * page_size, config.num_key_value_heads, config.head_dim)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        state_dtype = torch.promote_types(dtype, torch.float32)
        shape = (len(config.lightning_layers), max_sequences, config.num_attention_heads, *[config.head_dim] * 2)
        self._states = torch.zeros(shape, device=device, dtype=state_dtype)
        self._free_pages = list(range(num_pages - 1, -1, -1))
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    @property
    def free_slots(self) -> int:
        """How many more sequences can be allocated."""
        return len(self._free_slots)

    @property
    def free_pages(self) -> int:
        """How many more pages of `page_size` tokens sequences can grow by."""
        return len(self._free_pages)

    @property
    def num_bytes(self) -> int:
        """Device memory held by both pools."""
        return sum(pool.numel() * pool.element_size() for pool in (self._keys, self._values, self._states))

    def allocate(self) -> int:
        """A slot for a new, empty sequence (state zero). Raises CacheFull if all are taken."""
        if not self._free_slots:
            raise CacheFull("the cache has no free slot: free a sequence first")
        slot = self._free_slots.pop()
        self._states[:, slot].zero_()
        self._pages[slot], self._lengths[slot] = [], 0
        return slot

    def free(self, slot: int) -> None:
        """Give back a sequence's slot and pages."""
        self._check_slot(slot)
        self._free_pages.extend(reversed(self._pages.pop(slot)))
        del self._lengths[slot]
        self._free_slots.append(slot)

    def length(self, slot: int) -> int:
        """Tokens of the sequence that the decoder has seen."""
        self._check_slot(slot)
        return self._lengths[slot]

    def state(self, slot: int) -> torch.Tensor:
        """A copy of the sequence's states, (lightning layers, H, K, K), fp32."""
        self._check_slot(slot)
        return self._states[:, slot].clone()

    def pages_needed(self, slot: int, num_tokens: int) -> int:
        """Further pages that `num_tokens` more tokens of this sequence would take."""
        self._check_slot(slot)
        total = -(-(self._lengths[slot] + num_tokens) // self.page_size)
        return max(total - len(self._pages[slot]), 0)

    def pack(self, wanted) -> Packed:
        """A packed batch of `[(slot, number of new tokens), ...]`, with pages reserved for the new tokens.

        Raises CacheFull, before anything changes, if there are not enough free pages; ValueError for a slot that is not
        allocated or comes twice, or for fewer than 1 token.
        """
        slots, lengths = zip(*wanted, strict=True) if wanted else ((), ())
        if len(set(slots)) != len(slots):
            raise ValueError(f"a slot comes twice in one batch: {slots}")
        needed = [self.pages_needed(slot, n) for slot, n in wanted]
        starts = tuple(self._lengths[slot] for slot in slots)
        slots_S = torch.tensor(slots, dtype=torch.int64).to(self.device)
        packed = Packed.from_lengths(lengths, self.device, starts, slots=tuple(slots), slots_S=slots_S)
        if sum(needed) > len(self._free_pages):
            raise CacheFull(
                f"the cache has {len(self._free_pages)} free pages of {self.page_size} tokens, the batch needs "
                f"{sum(needed)}"
            )
        for slot, count in zip(slots, needed, strict=True):
            self._pages[slot].extend(self._free_pages.pop() for _ in range(count))
        return replace(packed, keys=self._index_keys(packed))

    def check(self, packed: Packed) -> None:
        """Raises ValueError unless `packed` was made by `pack` and continues its sequences where they now are."""
        if packed.slots is None:
            raise ValueError("this packed batch has no cache slots: make it with HybridCache.pack")
        now = tuple(self.length(slot) for slot in packed.slots)
        if now != packed.starts:
            raise ValueError(f"a stale packed batch: it continues lengths {packed.starts}, the cache holds {now}")

    def advance(self, packed: Packed) -> None:
        """Count the batch's tokens as seen; the decoder calls this after its last layer."""
        for slot, n in zip(packed.slots, packed.lengths, strict=True):
            self._lengths[slot] += n

    def states(self, layer: int) -> torch.Tensor:
        """The pool itself (slots, H, K, K), to be updated in place; `layer` counts lightning layers only."""
        return self._states[layer]

    def read_states(self, layer: int, packed: Packed) -> torch.Tensor:
        """States before the batch's first tokens (S, H, K, K); `layer` counts lightning layers only."""
        return self._states[layer].index_select(0, packed.slots_S)

    def write_states(self, layer: int, packed: Packed, states_SHKK: torch.Tensor) -> None:
        """Store the states after the batch's last tokens."""
        self._states[layer].index_copy_(0, packed.slots_S, states_SHKK.detach().to(self._states.dtype))

    def extend_keys(self, layer: int, packed: Packed, k_TGK: torch.Tensor, v_TGK: torch.Tensor):
        """Store new keys and values; returns all of the batch's (U, G, K); `layer` counts softmax layers only."""
        together = []
        for pool, new_TGK in ((self._keys[layer], k_TGK), (self._values[layer], v_TGK)):
            pool.index_copy_(0, packed.keys.pages.write_T, new_TGK.detach().to(pool.dtype))
            together.append(new_TGK if packed.keys.read_U is None else pool.index_select(0, packed.keys.read_U))
        return together

    def key_pools(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all pages (N, G, K), for kernels that read them through the batch's page plan."""
        return self._keys[layer], self._values[layer]

    def has_kernels(self, q_THK: torch.Tensor) -> bool:
        """Whether such kernels exist for these queries. They give no gradients."""
        supported = paged_supported(q_THK, self.group) and self._keys.dtype != torch.float64
        return not torch.is_grad_enabled() and choose(None, q_THK, self._keys, supported=supported) == TRITON

    def _index_keys(self, packed: Packed) -> KeyIndex:
        """Once per batch, with one copy to the device."""
        pages = plan_pages(
            [self._pages[slot] for slot in packed.slots], packed.starts, packed.lengths, self.page_size, self.group,
            self.device,
        )  # fmt: skip
        lengths = tuple(start + n for start, n in zip(packed.starts, packed.lengths, strict=True))
        return KeyIndex(pages, lengths, any(packed.starts))

    def _check_slot(self, slot: int) -> None:
        if slot not in self._pages:
            raise ValueError(f"cache slot {slot} is not allocated")
