"""Softmax attention beside torch's scaled dot product attention, and RoPE beside torch's operations.

Legend: T or L new tokens, M keys, S sequences, H query heads, G key/value heads, K head dim.
"""

from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from mmvl.benchmark.case import Case, Contestant
from mmvl.kernels.paged_attention import paged_attention, plan_pages
from mmvl.kernels.rope import Rotary, apply_rope, rope_into_pages
from mmvl.kernels.softmax_attention import softmax_attention

PAGE = 64  # tokens
ROWS = 32  # queries whose output is compared with the reference


def attention_cases() -> list[Case]:
    wide = {"H": 64, "G": 8, "K": 128}
    peer = Contestant("torch SDPA", _sdpa, lambda out, i: (out.transpose(1, 2).flatten(0, 1),))
    beside_pages = replace(peer, note="keys and values lie in one piece, not in pages")
    common = dict(
        reference=_reference,
        part=lambda outputs, i: tuple(o[i.rows] for o in outputs),
        bytes=lambda i: 2 * i.q.nbytes + i.k.nbytes + i.v.nbytes,
        flops=_flops,
        inputs=_inputs,
    )
    paged = dict(**common, contestants=[Contestant("mmvl", _ours_paged, ours=True), beside_pages])
    return [
        Case(
            op="softmax prefill",
            about="causal, one sequence without a past",
            axis="L",
            full=[{"L": L, **wide} for L in (4096, 16384, 32768)],
            quick=[{"L": 16384, **wide}],
            tiny=[{"L": 20, "H": 4, "G": 2, "K": 16}],
            contestants=[Contestant("mmvl", _ours, ours=True), peer],
            **common,
        ),
        Case(
            op="softmax chunk",
            about="L new tokens of one sequence, in all M keys in pages",
            axis="M",
            full=[{"L": 4096, "M": M, **wide} for M in (16384, 131072)],
            quick=[{"L": 4096, "M": 16384, **wide}],
            tiny=[{"L": 8, "M": 20, "H": 4, "G": 2, "K": 16}],
            **paged,
        ),
        Case(
            op="softmax decode",
            about="a token of each of S sequences, each with M keys in pages",
            axis="S",
            full=[{"S": S, "M": 32768, **wide} for S in (1, 8, 64)],
            quick=[{"S": 8, "M": 32768, **wide}],
            tiny=[{"S": 2, "M": 20, "H": 4, "G": 2, "K": 16}],
            **paged,
        ),
        Case(
            op="rope",
            about="half of each head of queries and keys rotated, keys and values stored into their pages",
            axis="T",
            full=[{"T": T, **wide} for T in (1, 64, 4096, 65536)],
            quick=[{"T": 4096, **wide}],
            tiny=[{"T": 20, "H": 4, "G": 2, "K": 16}],
            inputs=_new_tokens,
            reference=_rope_reference,
            part=lambda outputs, i: (outputs[0][i.rows], *(pool[i.write[i.rows]] for pool in outputs[1:])),
            contestants=[
                Contestant("mmvl", _our_rope, ours=True),
                Contestant("torch", _torch_rope, note="is given the cosines and sines", slack=2),  # rounds each product
            ],
            # the half of the queries that is rotated, where they lie; keys and values whole, into their pages
            bytes=lambda i: i.q.nbytes + 2 * (i.k.nbytes + i.v.nbytes),
            flops=lambda i: 1.5 * (i.q.numel() + i.k.numel()),
        ),
    ]


def _inputs(shape, device, dtype, seed):
    H, G, K = (shape[name] for name in ("H", "G", "K"))
    S, L = shape.get("S", 1), shape.get("L", 1)
    M = shape.get("M", L)
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda *size: torch.randn(size, generator=generator, device=device, dtype=dtype)  # noqa: E731
    offsets = [torch.arange(S + 1, dtype=torch.int32, device=device) * n for n in (L, M)]
    rows = torch.linspace(0, S * L - 1, min(S * L, ROWS), device=device).long()
    return SimpleNamespace(
        q=draw(S * L, H, K), k=draw(S * M, G, K), v=draw(S * M, G, K), S=S, L=L, M=M, rows=rows,
        cu_q=offsets[0], cu_k=offsets[0] if L == M else offsets[1],
    )  # fmt: skip


def _flops(i) -> float:
    pairs = i.S * (i.L * (i.M - i.L) + i.L * (i.L + 1) / 2)
    return 4.0 * pairs * i.q.shape[1] * i.q.shape[2]


def _reference(i):
    """fp64, some queries, one at a time."""
    groups = i.q.shape[1] // i.k.shape[1]
    out = []
    for row in i.rows.tolist():
        s, at = divmod(row, i.L)
        keys = slice(s * i.M, s * i.M + i.M - i.L + at + 1)
        q = i.q[row].double().view(-1, groups, i.q.shape[2])
        scores = torch.einsum("gak,mgk->gam", q, i.k[keys].double()) * i.q.shape[2] ** -0.5
        out.append(torch.einsum("gam,mgk->gak", scores.softmax(-1), i.v[keys].double()).flatten(0, 1))
    return (torch.stack(out),)


def _ours(i):
    lengths = (i.L,) * i.S, (i.M,) * i.S
    scale = i.q.shape[2] ** -0.5

    def run():
        with torch.no_grad():
            return softmax_attention(i.q, i.k, i.v, i.cu_q, i.cu_k, *lengths, scale)

    return run


def _ours_paged(i):
    """The pages of the sequences lie among each other, in an order drawn at random."""
    G, K, count = *i.k.shape[1:], -(-i.M // PAGE)
    order = torch.randperm(i.S * count, generator=torch.Generator().manual_seed(0))
    pools = []
    for x in (i.k, i.v):
        pages = F.pad(x.view(i.S, i.M, G, K), (0, 0, 0, 0, 0, count * PAGE - i.M)).view(-1, PAGE, G, K)
        pools.append(torch.empty_like(pages).index_copy_(0, order.to(x.device), pages).view(-1, G, K))
    plan = plan_pages(
        order.view(i.S, count).tolist(), [i.M - i.L] * i.S, [i.L] * i.S, PAGE, i.q.shape[1] // G, i.q.device
    )
    scale = K**-0.5

    def run():
        with torch.no_grad():
            return paged_attention(i.q, *pools, plan, scale)

    return run


def _sdpa(i):
    q = i.q.unflatten(0, (i.S, i.L)).transpose(1, 2).contiguous()
    k, v = (x.unflatten(0, (i.S, i.M)).transpose(1, 2).contiguous() for x in (i.k, i.v))
    causal = i.L == i.M and i.L > 1
    mask = causal_lower_right(i.L, i.M) if 1 < i.L < i.M else None

    def run():
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)

    return run


def _new_tokens(shape, device, dtype, seed):
    """Far in a long sequence; their rows of the pools lie in any order."""
    T, H, G, K = (shape[name] for name in ("T", "H", "G", "K"))
    generator = torch.Generator(device).manual_seed(seed)
    q, k, v = (torch.randn(T, n, K, generator=generator, device=device, dtype=dtype) for n in (H, G, G))
    k_pool, v_pool = (torch.empty(T + PAGE, G, K, device=device, dtype=dtype) for _ in range(2))
    return SimpleNamespace(
        q=q, k=k, v=v, k_pool=k_pool, v_pool=v_pool,
        rotary=Rotary.of(torch.arange(T, device=device) + 100_000, K // 2, 1e7),
        write=torch.randperm(T + PAGE, generator=generator, device=device)[:T],
        rows=torch.linspace(0, T - 1, min(T, ROWS), device=device).long(),
    )  # fmt: skip


def _rope_reference(i):
    """fp64, some tokens, by the angles that define the operation: products in fp32."""
    angle = (i.rotary.positions_T[i.rows].float()[:, None] * i.rotary.frequencies_R).double()
    tables = angle.cos()[:, None], angle.sin()[:, None]
    return apply_rope(i.q[i.rows].double(), *tables), apply_rope(i.k[i.rows].double(), *tables), i.v[i.rows].double()


def _our_rope(i):
    def run():
        rope_into_pages(i.q, i.k, i.v, i.rotary, i.k_pool, i.v_pool, i.write)
        return i.q, i.k_pool, i.v_pool

    return run


def _torch_rope(i):
    """As models are written in torch: x cos + (its halves exchanged) sin, then the pages."""
    cos, sin = (torch.cat((x, x), dim=-1).to(i.q.dtype) for x in i.rotary.tables)
    width = cos.shape[-1]

    def rotate(x):
        turned = x[..., :width]
        a, b = turned.chunk(2, dim=-1)
        return torch.cat((turned * cos + torch.cat((-b, a), dim=-1) * sin, x[..., width:]), dim=-1)

    def run():
        q, k = rotate(i.q), rotate(i.k)
        i.k_pool.index_copy_(0, i.write, k)
        i.v_pool.index_copy_(0, i.write, i.v)
        return q, i.k_pool, i.v_pool

    return run
