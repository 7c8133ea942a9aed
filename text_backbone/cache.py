"""What sequences in flight leave behind: two pools, because the two kinds of layer remember differently.

Softmax layers keep the keys and values of every token, in pages of `page_size` tokens handed out as sequences grow.
Lightning layers keep one state per sequence, fp32, however long it is. A slot names a sequence in both pools.

Legend: T new tokens, U tokens with keys, S sequences, H heads, G key/value heads, K head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmvl.kernels.backend import TRITON, choose
from mmvl.kernels.lightning_decode import lightning_decode
from mmvl.kernels.paged_attention import plan_pages
from mmvl.kernels.paged_attention import supported as paged_supported

from .config import TextConfig
from .key_store import KeyStore, bytes_of_token
from .packed import KeyIndex, Packed, to_device
from .pages import PageBook
from .state_store import StateStore


class CacheFull(RuntimeError):
    """No free slot, place or page; the cache is as it was before the call."""


@dataclass(frozen=True)
class _Kept:
    """Where a checkpoint stands and what it needs beside its state."""

    length: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class _Swapped:
    """A sequence in host memory: its length, its keys and values as their store gave them, its states."""

    length: int
    keys: list[torch.Tensor]
    states: torch.Tensor


class HybridCache:
    """Keys, values and states of up to `max_sequences` sequences with `max_tokens` tokens in all (rounded up to pages).

    Use: `allocate` a slot; then `pack` the sequences to run and give the result to `Decoder.forward`, which writes the
    pools and advances the lengths; `free` the slot at the end. After a forward that failed half-way the slots in it
    hold half-written states: free them. `dtype` is the model's, and that of keys and values unless `kv_dtype` is
    another: torch.float8_e4m3fn or torch.int8, half as large as bf16 and as near as kernels/keys_8bit.py says.

    `checkpoint` keeps a sequence as it now is, in one of `max_checkpoints` places: a copy of its states, and a hold on
    its pages, which are shared, not copied. `resume` starts another sequence from there; only a last page that is not
    full is copied. `swap_out` moves a sequence to the host's memory, `swap_in` brings it back.

    Whatever changes the cache is a method with numbers as arguments, so that another rank can do the same; `READS`
    names those that change nothing.
    """

    READS = frozenset(
        ("free_slots", "free_pages", "used_pages", "used_pages_after", "free_checkpoints", "num_bytes", "length",
         "state", "pages_needed", "swapped_bytes", "scratch_row", "pages_of", "check", "has_kernels")
    )  # fmt: skip

    def __init__(
        self,
        config: TextConfig,
        *,
        max_sequences: int,
        max_tokens: int,
        page_size: int = 64,
        max_checkpoints: int = 0,
        checkpoint_dtype: torch.dtype | None = None,
        device,
        dtype: torch.dtype,
        kv_dtype: torch.dtype | None = None,
    ):
        if min(max_sequences, max_tokens, page_size) < 1:
            raise ValueError(
                f"the cache needs room: max_sequences={max_sequences}, max_tokens={max_tokens}, page_size={page_size}"
            )
        self.page_size, self.device = page_size, torch.device(device)
        self.group = config.num_attention_heads // config.num_key_value_heads
        num_pages = -(-max_tokens // page_size)
        # on a GPU one page more, for what nobody reads: the keys of rows that fill up a CUDA graph's batch
        rows = (num_pages + (self.device.type == "cuda")) * page_size
        self._token_bytes = bytes_of_token(config, kv_dtype or dtype)
        self._keys = KeyStore(config, rows, device, kv_dtype or dtype)
        state_dtype = torch.promote_types(dtype, torch.float32)
        layers, heads = len(config.lightning_layers), (config.num_attention_heads, config.head_dim, config.head_dim)
        self._states = torch.zeros((layers, max_sequences, *heads), device=device, dtype=state_dtype)
        shape = (layers, *heads)
        self._store = StateStore(max_checkpoints, shape, device, checkpoint_dtype or state_dtype)
        self._book = PageBook(num_pages)
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._free_places = list(range(max_checkpoints - 1, -1, -1))
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._kept: dict[int, _Kept] = {}
        self._swapped: dict[int, _Swapped] = {}
        self._drafted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def kv_dtype(self) -> torch.dtype:
        """That of keys and values."""
        return self._keys.dtype

    @property
    def free_slots(self) -> int:
        """How many more sequences can be allocated."""
        return len(self._free_slots)

    @property
    def free_pages(self) -> int:
        """How many more pages of `page_size` tokens sequences can grow by."""
        return self._book.free

    @property
    def used_pages(self) -> int:
        """How many pages sequences use; the others are free or kept by checkpoints alone."""
        return self._book.used

    def used_pages_after(self, left: Sequence[int], checkpoint: int | None = None) -> int:
        """How many they would use if the sequences in these slots left; those of `checkpoint` count as used."""
        held = () if checkpoint is None else self._kept[checkpoint].pages
        return self._book.used_after((self._pages[slot] for slot in left), held)

    @property
    def free_checkpoints(self) -> int:
        """How many more checkpoints can be kept."""
        return len(self._free_places)

    @property
    def num_bytes(self) -> int:
        """Device memory held by the pools."""
        return self._keys.num_bytes + self._states.nbytes + self._store.num_bytes

    def allocate(self) -> int:
        """A slot for a new, empty sequence (state zero). Raises CacheFull if all are taken."""
        slot = self._new_slot([], 0)
        self._states[:, slot].zero_()
        return slot

    def reserve(self, slot: int, num_tokens: int) -> None:
        """Pages for `num_tokens` more tokens of this sequence. Raises CacheFull."""
        needed = self.pages_needed(slot, num_tokens)
        if needed > self._book.free:
            raise CacheFull(f"the cache has {self._book.free} free pages, {num_tokens} more tokens need {needed}")
        self._pages[slot].extend(self._book.take(needed))

    def free(self, slot: int) -> None:
        """Give back a sequence's slot and pages."""
        self._check_slot(slot)
        self._book.leave(self._pages.pop(slot))
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
        return max(self._pages_of(self._lengths[slot] + num_tokens) - len(self._pages[slot]), 0)

    def pages_of(self, slot: int) -> Sequence[int]:
        """The sequence's pages, in order."""
        return self._pages[slot]

    @property
    def scratch_row(self) -> int:
        """A row of the pools that nobody reads."""
        return self._keys.keys.shape[1] - 1

    def checkpoint(self, slot: int) -> int:
        """Keep the sequence as it now is, and return the checkpoint's number. Raises CacheFull without a free place."""
        self._check_slot(slot)
        if not self._free_places:
            raise CacheFull("the cache has no free place for a checkpoint: forget one first")
        place, length = self._free_places[-1], self._lengths[slot]
        pages = tuple(self._pages[slot][: self._pages_of(length)])
        self._store.put(place, self._states[:, slot])  # first: it may run out of memory
        self._free_places.pop()
        self._book.keep(pages)
        self._kept[place] = _Kept(length, pages)
        return place

    def resume(self, checkpoint: int) -> int:
        """A slot for a new sequence that continues where the checkpoint was made. Raises CacheFull."""
        kept = self._kept[checkpoint]
        whole, rest = divmod(kept.length, self.page_size)
        if rest and not self._book.free:
            raise CacheFull("the cache has no free page to copy the checkpoint's last one to")
        slot = self._new_slot(kept.pages[:whole], kept.length)
        self._book.use(kept.pages[:whole])
        self._store.get(checkpoint, self._states[:, slot])
        if rest:
            [page] = self._book.take(1)
            self._pages[slot].append(page)
            self._keys.copy(kept.pages[whole] * self.page_size, page * self.page_size, rest)
        return slot

    def forget(self, checkpoint: int) -> None:
        """Give back a checkpoint's place and its hold on pages."""
        self._book.let_go(self._kept.pop(checkpoint).pages)
        self._free_places.append(checkpoint)

    def swap_out(self, slot: int, key: int) -> None:
        """Move a sequence to the host's memory under `key`, and free its slot and pages."""
        assert key not in self._swapped, key
        keys, states = self._keys.take(self._rows(slot)), self._states[:, slot].to("cpu", copy=True)
        self._swapped[key] = _Swapped(self._lengths[slot], keys, states)
        self.free(slot)

    def swap_in(self, key: int) -> int:
        """Bring a sequence back; its slot. Raises CacheFull, or what copying raises; the cache is as it was then."""
        swapped = self._swapped[key]
        if self._pages_of(swapped.length) > self._book.free:
            raise CacheFull(f"the cache has {self._book.free} free pages, {swapped.length} tokens are to come back")
        slot = self._new_slot([], swapped.length)
        self._pages[slot] = self._book.take(self._pages_of(swapped.length))
        try:
            self._keys.put(self._rows(slot), swapped.keys)
            self._states[:, slot].copy_(swapped.states)
        except BaseException:
            self.free(slot)
            raise
        self.forget_swapped(key)
        return slot

    def forget_swapped(self, key: int) -> None:
        """Drop a sequence from the host's memory."""
        del self._swapped[key]

    def swapped_bytes(self, num_tokens: int) -> int:
        """Host memory that a sequence of so many tokens takes when it is swapped out."""
        return self._states[:, :1].nbytes + num_tokens * self._token_bytes

    def pack(self, wanted, draft: bool = False) -> Packed:
        """A packed batch of `[(slot, number of new tokens), ...]`, with pages reserved for the new tokens.

        With `draft` the tokens are to be verified: the sequences stay where they are until `accept`.

        Raises CacheFull, before anything changes, if there are not enough free pages; ValueError for a slot that is not
        allocated or comes twice, or for fewer than 1 token.
        """
        slots, lengths = zip(*wanted, strict=True) if wanted else ((), ())
        if len(set(slots)) != len(slots):
            raise ValueError(f"a slot comes twice in one batch: {slots}")
        needed = [self.pages_needed(slot, n) for slot, n in wanted]
        starts = tuple(self._lengths[slot] for slot in slots)
        slots_S = to_device(torch.tensor(slots, dtype=torch.int64), self.device)
        packed = Packed.from_lengths(lengths, self.device, starts, slots=tuple(slots), slots_S=slots_S, draft=draft)
        if sum(needed) > self._book.free:
            raise CacheFull(
                f"the cache has {self._book.free} free pages of {self.page_size} tokens, the batch needs {sum(needed)}"
            )
        for slot, count in zip(slots, needed, strict=True):
            self._pages[slot].extend(self._book.take(count))
        return replace(packed, keys=self._index_keys(packed))

    def check(self, packed: Packed) -> None:
        """Raises ValueError unless `packed` was made by `pack` and continues its sequences where they now are."""
        if packed.static:
            return
        if packed.slots is None:
            raise ValueError("this packed batch has no cache slots: make it with HybridCache.pack")
        now = tuple(self.length(slot) for slot in packed.slots)
        if now != packed.starts:
            raise ValueError(f"a stale packed batch: it continues lengths {packed.starts}, the cache holds {now}")

    def advance(self, packed: Packed) -> None:
        """Count the batch's tokens as seen, unless they are a draft; the decoder calls this after its last layer."""
        if not packed.draft and not packed.static:
            self.advance_by(packed.slots, packed.lengths)

    def advance_by(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Count so many new tokens of these sequences as seen."""
        for slot, n in zip(slots, counts, strict=True):
            self._lengths[slot] += n

    def keep_draft(self, layer: int, qkv_TC: torch.Tensor, slopes_H: torch.Tensor) -> None:
        """Remember what a lightning layer (counted among these) projected for the tokens of a draft, for `accept`."""
        self._drafted[layer] = (qkv_TC, slopes_H)

    def accept(self, packed: Packed, counts: Sequence[int]) -> None:
        """Of a draft that the decoder has seen: how many of each sequence's tokens count. The others never were.

        The states take these tokens now. Cheaper in memory than a state after each token, of which one would be chosen.
        """
        self.take_draft(packed, to_device(torch.tensor(counts, dtype=torch.int32), self.device))
        self.forget_draft()
        self.advance_by(packed.slots, counts)

    def take_draft(self, packed: Packed, counts_S: torch.Tensor) -> None:
        """The device's part of `accept`: the states take so many tokens of each sequence's draft."""
        for layer, (qkv_TC, slopes_H) in self._drafted.items():
            lightning_decode(
                qkv_TC, self._states[layer], packed.slots_S, slopes_H, cu_seqlens_S1=packed.cu_seqlens_S1,
                counts_S=counts_S,
            )  # fmt: skip

    def forget_draft(self) -> None:
        """Drop what the layers projected for a draft."""
        self._drafted.clear()

    def states(self, layer: int) -> torch.Tensor:
        """The pool itself (slots, H, K, K), to be updated in place; `layer` counts lightning layers only."""
        return self._states[layer]

    def read_states(self, layer: int, packed: Packed) -> torch.Tensor:
        """States before the batch's first tokens (S, H, K, K); `layer` counts lightning layers only."""
        return self._states[layer].index_select(0, packed.slots_S)

    def write_states(self, layer: int, packed: Packed, states_SHKK: torch.Tensor) -> None:
        """Store the states after the batch's last tokens."""
        states_SHKK = states_SHKK.detach().to(self._states.dtype)
        if packed.source_S is not None:
            states_SHKK = states_SHKK.index_select(0, packed.source_S)
        self._states[layer].index_copy_(0, packed.slots_S, states_SHKK)

    def extend_keys(self, layer: int, packed: Packed, k_TGK: torch.Tensor, v_TGK: torch.Tensor):
        """Store new keys and values; returns all of the batch's (U, G, K); `layer` counts softmax layers only."""
        new = self._keys.write(layer, packed.keys.pages.write_T, k_TGK, v_TGK)
        return new if packed.keys.read_U is None else self._keys.read(layer, packed.keys.read_U, k_TGK.dtype)

    def key_pools(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all pages (N, G, K), for kernels that read them through the batch's page plan."""
        return self._keys.keys[layer], self._keys.values[layer]

    def key_scales(self, layer: int) -> torch.Tensor | None:
        """If they are in 8 bits, the scales (N, G, 2) of both."""
        return None if self._keys.scales is None else self._keys.scales[layer]

    def has_kernels(self, q_THK: torch.Tensor) -> bool:
        """Whether such kernels exist for these queries. They give no gradients."""
        supported = paged_supported(q_THK, self.group) and self._keys.dtype != torch.float64
        return not torch.is_grad_enabled() and choose(None, q_THK, self._keys.keys, supported=supported) == TRITON

    def _index_keys(self, packed: Packed) -> KeyIndex:
        """Once per batch, with one copy to the device."""
        pages = plan_pages(
            [self._pages[slot] for slot in packed.slots], packed.starts, packed.lengths, self.page_size, self.group,
            self.device,
        )  # fmt: skip
        lengths = tuple(start + n for start, n in zip(packed.starts, packed.lengths, strict=True))
        return KeyIndex(pages, lengths, any(packed.starts))

    def _pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def _new_slot(self, pages: Sequence[int], length: int) -> int:
        if not self._free_slots:
            raise CacheFull("the cache has no free slot: free a sequence first")
        slot = self._free_slots.pop()
        self._pages[slot], self._lengths[slot] = list(pages), length
        return slot

    def _rows(self, slot: int) -> torch.Tensor:
        """Rows of the pools where the sequence's tokens lie, int64."""
        position_U = torch.arange(self.length(slot))
        page_U = torch.tensor(self._pages[slot], dtype=torch.int64)[position_U // self.page_size]
        return (page_U * self.page_size + position_U % self.page_size).to(self.device)

    def _check_slot(self, slot: int) -> None:
        if slot not in self._pages:
            raise ValueError(f"cache slot {slot} is not allocated")
