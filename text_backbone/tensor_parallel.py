"""A decoder over several ranks at inference: attention by heads, experts whole.

Few tokens, as in decoding, are on every rank. A rank computes its heads and its experts, which gives a part of the
block's output; one all-reduce a block adds the parts up. What counts is latency.

Of many tokens each rank has a share between the attention blocks. They are gathered before attention, which needs all
of them, and the sum behind it leaves each rank its share, in groups, one of which is summed while the next is
projected; tokens go to their experts and back by all-to-all, also in groups (expert_parallel.py). A block then moves
(n - 1) / n rows a token and rank for each of gather and sum, and 2 k / n of that for the experts, where two all-reduces
would take four: 4 against 4 for two ranks, 3 for four, 2.5 for eight. Norms and routers run on the share alone.

With more ranks than key/value heads several ranks keep the same one.

With `by_sequence` lightning layers are whole on every rank. Of many tokens of a few sequences each rank then has a part
of the sequence, and ranks exchange states instead of tokens in these layers (sequence_prefill.py): for the price of the
weights, next to nothing is sent there. Softmax layers, and what is cached, stay as they are.

Legend: T tokens, D model width, n ranks, k experts a token, L tokens of a rank's share (filled up).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .config import TextConfig
from .expert_parallel import ExpertLayout
from .packed import Packed
from .sequence_prefill import SequenceParts, gather_ranks
from .small_sum import SmallSum, small_sum

FEW = 512  # tokens up to which they are on every rank; the largest step that is captured in a CUDA graph
GROUPS = 4  # of more tokens


@dataclass(frozen=True)
class Shard:
    """Part `rank` of `size` of a decoder; `group` are the ranks that share it (None: torch.distributed's own).

    by_sequence: lightning layers are whole on every rank, for prefill by parts of the sequence.

    Raises ValueError where heads, key/value heads or experts do not divide by the ranks.
    """

    config: TextConfig
    rank: int
    size: int
    group: dist.ProcessGroup | None = None
    by_sequence: bool = False

    def __post_init__(self):
        c, n = self.config, self.size
        keys = c.num_key_value_heads
        wrong = [
            f"{count} {what}"
            for what, count, divides in (
                ("attention heads", c.num_attention_heads, c.num_attention_heads % n == 0),
                ("key/value heads", keys, keys % n == 0 or n % keys == 0),
                ("experts", c.num_local_experts, c.num_local_experts % n == 0),
                ("channels of the shared expert", c.shared_intermediate_size, c.shared_intermediate_size % n == 0),
            )
            if not divides
        ]
        if wrong:
            raise ValueError(f"the model cannot be spread over {n} ranks: {', '.join(wrong)} do not divide by {n}")

    @property
    def local(self) -> TextConfig:
        """The config with this rank's heads: sizes of its attention layers and of its cache."""
        c = self.config
        return replace(
            c,
            num_attention_heads=c.num_attention_heads // self.size,
            num_key_value_heads=max(c.num_key_value_heads // self.size, 1),
            shared_intermediate_size=c.shared_intermediate_size // self.size,
        )

    @property
    def experts(self) -> range:
        """The experts that are here."""
        mine = self.config.num_local_experts // self.size
        return range(self.rank * mine, (self.rank + 1) * mine)

    def heads(self, per_head: list) -> list:
        """Of a list with an entry a head, those of this rank."""
        mine = len(per_head) // self.size
        return per_head[self.rank * mine : (self.rank + 1) * mine]

    def box(self, name: str, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
        """Which part of the decoder's parameter `name`, of `shape` in the whole one, is here; None: nothing of it.

        Embedding and head are on rank 0 alone, norms and routers on all ranks.
        """
        whole = [slice(0, n) for n in shape]
        parent, _, last = name.removesuffix(".weight").rpartition(".")
        if last in ("embed_tokens", "lm_head"):
            return None if self.rank else tuple(whole)
        if self.is_whole(name):
            return tuple(whole)
        if last in ("w1", "w3", "w2"):
            whole[0] = slice(self.experts.start, self.experts.stop)
        elif last in ("qkv_proj", "output_gate", "q_proj", "gate_proj", "up_proj") or (
            last == "norm" and parent.endswith("self_attn")
        ):
            whole[0] = self._share(shape[0], self.size, self.rank)
        elif last in ("k_proj", "v_proj"):
            parts = min(self.size, self.config.num_key_value_heads)
            whole[0] = self._share(shape[0], parts, self.rank * parts // self.size)
        elif last in ("out_proj", "o_proj", "down_proj"):
            whole[1] = self._share(shape[1], self.size, self.rank)
        return tuple(whole)

    def is_whole(self, name: str) -> bool:
        """Whether the parameter is of a lightning layer's attention that is whole on every rank."""
        number = re.search(r"layers\.(\d+)\.self_attn\.", name) if self.by_sequence else None
        return number is not None and int(number[1]) in self.config.lightning_layers

    @staticmethod
    def _share(count: int, parts: int, part: int) -> slice:
        return slice(count // parts * part, count // parts * (part + 1))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """`x` added up over the ranks; it may be written to."""
        if x.is_cuda and SmallSum.takes(x) and (add := small_sum(self.group, x.device)) is not None:
            return add(x)
        dist.all_reduce(x, group=self.group)
        return x

    def sum_of(self, part: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """`part(x)` added up over the ranks."""
        return self.sum(part(x))

    @property
    def layout(self) -> ExpertLayout:
        """For sending many tokens to their experts."""
        group = dist.group.WORLD if self.group is None else self.group
        return ExpertLayout(self.size, self.rank, group, self.size, token_groups=GROUPS)


class TokenShares:
    """Of a step's many tokens each rank has a share: of each of `groups` groups as many rows, the last ones filled up.

    `parts` tells where the sequences are if each rank has one part of them, in one group; None: in `GROUPS`.
    """

    def __init__(self, shard: Shard, packed: Packed):
        self.shard, self.tokens = shard, packed.num_tokens
        cached = packed.slots is not None and not packed.draft  # a draft's states are not to be written yet
        by_sequence = shard.by_sequence and cached and self._states_are_less(packed)
        self.groups = 1 if by_sequence else GROUPS
        self.rows = -(-self.tokens // (self.groups * shard.size))  # of a rank in a group
        self.parts = SequenceParts(packed, shard.rank, shard.size, self.rows, shard.group) if by_sequence else None

    def _states_are_less(self, packed: Packed) -> bool:
        """Whether ranks send less of states than of tokens."""
        config = self.shard.config
        state = config.num_attention_heads * config.head_dim**2
        return (self.shard.size + 1) * len(packed.lengths) * state < self.tokens * config.hidden_size

    def mine(self, x_TD: torch.Tensor) -> torch.Tensor:
        """This rank's share (L, D) of what all ranks have."""
        padded = F.pad(x_TD, (0, 0, 0, self.groups * self.shard.size * self.rows - self.tokens))
        return padded.view(self.groups, self.shard.size, self.rows, -1)[:, self.shard.rank].flatten(0, 1)

    def gather(self, x_LD: torch.Tensor) -> torch.Tensor:
        """All tokens (T, D) of everyone's share."""
        everyones = gather_ranks(x_LD, self.shard.size, self.shard.group)
        parts = everyones.view(self.shard.size, self.groups, self.rows, -1)
        return parts.transpose(0, 1).reshape(-1, x_LD.shape[1])[: self.tokens]

    def sum_of(self, part: Callable[[torch.Tensor], torch.Tensor], x_TC: torch.Tensor) -> torch.Tensor:
        """This rank's share (L, D) of `part(x)` added up over the ranks, group by group."""
        sums, pending = [], []
        for rows in x_TC.split(self.shard.size * self.rows):
            y = part(rows)
            y = F.pad(y, (0, 0, 0, self.shard.size * self.rows - len(y)))
            sums.append(y.view(self.shard.size, self.rows, -1)[self.shard.rank])
            if y.is_cuda:
                sums[-1] = torch.empty_like(sums[-1])
                work = dist.reduce_scatter_tensor(sums[-1], y, group=self.shard.group, async_op=True)
            else:  # gloo
                work = dist.all_reduce(y, group=self.shard.group, async_op=True)
            pending.append((work, y))  # y must live until then
        for work, _ in pending:
            work.wait()
        sums += [torch.zeros_like(sums[0])] * (self.groups - len(sums))
        return torch.cat(sums)
