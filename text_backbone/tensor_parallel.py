"""A decoder over several ranks at inference: attention by heads, experts whole, activations the same on every rank.

Every rank sees all tokens. It computes its heads and its experts, which gives a part of the block's output; the parts
are added up by one all-reduce a block. Few tokens go in one piece: what counts there is latency. Many tokens go in
groups, so that the sum of one group travels while the next is computed. Against sending tokens to their experts this
moves fewer bytes for two experts a token: 2 (n - 1) / n rows a token and block, not 3 to 4.
With more ranks than key/value heads several ranks keep the same one.

Legend: T tokens, D model width, n ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from .config import TextConfig
from .small_sum import SmallSum, small_sum

FEW = 256  # tokens up to which a sum goes in one piece
GROUPS = 4  # of more tokens


@dataclass(frozen=True)
class Shard:
    """Part `rank` of `size` of a decoder; `group` are the ranks that share it (None: torch.distributed's own).

    Raises ValueError where heads, key/value heads or experts do not divide by the ranks.
    """

    config: TextConfig
    rank: int
    size: int
    group: dist.ProcessGroup | None = None

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
        """`part(x)` added up over the ranks; of many rows of `x` in groups, each summed while the next is computed."""
        T = x.shape[0]
        if T <= FEW:
            return self.sum(part(x))
        parts, pending = [], []
        for rows in x.split(-(-T // GROUPS)):
            parts.append(part(rows))
            pending.append(dist.all_reduce(parts[-1], group=self.group, async_op=True))
        for work in pending:
            work.wait()
        return torch.cat(parts)
