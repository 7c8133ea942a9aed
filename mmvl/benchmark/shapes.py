"""Models to measure that exist as a shape alone: their weights are random, of natural sizes, made where needed."""

from dataclasses import replace
from zlib import crc32

import torch

from mmvl.benchmark.decoder import SLICE, SMALL
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.text_backbone.tensor_parallel import Shard

WHOLE = replace(SLICE, num_hidden_layers=80, attn_type_list=((0,) * 7 + (1,)) * 10)
TINY = replace(
    SLICE, num_hidden_layers=4, attn_type_list=(0, 0, 0, 1), hidden_size=64, num_attention_heads=8,
    num_key_value_heads=2, head_dim=16, rotary_dim=8, vocab_size=128, intermediate_size=32, num_local_experts=8,
)  # fmt: skip
SHAPES = {"slice": SLICE, "whole": WHOLE, "small": SMALL, "tiny": TINY}
EXPERTS = ("int8", "int4", "fp8")
_SPREAD = {"int8": 74.0, "int4": 4.6, "fp8": 1.0}  # of random numbers of these kinds


def shape_of(name: str, layers: int | None = None) -> TextConfig:
    """The config of a shape, or of its first `layers` layers. Raises ValueError for one that does not exist."""
    if name not in SHAPES:
        raise ValueError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}")
    config = SHAPES[name]
    if layers is None:
        return config
    if not 1 <= layers <= config.num_hidden_layers:
        raise ValueError(f"--layers {layers}: the shape {name} has 1 to {config.num_hidden_layers}")
    return replace(config, num_hidden_layers=layers, attn_type_list=config.attn_type_list[:layers])


def check_experts(kind: str | None) -> None:
    """Raises ValueError unless experts can be of this kind of quantisation, or of none (None)."""
    if kind is not None and kind not in EXPERTS:
        raise ValueError(f"there are no {kind!r} experts; there are {', '.join(EXPERTS)}")


def random_decoder(
    device: torch.device,
    *,
    config: TextConfig,
    experts: str | None,
    dtype: torch.dtype,
    rank: int = 0,
    ranks: int = 1,
    sequence_parallel: bool = False,
) -> Decoder:
    """A decoder, or one rank's part of it, on `device`; `experts`: their kind of quantisation, or None.
    `sequence_parallel`: as in `load_model`.

    Norms are 1, matrices such that their outputs are as large as their inputs. Raises ValueError for a kind that does
    not exist, or a shape that does not divide by the ranks.
    """
    check_experts(experts)
    device = torch.device(device)
    with torch.device("meta"):
        shard = Shard(config, rank, ranks, by_sequence=sequence_parallel) if ranks > 1 else None
        decoder = Decoder(config, shard).to(dtype).requires_grad_(False)
        for layer in decoder.model.layers if experts else ():
            layer.block_sparse_moe.experts = QuantizedStack(config, experts, layer.block_sparse_moe.here)
    decoder.to_empty(device=device)
    generator = torch.Generator(device)
    for name, t in decoder.state_dict().items():
        # what every rank has must be the same on all
        shared = any(part in name for part in ("layernorm", "model.norm", "block_sparse_moe.gate"))
        shared |= shard is not None and shard.is_whole(name)
        generator.manual_seed(crc32(name.encode()) + (0 if shared else rank))
        inputs = config.intermediate_size if name.endswith("2") else config.hidden_size
        if ".experts.scale" in name:
            t.fill_(inputs**-0.5 / _SPREAD[experts])
        else:
            _draw(t, generator)
    return decoder


def _draw(t: torch.Tensor, generator: torch.Generator) -> None:
    if t.dtype == torch.uint8:
        t.random_(0, 256, generator=generator)
    elif t.dtype == torch.int8:
        t.random_(-127, 128, generator=generator)
    elif t.dtype == torch.float8_e4m3fn:
        for one in t:
            one.copy_(torch.randn(one.shape, device=t.device, generator=generator))
    elif t.ndim == 1:
        t.fill_(1.0)
    else:
        for one in t if t.ndim == 3 else (t,):
            one.normal_(0, one.shape[-1] ** -0.5, generator=generator)
